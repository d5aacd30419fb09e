//! How much time a drain has, and what happens when it is over.

use std::time::{Duration, Instant};

/// How much time the handlers of a drain have, and what happens when it is over.
///
/// By default, nothing is limited.
///
/// ```
/// use exitstack::shutdown::{Expiry, Limits};
/// use std::time::Duration;
///
/// const LIMITS: Limits = Limits::new()
///     .within(Duration::from_secs(10))
///     .each(Duration::from_secs(3))
///     .reserve(Duration::from_secs(2))
///     .warn_after(Duration::from_secs(1))
///     .on_expiry(Expiry::Skip)
///     .status(1);
/// # let _ = LIMITS;
/// ```
#[derive(Clone, Copy, Debug)]
#[must_use = "limits do nothing unless they are set"]
pub struct Limits {
    pub(super) total: Option<Duration>,
    pub(super) each: Option<Duration>,
    pub(super) reserve: Duration,
    pub(super) warn_after: Option<Duration>,
    pub(super) expiry: Expiry,
    pub(super) status: i32,
}

/// What happens when a handler's time is over.
///
/// ```
/// use exitstack::shutdown::{Expiry, Limits};
/// use std::time::Duration;
///
/// /// Says which handler is slow, and waits for it all the same.
/// const PATIENT: Limits = Limits::new().warn_after(Duration::from_secs(1)).on_expiry(Expiry::Wait);
/// # let _ = PATIENT;
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Expiry {
    /// The drain waits for the handler, which is only reported, if [`Limits::warn_after`] is set.
    Wait,
    /// The handler is given up, and another thread goes on with the handlers below.
    Skip,
    /// No further handler runs, and each one that has not run is reported. If the process was ending, it ends at once.
    Leave,
}

impl Limits {
    /// Creates limits that limit nothing.
    ///
    /// ```
    /// use exitstack::Interpreter;
    /// use exitstack::shutdown::Limits;
    ///
    /// let closed = Interpreter::new("plugin-a").finalize_within(&Limits::new()); // however long it takes
    /// assert!(closed.is_over());
    /// ```
    pub const fn new() -> Self {
        Self { total: None, each: None, reserve: Duration::ZERO, warn_after: None, expiry: Expiry::Skip, status: 1 }
    }

    /// Sets how much time all handlers have together.
    ///
    /// A handler for which no time is left is neither run nor dropped.
    ///
    /// ```
    /// use exitstack::Interpreter;
    /// use exitstack::shutdown::Limits;
    /// use std::time::Duration;
    ///
    /// let plugin = Interpreter::new("plugin-a");
    /// plugin.stack().register(std::thread::park);
    /// let closed = plugin.finalize_within(&Limits::new().within(Duration::from_millis(10)));
    /// assert!(closed.result().is_err() && !closed.is_over());
    /// ```
    pub const fn within(self, total: Duration) -> Self {
        Self { total: Some(total), ..self }
    }

    /// Sets how much time each handler has.
    ///
    /// ```
    /// use exitstack::Interpreter;
    /// use exitstack::shutdown::{Fate, Limits};
    /// use std::time::Duration;
    ///
    /// let plugin = Interpreter::new("plugin-a");
    /// plugin.stack().register(std::thread::park);
    /// let closed = plugin.finalize_within(&Limits::new().each(Duration::from_millis(10)));
    /// assert!(matches!(closed.records()[0].fate(), Fate::GivenUp));
    /// ```
    pub const fn each(self, limit: Duration) -> Self {
        Self { each: Some(limit), ..self }
    }

    /// Sets how much of the total is kept for the handlers below one that does not return.
    ///
    /// A handler that began earlier is given up when only this much time is left, which those below it share evenly.
    ///
    /// ```
    /// use exitstack::shutdown::Limits;
    /// use std::time::Duration;
    ///
    /// // One handler that hangs is given up after eight seconds. The others share the last two.
    /// const LIMITS: Limits = Limits::new().within(Duration::from_secs(10)).reserve(Duration::from_secs(2));
    /// # let _ = LIMITS;
    /// ```
    pub const fn reserve(self, kept: Duration) -> Self {
        Self { reserve: kept, ..self }
    }

    /// Sets how long a handler may run before it is reported, once, as still running.
    ///
    /// ```
    /// use exitstack::shutdown::{Limits, set_limits};
    /// use std::time::Duration;
    ///
    /// set_limits(Limits::new().warn_after(Duration::from_secs(1)))?; // nothing is given up
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub const fn warn_after(self, running: Duration) -> Self {
        Self { warn_after: Some(running), ..self }
    }

    /// Sets what happens when a handler's time is over. The default is [`Expiry::Skip`].
    ///
    /// ```
    /// use exitstack::shutdown::{Expiry, Limits};
    /// use std::time::Duration;
    ///
    /// const LIMITS: Limits = Limits::new().within(Duration::from_secs(10)).on_expiry(Expiry::Leave);
    /// # let _ = LIMITS;
    /// ```
    pub const fn on_expiry(self, expiry: Expiry) -> Self {
        Self { expiry, ..self }
    }

    /// Sets the exit status of a process that has given up a handler. The default is 1.
    ///
    /// ```
    /// use exitstack::shutdown::Limits;
    /// use std::time::Duration;
    ///
    /// const LIMITS: Limits = Limits::new().within(Duration::from_secs(10)).status(124); // as timeout(1) does
    /// # let _ = LIMITS;
    /// ```
    pub const fn status(self, code: i32) -> Self {
        Self { status: code, ..self }
    }

    /// Returns when to give up a handler that the drain has been waiting for since `since`.
    ///
    /// `own` is the handler's own limit; the drain's time is over at `ends`; `waiting` handlers are below.
    pub(super) fn due(
        &self,
        own: Option<Duration>,
        since: Instant,
        ends: Option<Instant>,
        waiting: usize,
    ) -> Option<Instant> {
        let by_total = ends.map(|ends| {
            // `None` if more is reserved than there is.
            let reserved = ends.checked_sub(self.reserve);
            if let Some(reserved) = reserved.filter(|reserved| since < *reserved || self.reserve.is_zero()) {
                return reserved;
            }
            let share = u32::try_from(waiting).unwrap_or(u32::MAX).saturating_add(1);
            since + ends.saturating_duration_since(since) / share
        });
        let by_own = [own, self.each].into_iter().flatten().min().and_then(|limit| since.checked_add(limit));
        [by_total, by_own].into_iter().flatten().min()
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(all(test, not(all(loom, feature = "loom"))))]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_first_limit_to_expire_counts() {
        let now = Instant::now();
        let limits = Limits::new().within(10 * SECOND).each(3 * SECOND);
        let ends = Some(now + 10 * SECOND);
        assert_eq!(Limits::new().due(None, now, None, 0), None);
        assert_eq!(limits.due(None, now, ends, 5), Some(now + 3 * SECOND));
        assert_eq!(limits.due(Some(2 * SECOND), now, ends, 5), Some(now + 2 * SECOND));
        assert_eq!(limits.due(Some(4 * SECOND), now, ends, 5), Some(now + 3 * SECOND));
        assert_eq!(limits.due(None, now + 8 * SECOND, ends, 5), Some(now + 10 * SECOND));
    }

    #[test]
    fn what_is_reserved_is_shared_evenly() {
        let now = Instant::now();
        let limits = Limits::new().within(10 * SECOND).reserve(4 * SECOND);
        let ends = Some(now + 10 * SECOND);
        assert_eq!(limits.due(None, now, ends, 3), Some(now + 6 * SECOND));
        assert_eq!(limits.due(None, now + 6 * SECOND, ends, 3), Some(now + 7 * SECOND));
        assert_eq!(limits.due(None, now + 7 * SECOND, ends, 2), Some(now + 8 * SECOND));
        assert_eq!(limits.due(None, now + 11 * SECOND, ends, 2), Some(now + 11 * SECOND));
        assert_eq!(limits.reserve(Duration::MAX).due(None, now, ends, 4), Some(now + 2 * SECOND));
    }
}
