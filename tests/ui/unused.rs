//! What drains when it is dropped, and was not bound to a name.

#![deny(unused_must_use)]

use exitstack::{ExitStack, HandlerList, Interpreter, SharedExitStack};

fn main() {
    ExitStack::new();
    SharedExitStack::new();
    Interpreter::new("plugin");
    HandlerList::<u8>::new().clear();
    let mut stack = ExitStack::new();
    let id = stack.register(|| Err("disk full"));
    stack.run_now(id);
}
