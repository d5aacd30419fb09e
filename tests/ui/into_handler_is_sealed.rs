//! Other crates cannot implement `IntoHandler`.

use exitstack::IntoHandler;

struct Mine;

impl IntoHandler for Mine {}

fn main() {}
