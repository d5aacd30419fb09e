//! Any thread may end the process.

use std::rc::Rc;

fn main() {
    let local = Rc::new(1);
    exitstack::register(move || drop(local));
}
