//! A stack cannot be taken for one of a shorter lifetime, and be given a handler that borrows for that only.

use exitstack::ExitStack;

fn shorten<'s, 'short>(stack: &'s ExitStack<'static>) -> &'s ExitStack<'short> {
    stack
}

fn main() {
    shorten(&ExitStack::new());
}
