//! Whether a stack takes handlers, and why it drains: plain values, read off the tables of [`tree`](super).

/// How many registrations a stack, and the thread that drains it, take once it drains for the last time.
const LATE_LIMIT: usize = 65_536;

/// How many registrations were taken in a bounded drain: by a stack, or by a thread.
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

/// What becomes of registrations with a stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lifecycle {
    /// They are taken.
    Open,
    /// As many as the budget has are taken; then the stack is open again.
    Reopening(LateBudget),
    /// As many as the budget has are taken; then none is.
    Closing(LateBudget),
    /// They are refused.
    Closed,
}

impl Lifecycle {
    /// The stack is asked to drain.
    #[inline]
    pub(super) fn begin(&mut self, purpose: Purpose) {
        *self = match *self {
            Self::Open if purpose.closes() => Self::Closing(LateBudget::new()),
            Self::Open if purpose.is_bounded() => Self::Reopening(LateBudget::new()),
            // The end of the process comes while `run` ends: what was taken so far counts.
            Self::Reopening(budget) if purpose.closes() => Self::Closing(budget),
            // A bounded drain stays bounded, even if an unbounded one is asked for; and nothing opens a closed stack.
            unchanged => unchanged,
        }
    }

    /// The stack's lists are empty.
    #[inline]
    pub(super) fn drained(&mut self) {
        *self = match *self {
            Self::Open | Self::Reopening(_) => Self::Open,
            Self::Closing(_) | Self::Closed => Self::Closed,
        }
    }

    /// What limits registrations, if anything does.
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
    /// `finalize()`, or the end of an interpreter around it.
    Finalize,
    /// The last handle to an interpreter is dropped, or a stack around it drains with nobody to be told.
    FinalizeUnattended,
    /// The body of `run` has returned.
    EndOfRun,
    /// `exit` was called; C's `exit` is still to come.
    BeforeExit,
    /// The process ends.
    Exit,
}

impl Purpose {
    /// Whether registrations are limited while the stack drains.
    pub(super) fn is_bounded(self) -> bool {
        !matches!(self, Self::Close | Self::Drop)
    }

    /// Whether the stack refuses registrations afterwards.
    pub(super) fn closes(self) -> bool {
        matches!(self, Self::Finalize | Self::FinalizeUnattended | Self::Exit)
    }

    /// Whether failures go to the report hook, for nobody is returned to.
    pub(super) fn reports(self) -> bool {
        !matches!(self, Self::Close | Self::Finalize)
    }

    /// Whether this thread ends the process: it never comes back to what it was in, and waits for what others are in.
    pub(super) fn exits(self) -> bool {
        matches!(self, Self::BeforeExit | Self::Exit)
    }

    /// Why the interpreters in the stack drain with it.
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
}
