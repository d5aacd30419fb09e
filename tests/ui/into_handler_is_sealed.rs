//! Nobody else implements `IntoHandler`.

use exitstack::IntoHandler;

struct Mine;

impl IntoHandler for Mine {}

fn main() {}
