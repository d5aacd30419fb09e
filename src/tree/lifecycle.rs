//! Whether a stack accepts handlers, and why it drains: plain values, read off the tables in [`tree`](super).

/// The number of registrations accepted during a bounded drain: by each stack, and from each thread that is in one.
const LATE_LIMIT: usize = 65_536;

/// The registrations accepted so far during a bounded drain: by one stack, or from one thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LateBudget {
    spent: usize,
}

impl LateBudget {
    pub(super) const fn new() -> Self {
        Self { spent: 0 }
    }

    pub(super) fn is_spent(self) -> bool {
        self.spent == LATE_LIMIT
    }

    pub(super) fn spend(&mut self) {
        self.spent += 1;
    }
}

/// What a stack does with registrations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lifecycle {
    /// They are accepted.
    Open,
    /// As many as the budget allows are accepted; then the stack is open again.
    Reopening(LateBudget),
    /// As many as the budget allows are accepted; then the stack is closed.
    Closing(LateBudget),
    /// They are refused.
    Closed,
}

impl Lifecycle {
    /// Notes that the stack is asked to drain.
    #[inline]
    pub(super) fn begin(&mut self, purpose: Purpose) {
        *self = match *self {
            // The first drain for such a purpose is the stack's last.
            Self::Open if purpose.closes() => Self::Closing(LateBudget::new()),
            // At the end of `run`, and before `exit`, the stack opens again.
            Self::Open if purpose.is_bounded() => Self::Reopening(LateBudget::new()),
            // The process ends while `run` is ending: what was accepted so far counts.
            Self::Reopening(budget) if purpose.closes() => Self::Closing(budget),
            // A bounded drain stays bounded, even if an unbounded one is asked for, and a closed stack never opens
            // again.
            unchanged => unchanged,
        }
    }

    /// Notes that the stack's lists are empty.
    #[inline]
    pub(super) fn drained(&mut self) {
        *self = match *self {
            // A drain that closes nothing leaves the stack open.
            Self::Open | Self::Reopening(_) => Self::Open,
            // From now on registrations are refused.
            Self::Closing(_) | Self::Closed => Self::Closed,
        }
    }

    /// Returns the budget that limits registrations, if there is one.
    pub(super) fn budget(&mut self) -> Option<&mut LateBudget> {
        match self {
            Self::Reopening(budget) | Self::Closing(budget) => Some(budget),
            Self::Open | Self::Closed => None,
        }
    }
}

/// Why a stack drains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// `close()`, or `close_with()`.
    Close,
    /// A stack that is a value is dropped.
    Drop,
    /// `finalize()`, or a drain around it whose caller gets the failures.
    Finalize,
    /// The last handle to an interpreter is dropped, or a stack around it drains with no caller to return failures to.
    FinalizeUnattended,
    /// The body of `run` has returned.
    EndOfRun,
    /// `exit` was called, and C's `exit` follows.
    BeforeExit,
    /// The process ends.
    Exit,
}

impl Purpose {
    /// Returns whether registrations are limited while the stack drains.
    pub(super) fn is_bounded(self) -> bool {
        !matches!(self, Self::Close | Self::Drop)
    }

    /// Returns whether the stack refuses registrations afterwards.
    pub(super) fn closes(self) -> bool {
        matches!(self, Self::Finalize | Self::FinalizeUnattended | Self::Exit)
    }

    /// Returns whether failures go to the report hook, as there is no caller to return them to.
    pub(super) fn reports(self) -> bool {
        !matches!(self, Self::Close | Self::Finalize)
    }

    /// Returns the same purpose where there is no caller to return failures to.
    pub(super) fn unattended(self) -> Self {
        match self {
            Self::Close => Self::Drop,
            Self::Finalize => Self::FinalizeUnattended,
            other => other,
        }
    }

    /// Returns whether this thread ends the process: it never returns to the handlers it was in, and waits for those
    /// that other threads are in.
    pub(super) fn exits(self) -> bool {
        matches!(self, Self::BeforeExit | Self::Exit)
    }

    /// Returns the purpose for which the interpreters nested in the stack drain with it.
    pub(super) fn for_children(self) -> Self {
        match self {
            Self::Close | Self::Finalize => Self::Finalize,
            Self::Drop | Self::FinalizeUnattended | Self::EndOfRun => Self::FinalizeUnattended,
            Self::BeforeExit | Self::Exit => Self::Exit,
        }
    }
}

#[cfg(all(test, not(all(loom, feature = "loom"))))]
mod tests {
    use super::*;

    const ALL: [Purpose; 7] = [
        Purpose::Close,
        Purpose::Drop,
        Purpose::Finalize,
        Purpose::FinalizeUnattended,
        Purpose::EndOfRun,
        Purpose::BeforeExit,
        Purpose::Exit,
    ];

    fn after(start: Lifecycle, purpose: Purpose) -> Lifecycle {
        let mut lifecycle = start;
        lifecycle.begin(purpose);
        lifecycle.drained();
        lifecycle
    }

    /// A drain for another purpose leaves the stack open.
    #[test]
    fn a_drain_closes_what_its_purpose_says() {
        for purpose in ALL {
            let expected = if purpose.closes() { Lifecycle::Closed } else { Lifecycle::Open };
            assert_eq!(after(Lifecycle::Open, purpose), expected, "{purpose:?}");
            assert_eq!(after(Lifecycle::Closed, purpose), Lifecycle::Closed, "{purpose:?}");
        }
    }

    #[test]
    fn a_budget_is_kept_if_another_drain_is_wanted() {
        let budget = LateBudget { spent: 7 };
        for purpose in ALL {
            let mut closing = Lifecycle::Closing(budget);
            closing.begin(purpose);
            assert_eq!(closing, Lifecycle::Closing(budget), "{purpose:?}");
            let mut reopening = Lifecycle::Reopening(budget);
            reopening.begin(purpose);
            assert_eq!(reopening.budget(), Some(&mut LateBudget { spent: 7 }), "{purpose:?}");
            assert_eq!(after(Lifecycle::Reopening(budget), purpose) == Lifecycle::Closed, purpose.closes());
        }
    }

    #[test]
    fn children_are_always_closed() {
        for purpose in ALL {
            let children = purpose.for_children();
            assert!(children.closes() && children.is_bounded(), "{purpose:?}");
            assert_eq!(children.reports(), purpose.reports(), "{purpose:?}");
            assert_eq!(children.exits(), purpose.exits(), "{purpose:?}");
        }
    }

    #[test]
    fn an_unattended_drain_reports() {
        for purpose in ALL {
            let unattended = purpose.unattended();
            assert!(unattended.reports(), "{purpose:?}");
            assert_eq!(unattended.exits(), purpose.exits(), "{purpose:?}");
            assert_eq!(unattended.closes(), purpose.closes(), "{purpose:?}");
        }
    }
}
