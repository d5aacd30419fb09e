//! A list of handlers that can be appended to through a shared reference, and that lends out values until it drains.
//!
//! **Need.** `ExitStack::enter` takes a value, returns a `&mut` to it for as long as the stack is only appended to, and
//! passes the value to its exit handler when the stack drains. A handler that captures a `Box<T>` while there is a
//! `&mut` to its content would be unsound: the list moves its handlers when it grows, and moving a `Box` invalidates
//! references into it.
//!
//! **Mechanism.** The value's box is turned into a raw pointer. [`Entered`] keeps the pointer, and turns it back into a
//! box when it is run or dropped, once.
//!
//! **Why the loan has ended by then.** The loan lives as long as the `&'s Appendable` that it was made from. A handler
//! in the list is run, taken out or dropped only through [`Appendable::get_mut`], by moving the `Appendable`, or by its
//! drop, and the borrow checker lets none of these begin before `'s` ends. Methods that take `&Appendable` only append
//! ([`push`], [`enter`], [`reserve`]), or read what can be read of an entry through `&`: its name, key, function and
//! location, never the value ([`read`]). A list that is forgotten never drops its contents. Each `enter` lends a value
//! of its own, so no two loans overlap.
//!
//! **`Send` and `Sync`** are implemented under a condition that nothing meets. So where the compiler says that a stack
//! cannot leave its thread, it also says what to use instead.
//!
//! [`push`]: Appendable::push
//! [`enter`]: Appendable::enter
//! [`reserve`]: Appendable::reserve
//! [`read`]: Appendable::read

use alloc::boxed::Box;
use core::any::TypeId;
use core::cell::RefCell;
use core::panic::Location;
use core::ptr::NonNull;

use super::{Bound, BoxError, Closure, Packed, Task};
use crate::error::Outcome;
use crate::handler::{HandlerResult, LocalEntry};
use crate::list::{FIRST_BLOCK, HandlerId, HandlerList, Storage};

/// The list of an `ExitStack`.
///
/// The `RefCell` allows appending through `&self`. It also makes the list invariant in `'a`: if it were covariant, a
/// shorter-lived handler could be registered through a shared reference.
pub(crate) struct Appendable<'a>(RefCell<HandlerList<LocalEntry<'a>>>);

/// Implemented by nothing, so that a stack is neither `Send` nor `Sync`.
///
/// The compiler would derive that from the handlers, but its message would be about those instead of the stack.
#[diagnostic::on_unimplemented(
    message = "an `ExitStack` stays on the thread that created it",
    label = "an `ExitStack` is neither `Send` nor `Sync`",
    note = "for threads, thread pools and tasks there are `SharedExitStack` and `Interpreter`, \
            whose handlers are `Send + 'static`"
)]
#[allow(dead_code, reason = "Rust 1.85 does not count a bound as a use")]
pub(crate) trait LeavesItsThread {}

// SAFETY: applies to nothing, as nothing implements `LeavesItsThread`.
unsafe impl<'a> Send for Appendable<'a> where Appendable<'a>: LeavesItsThread {}

// SAFETY: applies to nothing, as nothing implements `LeavesItsThread`.
unsafe impl<'a> Sync for Appendable<'a> where Appendable<'a>: LeavesItsThread {}

impl<'a> Appendable<'a> {
    #[inline]
    pub(crate) const fn new() -> Self {
        Self(RefCell::new(HandlerList::new()))
    }

    #[inline]
    pub(crate) fn push<T: Task + 'a>(&self, task: T, location: &'static Location<'static>) -> HandlerId {
        let location = task.location().unwrap_or(location);
        let task = Packed::new(task); // boxed, if it has to be, while the list is not borrowed
        let entry = || LocalEntry { closure: Closure::<dyn Bound + 'a>::new(task), location };
        let pushed = self.0.borrow_mut().push_here(entry);
        pushed.unwrap_or_else(|entry| self.push_to_full(entry()))
    }

    /// Appends to a list that had no room. Memory is allocated and freed while the list is not borrowed.
    #[cold]
    #[inline(never)]
    fn push_to_full(&self, mut entry: LocalEntry<'a>) -> HandlerId {
        if !self.0.borrow().is_spilled() {
            let pushed = {
                let block = Storage::with_capacity(FIRST_BLOCK);
                self.0.borrow_mut().push_to_block(block, entry)
            };
            match pushed {
                Ok(id) => return id,
                Err((unused, _block)) => entry = unused, // the allocator itself has made the list grow
            }
        }
        self.push_to_full_block(entry)
    }

    /// The same, where the list has a block.
    #[cold]
    #[inline(never)]
    fn push_to_full_block(&self, mut entry: LocalEntry<'a>) -> HandlerId {
        loop {
            self.reserve(1);
            let pushed = self.0.borrow_mut().push_here(|| entry);
            match pushed {
                Ok(id) => return id,
                Err(unused) => entry = unused(),
            }
        }
    }

    /// Appends a handler that passes `value` and the outcome to `exit`, and lends out the value until then.
    #[expect(clippy::mut_from_ref, reason = "each call lends a value of its own, which nothing else can reach")]
    pub(crate) fn enter<'s, T: 'a, R: HandlerResult>(
        &'s self,
        value: T,
        exit: impl FnOnce(T, Outcome) -> R + 'a,
        location: &'static Location<'static>,
    ) -> &'s mut T {
        let (entered, mut value) = Entered::new(value, exit);
        self.push(entered, location);
        // SAFETY: the pointer is to a live `T`, created just above; the list keeps it until `'s` has ended (see the
        // argument of this module), and nothing else has access to it.
        unsafe { value.as_mut() }
    }

    pub(crate) fn reserve(&self, additional: usize) {
        loop {
            let wanted = self.0.borrow().wanted(additional);
            let Some(capacity) = wanted else { return };
            let mut storage = Storage::with_capacity(capacity); // while the list is not borrowed, as is its drop
            self.0.borrow_mut().exchange(&mut storage);
        }
    }

    #[inline]
    pub(crate) fn read<R>(&self, read: impl FnOnce(&HandlerList<LocalEntry<'a>>) -> R) -> R {
        read(&self.0.borrow())
    }

    #[inline]
    pub(crate) fn get_mut(&mut self) -> &mut HandlerList<LocalEntry<'a>> {
        self.0.get_mut()
    }
}

/// A value that is lent out, and the function that gets it at the end.
///
/// Invariant: `value` came from `Box::leak` and belongs to this `Entered` while `exit` is `Some`. Whether the pointer
/// and the function are `Send` does not matter in an `ExitStack`, which is not; `lending.rs` says why it is sound where
/// it does.
pub(super) struct Entered<T, F> {
    value: NonNull<T>,
    exit: Option<F>,
}

impl<T, F> Entered<T, F> {
    /// Moves the value to the heap, and returns a pointer to it as well.
    pub(super) fn new(value: T, exit: F) -> (Self, NonNull<T>) {
        let value = NonNull::from(Box::leak(Box::new(value)));
        (Self { value, exit: Some(exit) }, value)
    }

    fn take(&mut self) -> Option<(Box<T>, F)> {
        let exit = self.exit.take()?;
        // SAFETY: the pointer came from `Box::leak` (the invariant); `exit` was `Some`, so this is the first and only
        // time that the pointer is turned back into a box.
        let value = unsafe { Box::from_raw(self.value.as_ptr()) };
        Some((value, exit))
    }
}

impl<T, R: HandlerResult, F: FnOnce(T, Outcome) -> R> Task for Entered<T, F> {
    const LOOKS: bool = true;

    fn run(mut self, outcome: Outcome) -> Result<(), BoxError> {
        self.take().map_or(Ok(()), |(value, exit)| exit(*value, outcome).into_result())
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
