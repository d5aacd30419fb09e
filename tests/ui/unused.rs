//! Values that drain, or run foreign code, when they are dropped, and that were not bound to a name.

#![deny(unused_must_use)]

use exitstack::{ExitStack, HandlerList, Interpreter, SharedExitStack};

fn main() {
    ExitStack::new();
    SharedExitStack::new();
    Interpreter::new("plugin");
    let mut list = HandlerList::new();
    let id = list.push("value");
    list.remove(id);
    list.remove_if(|_| true);
    list.pop();
    list.clear();
    let mut stack = ExitStack::new();
    let id = stack.register(|| Err("disk full"));
    stack.run_now(id);
}
