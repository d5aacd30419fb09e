//! A value lent out until its exit: [`ExitStack::enter`].
//!
//! **Need.** `enter` takes a value, gives the user `&mut` to it for as long as the stack is only appended to, and hands
//! the value to its exit handler when the stack drains. A handler that captured a `Box<T>` beside a `&mut` to its
//! content would not do: the list moves its handlers when it grows, and moving a `Box` invalidates what was lent of it.
//!
//! **Mechanism.** The value's box is taken apart into a pointer. [`Entered`] keeps the pointer and puts the box together
//! again when it is run or dropped, once.
//!
//! **Why the loan is over by then.** The loan lives as long as the `&'s ExitStack` it was made from. A handler in the
//! stack is run, taken out or dropped only by methods that take `&mut ExitStack` (`close`, `close_with`, `unregister`,
//! `unregister_fn`, `unregister_key`, `run_now`, `pop_all`, `clear`) and by the stack's own drop, and the borrow
//! checker lets none of them begin before `'s` ends. What takes `&ExitStack` only appends (`register`, `on_success`,
//! `on_failure`, `enter`, `reserve`) or reads the entries' names and places, not the tasks (`len`, `is_empty`,
//! `pending`, `Debug`). A stack that is forgotten never drops what it holds. Each `enter` lends its own value, so two
//! loans never overlap.

use std::any::TypeId;
use std::panic::Location;
use std::ptr::NonNull;

use super::{BoxError, Task};
use crate::handler::HandlerResult;
use crate::stack::ExitStack;

/// A value that is lent out, and what to do with it at the end.
///
/// Invariant: `value` came from `Box::into_raw` and belongs to this `Entered`. Pointer and function are `Send` or not
/// as they may: an `Entered` never leaves the `ExitStack`, which is neither.
struct Entered<T, F> {
    value: NonNull<T>,
    exit: Option<F>,
}

impl<T, F> Entered<T, F> {
    fn take(&mut self) -> Option<(Box<T>, F)> {
        let exit = self.exit.take()?;
        // SAFETY: the pointer came from `Box::into_raw` (the invariant); `exit` was still there, so this is the first
        // and only time that the box is put together.
        let value = unsafe { Box::from_raw(self.value.as_ptr()) };
        Some((value, exit))
    }
}

impl<T, R: HandlerResult, F: FnOnce(T) -> R> Task for Entered<T, F> {
    fn run(mut self) -> Result<(), BoxError> {
        self.take().map_or(Ok(()), |(value, exit)| exit(*value).into_result())
    }

    fn function() -> TypeId {
        typeid::of::<Self>()
    }
}

impl<T, F> Drop for Entered<T, F> {
    fn drop(&mut self) {
        drop(self.take());
    }
}

/// Puts `value` on the stack and lends it out; see the module.
#[expect(
    clippy::mut_from_ref,
    reason = "each call lends a value of its own, which nothing else reaches while `'s` lasts"
)]
pub(crate) fn enter<'s, 'a, T: 'a, R: HandlerResult>(
    stack: &'s ExitStack<'a>,
    value: T,
    exit: impl FnOnce(T) -> R + 'a,
    location: &'static Location<'static>,
) -> &'s mut T {
    let mut value = NonNull::from(Box::leak(Box::new(value)));
    stack.push(Entered { value, exit: Some(exit) }, location);
    // SAFETY: the pointer is to a live `T`, made a moment ago; the stack holds it until `'s` has ended (the module's
    // argument) and nobody else has it.
    unsafe { value.as_mut() }
}
