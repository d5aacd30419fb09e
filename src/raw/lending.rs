//! The handlers of an `AsyncExitStack`, to which threads can append through a shared reference, and which lends out
//! values until it drains.
//!
//! **Need.** What `appendable.rs` does for `ExitStack::enter`, for a stack that is `Send` and `Sync`.
//!
//! **Mechanism.** The same [`Entered`], in a list behind a lock.
//!
//! **Why the loan has ended before the value is used again.** The loan lives as long as the `&'s Lending` that it was
//! made from. The [`Queue`] inside has methods that take entries out through `&Queue`; but the only way to a `&Queue`
//! is [`Lending::get_mut`], and the borrow checker lets neither that, nor a move of the `Lending`, nor its drop begin
//! before `'s` ends. Methods that take `&Lending` append, or read the names, locations and number of the entries, never
//! a value; or they return the slot for a future, which owns what was passed to it at the end, after the loan. An
//! append moves entries when the list grows, but an entry has only a pointer to its value. A queue that is shared by
//! handles, as a scope's is, is not a `Lending`, and lends nothing.
//!
//! **Why threads make no difference.** Each `enter` makes a value of its own and lends it to its caller alone, so two
//! threads that call it at once get references to different values. The thread that uses a value at the end has the
//! stack for itself, by value or by `&mut`. So whatever ended the loan (the join of a scoped thread, say) has also made
//! all that was written through it visible to that thread. The value reaches that thread in the stack, without a move
//! of its own; this is why `enter` asks for `T: Send`, and why the [`Send`] of [`Entered`] asks for it again. `T: Sync`
//! is not needed: there is never more than one reference to the value.

use std::mem;
use std::panic::Location;
use std::sync::Arc;

use super::Task;
use super::appendable::Entered;
use crate::async_stack::{Queue, Slot};
use crate::error::Outcome;
use crate::handler::{HandlerResult, PendingHandler};
use crate::list::HandlerId;
use crate::sync::const_fn;

// SAFETY: an `Entered` owns its value and its function (its invariant); the pointer is only how it owns the value, as a
// `Box<T>` would. So it may be sent wherever a `(Box<T>, F)` may. If the value is lent out at the time, the loan is
// over before the value is used, as the module says.
unsafe impl<T: Send, F: Send> Send for Entered<T, F> {}

/// The queue of an `AsyncExitStack`.
pub(crate) struct Lending<'a>(Queue<'a>);

impl<'a> Lending<'a> {
    const_fn! {
        pub(crate) const fn new() -> Self {
            Self(Queue::new())
        }
    }

    pub(crate) fn push<T: Task + Send + 'a>(&self, task: T, location: &'static Location<'static>) -> HandlerId {
        self.0.push(task, location).unwrap_or_else(|_| HandlerId::unknown()) // a stack refuses nothing
    }

    /// Appends a handler that passes `value` and the outcome to `exit`, and lends out the value until then.
    #[expect(clippy::mut_from_ref, reason = "each call lends a value of its own, which nothing else can reach")]
    pub(crate) fn enter<'s, T: Send + 'a, R: HandlerResult>(
        &'s self,
        value: T,
        exit: impl FnOnce(T, Outcome) -> R + Send + 'a,
        location: &'static Location<'static>,
    ) -> &'s mut T {
        let (entered, mut value) = Entered::new(value, exit);
        // A stack refuses nothing. If it did, the value would have to stay.
        let _ = self.0.push(entered, location).map_err(mem::forget);
        // SAFETY: the pointer is to a live `T`, created just above; the queue keeps it until `'s` has ended (see the
        // argument of this module), or it stays forever, and nothing else has access to it.
        unsafe { value.as_mut() }
    }

    pub(crate) fn reserve(&self, additional: usize) {
        self.0.reserve(additional);
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn pending(&self) -> Vec<PendingHandler> {
        self.0.pending()
    }

    pub(crate) fn slot(&self) -> &Arc<Slot<'a>> {
        self.0.slot()
    }

    pub(crate) fn has_flight(&self) -> bool {
        self.0.has_flight()
    }

    pub(crate) fn get_mut(&mut self) -> &mut Queue<'a> {
        &mut self.0
    }
}
