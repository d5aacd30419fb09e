//! The failures and exit requests of a drain, until it is over.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::mem;
use core::sync::atomic::{AtomicUsize, Ordering};

use super::{CloseError, Details, Errors, HandlerError};
use crate::chain::{Chain, Link};

/// A point in the order of events in this process; later ones are greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Moment(usize);

impl Moment {
    pub(super) fn now() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// The failures and exit requests of a drain so far: a single word, which allocates only when something fails.
#[derive(Default)]
pub(crate) struct Failures(Option<Box<Collected>>);

/// Failures in any order, possibly with duplicates, as several drains may have the same one; and the exit status
/// requested.
struct Collected {
    errors: Chain<HandlerError>,
    exit: Option<ExitRequest>,
}

/// A requested exit status. Of several, the last one requested counts, in whatever order they are merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ExitRequest {
    at: Moment,
    pub(crate) code: i32,
}

impl ExitRequest {
    pub(crate) fn now(code: i32) -> Self {
        Self { at: Moment::now(), code }
    }
}

impl Failures {
    #[cfg(feature = "async")]
    pub(crate) const fn none() -> Self {
        Self(None)
    }

    #[cfg(feature = "async")]
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    pub(crate) fn failure(error: HandlerError) -> Self {
        let mut errors = Chain::new();
        errors.push(Link::new(error));
        Self(Some(Box::new(Collected { errors, exit: None })))
    }

    pub(crate) fn exit(request: ExitRequest) -> Self {
        Self(Some(Box::new(Collected { errors: Chain::new(), exit: Some(request) })))
    }

    pub(crate) fn exit_request(&self) -> Option<ExitRequest> {
        self.0.as_ref().and_then(|collected| collected.exit)
    }

    pub(crate) fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |collected| collected.errors.len())
    }

    /// Copies the failures so far, into memory that the caller has reserved.
    pub(crate) fn copy_to(&self, errors: &mut Errors) {
        errors.extend(self.0.iter().flat_map(|collected| collected.errors.iter()).cloned());
    }

    /// Adds the failures of another drain. The caller drops what is returned where no lock is held.
    #[must_use]
    pub(crate) fn merge(&mut self, other: Self) -> Self {
        match (&mut self.0, other.0) {
            (Some(own), Some(mut other)) => {
                own.errors.append(mem::take(&mut other.errors));
                own.exit = own.exit.max(other.exit);
                Self(Some(other))
            }
            (own @ None, other) => {
                *own = other;
                Self(None)
            }
            (_, None) => Self(None),
        }
    }

    /// Returns what `close()` returns: the failures in the order in which they happened, each once.
    #[inline]
    pub(crate) fn into_result(self) -> Result<(), CloseError> {
        self.0.map_or(Ok(()), |collected| Err(collected.into_error()))
    }
}

impl From<&CloseError> for Failures {
    /// Returns the failures and the exit status of a drain that is over, to be merged with others.
    fn from(error: &CloseError) -> Self {
        let mut errors = Chain::new();
        for failure in error {
            errors.push(Link::new(failure.clone()));
        }
        Self(Some(Box::new(Collected { errors, exit: error.0.exit })))
    }
}

impl Collected {
    #[cold]
    #[inline(never)]
    fn into_error(self) -> CloseError {
        let errors = in_order(self.errors.collect());
        CloseError(Arc::new(Details { errors, exit: self.exit }))
    }
}

/// Returns failures in the order in which they happened, each once.
pub(crate) fn in_order(mut errors: Errors) -> Errors {
    errors.sort_by_key(|error| error.0.at);
    errors.dedup_by_key(|error| error.0.at);
    errors
}

/// Combines the results of two drains.
#[inline]
pub(crate) fn merged(first: Result<(), CloseError>, then: Result<(), CloseError>) -> Result<(), CloseError> {
    match (first, then) {
        (Ok(()), result) | (result, Ok(())) => result,
        (Err(first), Err(then)) => Err(first.join(&then)),
    }
}

/// Returns the exit status that a result requests.
pub(crate) fn request_of(result: Result<(), CloseError>) -> Option<ExitRequest> {
    result.err()?.exit_request()
}
