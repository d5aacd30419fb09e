//! Nobody else implements `HandlerResult`.

use exitstack::HandlerResult;

struct Mine;

impl HandlerResult for Mine {}

fn main() {}
