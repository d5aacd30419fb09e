//! A stack cannot be treated as one with a shorter lifetime and then be given a handler that borrows for only that
//! long.

use exitstack::ExitStack;

fn shorten<'s, 'short>(stack: &'s ExitStack<'static>) -> &'s ExitStack<'short> {
    stack
}

fn main() {
    shorten(&ExitStack::new());
}
