//! A stack cannot pass for one of a shorter lifetime and then get a handler that borrows for only that long.

use exitstack::ExitStack;

fn shorten<'s, 'short>(stack: &'s ExitStack<'static>) -> &'s ExitStack<'short> {
    stack
}

fn main() {
    shorten(&ExitStack::new());
}
