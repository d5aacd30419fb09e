//! The errors of `try_scope`: the work's, its cleanup's, or both.

use alloc::boxed::Box;
use core::error::Error;
use core::fmt::{self, Display, Write};

use super::{Causes, CloseError};
use crate::raw::BoxError;

/// What failed in a [`try_scope`](crate::try_scope): the work, its cleanup, or both.
///
/// However it is printed, each failure is shown once. `Work` and `Cleanup` are transparent: `Display` and
/// [`source`](Error::source) are those of the error inside. `Both` shows both errors on one line, each with its whole chain of
/// causes, and has no source.
///
/// It is an [`Error`] if `E` is one. If `E` only converts into a boxed error, as `String`, `anyhow::Error` and `Box<dyn
/// Error + Send + Sync>` do, [`erased`](Self::erased) turns it into an error.
///
/// ```
/// use exitstack::{ScopeError, try_scope};
///
/// let error = try_scope(|stack| {
///     stack.register(|| Err("disk full"));
///     Err::<(), _>("no such user")
/// })
/// .unwrap_err();
/// match error {
///     ScopeError::Both(work, cleanup) => {
///         assert_eq!(work, "no such user");
///         assert!(format!("{cleanup:#}").ends_with(" failed: disk full"));
///     }
///     ScopeError::Work(_) | ScopeError::Cleanup(_) => unreachable!(),
/// }
/// ```
#[derive(Clone, Debug)]
pub enum ScopeError<E> {
    /// The body returned this error, and no handler failed.
    Work(E),
    /// The body returned `Ok`, and handlers failed or requested an exit status.
    Cleanup(CloseError),
    /// The body returned this error, and handlers failed or requested an exit status.
    Both(E, CloseError),
}

impl<E> ScopeError<E> {
    /// Returns the error of the body; or that of the cleanup, if the body returned `Ok`.
    ///
    /// If both failed, the error of the cleanup is dropped.
    ///
    /// # Errors
    ///
    /// Returns the error of the cleanup if the body returned `Ok`.
    ///
    /// ```
    /// let error = exitstack::try_scope(|_| Err::<(), _>("no such user")).unwrap_err();
    /// assert_eq!(error.into_work().unwrap(), "no such user");
    /// ```
    pub fn into_work(self) -> Result<E, CloseError> {
        match self {
            Self::Work(work) | Self::Both(work, _) => Ok(work),
            Self::Cleanup(cleanup) => Err(cleanup),
        }
    }

    /// Returns the error of the cleanup, if it failed.
    ///
    /// ```
    /// let error = exitstack::try_scope(|_| Err::<(), _>("no such user")).unwrap_err();
    /// assert!(error.cleanup().is_none());
    /// ```
    pub fn cleanup(&self) -> Option<&CloseError> {
        match self {
            Self::Work(_) => None,
            Self::Cleanup(cleanup) | Self::Both(_, cleanup) => Some(cleanup),
        }
    }

    /// Converts it into an error of a single type, which `?` converts into `anyhow::Error` and `Box<dyn Error + Send +
    /// Sync>`.
    ///
    /// ```
    /// use std::error::Error;
    ///
    /// fn work() -> Result<(), Box<dyn Error + Send + Sync>> {
    ///     exitstack::try_scope(|stack| {
    ///         stack.register(|| println!("cleaned up"));
    ///         Err::<(), _>(String::from("no such user"))
    ///     })
    ///     .map_err(|error| error.erased())?;
    ///     Ok(())
    /// }
    /// assert_eq!(work().unwrap_err().to_string(), "no such user");
    /// ```
    pub fn erased(self) -> ScopeFailure
    where
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        ScopeFailure(match self {
            Self::Work(work) => ScopeError::Work(Erased(work.into())),
            Self::Cleanup(cleanup) => ScopeError::Cleanup(cleanup),
            Self::Both(work, cleanup) => ScopeError::Both(Erased(work.into()), cleanup),
        })
    }
}

impl<E: Error + 'static> Display for ScopeError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Work(work) => Display::fmt(work, f),
            Self::Cleanup(cleanup) => Display::fmt(cleanup, f),
            Self::Both(work, cleanup) => {
                Causes { error: work, show: |link, line| write!(line, "{link}") }.fmt(f)?;
                write!(f, "; then its cleanup failed: {cleanup:#}")
            }
        }
    }
}

impl<E: Error + 'static> Error for ScopeError<E> {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Work(work) => work.source(),
            Self::Cleanup(cleanup) => cleanup.source(),
            Self::Both(..) => None,
        }
    }
}

/// A [`ScopeError`] whose `E` is forgotten, returned by [`ScopeError::erased`].
///
/// It is displayed like the `ScopeError`.
///
/// ```
/// let failure = exitstack::try_scope(|_| Err::<(), _>("no such user")).unwrap_err().erased();
/// assert_eq!(failure.work().unwrap().to_string(), "no such user");
/// assert!(failure.cleanup().is_none());
/// ```
#[derive(Debug)]
pub struct ScopeFailure(ScopeError<Erased>);

impl ScopeFailure {
    /// Returns the error of the body, if it returned one.
    ///
    /// ```
    /// let failure = exitstack::try_scope(|_| Err::<(), _>("no such user")).unwrap_err().erased();
    /// assert_eq!(failure.work().unwrap().to_string(), "no such user");
    /// ```
    pub fn work(&self) -> Option<&(dyn Error + Send + Sync + 'static)> {
        match &self.0 {
            ScopeError::Work(Erased(work)) | ScopeError::Both(Erased(work), _) => Some(&**work),
            ScopeError::Cleanup(_) => None,
        }
    }

    /// Returns the error of the cleanup, if it failed.
    ///
    /// ```
    /// let failed = exitstack::try_scope(|stack| {
    ///     stack.register(|| Err("disk full"));
    ///     Ok::<_, &str>(())
    /// });
    /// assert_eq!(failed.unwrap_err().erased().cleanup().unwrap().errors().len(), 1);
    /// ```
    pub fn cleanup(&self) -> Option<&CloseError> {
        self.0.cleanup()
    }
}

impl Display for ScopeFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Error for ScopeFailure {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source()
    }
}

/// A boxed error, as an error: a `Box<dyn Error>` does not implement `Error` itself.
struct Erased(BoxError);

impl Display for Erased {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for Erased {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl Error for Erased {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source()
    }
}
