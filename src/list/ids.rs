//! The ids of registrations. Where they come from is in `list/ids/with_std.rs` and `list/ids/without_std.rs`, which define
//! the same methods; the former has one more, for forks.

use core::fmt;

use super::HandlerList;

#[cfg_attr(feature = "std", path = "ids/with_std.rs")]
#[cfg_attr(not(feature = "std"), path = "ids/without_std.rs")]
mod source;

#[cfg(all(test, feature = "std", not(all(loom, feature = "loom"))))]
pub(super) use source::{BLOCK, SHARE};

/// The id of a registration in a list: unique in the process, never reused, and unknown to every other list.
///
/// ```
/// use exitstack::ExitStack;
///
/// let mut stack = ExitStack::new();
/// let id = stack.register(|| println!("not run"));
/// assert!(stack.unregister(id));
/// assert!(!stack.unregister(id)); // already removed
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HandlerId(pub(super) u64);

impl fmt::Debug for HandlerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HandlerId({})", self.0)
    }
}

impl HandlerId {
    /// Returns an id that no list has or will have.
    pub(crate) fn unknown() -> Self {
        HandlerList::<()>::new().next_id()
    }
}

impl<T> HandlerList<T> {
    /// Returns the id that a value pushed now would have; no other value gets it.
    #[inline]
    pub(crate) fn next_id(&mut self) -> HandlerId {
        if self.next == self.end {
            self.more_ids();
        }
        let id = HandlerId(self.next);
        self.next += 1;
        id
    }
}
