struct Mine;

impl exitstack::IntoAsyncHandler for Mine {}

fn main() {}
