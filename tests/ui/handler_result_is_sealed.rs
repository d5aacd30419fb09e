//! Other crates cannot implement `HandlerResult`.

use exitstack::HandlerResult;

struct Mine;

impl HandlerResult for Mine {}

fn main() {}
