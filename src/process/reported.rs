//! What the body of [`run`](super::run) returned: the outcome of its work, and its exit status.

use std::any::type_name;
use std::mem::discriminant;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{ExitCode, Termination};

use crate::error::{Exit, Outcome};
use crate::panics::discard;

/// The value of a body. A value whose report may print something is reported after the handlers have run.
pub(super) enum Reported<T> {
    /// The report prints nothing, so it has been made.
    Status(ExitCode),
    /// An `Err`.
    Failed(T),
    /// A value of any other type, whose report may print something.
    Unknown(T),
}

impl<T: Termination> Reported<T> {
    pub(super) fn new(value: T) -> Self {
        if is_err(&value) {
            Self::Failed(value)
        } else if is_silent::<T>() {
            Self::Status(value.report())
        } else {
            Self::Unknown(value)
        }
    }

    /// Returns the outcome of the work. If that is unknown, nothing says that it failed.
    pub(super) fn outcome(&self) -> Outcome {
        match self {
            Self::Status(status) if *status != ExitCode::SUCCESS => Outcome::Failure,
            Self::Status(_) | Self::Unknown(_) => Outcome::Success,
            Self::Failed(_) => Outcome::Failure,
        }
    }

    /// Prints what there is to print, and returns the exit status, or an error if the report panics.
    pub(super) fn status(self) -> Result<ExitCode, ()> {
        match self {
            Self::Status(status) => Ok(status),
            Self::Failed(value) | Self::Unknown(value) => {
                catch_unwind(AssertUnwindSafe(|| value.report())).map_err(discard)
            }
        }
    }
}

// A `Termination` can only be consumed. Before that, only the name of its type and its discriminant, which is the same
// for every `Err`, tell what it is. std does not promise the names; the tests below notice if they change.

const RESULT: &str = "core::result::Result<";

fn is_err<T>(value: &T) -> bool {
    let err: Result<(), ()> = Err(());
    type_name::<T>().starts_with(RESULT) && format!("{:?}", discriminant(value)) == format!("{:?}", discriminant(&err))
}

/// Returns whether the report of a value of this type prints nothing, unless it is an `Err`.
fn is_silent<T>() -> bool {
    let name = type_name::<T>();
    let name = name.strip_prefix(RESULT).unwrap_or(name); // once: an `Ok` may hold an `Err`, which prints
    [type_name::<()>(), type_name::<ExitCode>(), type_name::<Exit>()].iter().any(|silent| name.starts_with(silent))
}

#[cfg(all(test, not(all(loom, feature = "loom"))))]
mod tests {
    use std::convert::Infallible;
    use std::io;

    use super::*;

    struct Other;

    impl Termination for Other {
        fn report(self) -> ExitCode {
            ExitCode::FAILURE
        }
    }

    fn outcome_of(value: impl Termination) -> Outcome {
        Reported::new(value).outcome()
    }

    #[test]
    fn what_is_known_to_be_bad_has_failed() {
        assert_eq!(outcome_of(Err::<(), _>("bad")), Outcome::Failure);
        assert_eq!(outcome_of(Err::<Infallible, _>(io::Error::other("bad"))), Outcome::Failure);
        assert_eq!(outcome_of(Err::<Other, _>(3)), Outcome::Failure);
        assert_eq!(outcome_of(ExitCode::from(3)), Outcome::Failure);
        assert_eq!(outcome_of(Ok::<_, io::Error>(ExitCode::FAILURE)), Outcome::Failure);
        assert_eq!(outcome_of(Exit(3)), Outcome::Failure);
        assert_eq!(outcome_of(Ok::<_, ()>(Exit(3))), Outcome::Failure);
    }

    #[test]
    fn what_is_good_or_unknown_has_not_failed() {
        assert_eq!(outcome_of(()), Outcome::Success);
        assert_eq!(outcome_of(Ok::<(), io::Error>(())), Outcome::Success);
        assert_eq!(outcome_of(ExitCode::SUCCESS), Outcome::Success);
        assert_eq!(outcome_of(Ok::<_, String>(Exit(0))), Outcome::Success);
        assert_eq!(outcome_of(Other), Outcome::Success);
        assert_eq!(outcome_of(Ok::<_, ()>(Err::<(), _>("unknown"))), Outcome::Success);
        assert_eq!(outcome_of(Ok::<_, ()>(Other)), Outcome::Success);
    }

    #[test]
    fn a_type_that_may_print_is_reported_later() {
        assert!(matches!(Reported::new(Other), Reported::Unknown(_)));
        assert!(matches!(Reported::new(Ok::<_, ()>(Other)), Reported::Unknown(_)));
        assert!(matches!(Reported::new(Ok::<_, ()>(Err::<(), _>("bad"))), Reported::Unknown(_)));
        assert!(matches!(Reported::new(Err::<(), _>("bad")), Reported::Failed(_)));
        assert!(matches!(Reported::new(Ok::<(), &str>(())), Reported::Status(_)));
    }
}
