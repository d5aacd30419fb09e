//! Outcomes and errors: how the work ended, and what failed in its cleanup.

use alloc::borrow::Cow;
use alloc::string::String;
use alloc::sync::Arc;
use core::error::Error;
use core::fmt::{self, Display, Write};
use core::mem;
use core::ops::Deref;
use core::panic::Location;
use core::slice;
use core::sync::atomic::{AtomicBool, Ordering};
use core::time::Duration;

use smallvec::SmallVec;

use crate::panics::discard;

mod failures;
#[cfg(feature = "std")]
mod refused;
mod scope;
#[cfg(feature = "std")]
mod status;
mod text;

#[cfg(feature = "std")]
pub(crate) use failures::request_of;
pub(crate) use failures::{ExitRequest, Failures, in_order, merged};
#[cfg(feature = "std")]
pub use refused::Refused;
pub use scope::{ScopeError, ScopeFailure};
pub(crate) use text::{Causes, OneLine};

use failures::Moment;

/// The outcome of the work that a stack cleans up after.
///
/// **A stack that is dropped without `close()` counts as failed**, whatever led to the drop. The outcome decides
/// whether [`on_success`](crate::ExitStack::on_success) or [`on_failure`](crate::ExitStack::on_failure) handlers run;
/// all others run for both.
///
/// ```
/// use exitstack::{ExitStack, Outcome};
///
/// let mut stack = ExitStack::new();
/// stack.on_failure(|| println!("rolled back"));
/// stack.close_with(Outcome::Success)?; // the handler is dropped, not run
/// # Ok::<(), exitstack::CloseError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The work was done: [`close()`](crate::ExitStack::close) or
    /// [`close_with(Success)`](crate::ExitStack::close_with) was reached, or the body of a [`scope`](crate::scope)
    /// returned `Ok`.
    Success,
    /// The work ended in any other way: with an error, with a panic, or with a stack that was never closed.
    Failure,
}

/// A request to exit with a status: an error that is not a failure.
///
/// A handler that returns `Err(Exit(code))` has not failed, and nothing is reported. `close()` returns a [`CloseError`]
/// whose [`exit_code`](CloseError::exit_code) is the last status requested. When the process exits, the last status
/// requested becomes the exit status, of which Unix keeps the low byte.
///
/// The request is ignored if a stack is dropped, as there is no caller to return it to; in a [`scope`](crate::scope)
/// whose body failed; and when a shared library is unloaded, which is not an exit. Only a bare or a boxed `Exit` counts,
/// not one that is the `source` of another error or inside an `anyhow::Error`.
///
/// Python's `atexit` has no equivalent: a `SystemExit` raised in a handler is printed and changes nothing.
///
/// ```
/// use exitstack::{Exit, ExitStack};
///
/// let mut stack = ExitStack::new();
/// stack.register(|| Err(Exit(3)));
/// let asked = stack.close().unwrap_err();
/// assert_eq!(asked.exit_code(), Some(3));
/// assert!(asked.errors().is_empty());
/// ```
#[cfg_attr(feature = "std", doc = include_str!("error/status.md"))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[error("exit with status {0}")]
pub struct Exit(
    /// The exit status.
    pub i32,
);

/// The kind of a [`HandlerError`]: what happened to the handler.
///
/// ```
/// use exitstack::{ExitStack, HandlerErrorKind};
///
/// let mut stack = ExitStack::new();
/// stack.register(|| Err("disk full"));
/// match stack.close().unwrap_err().errors()[0].kind() {
///     HandlerErrorKind::Failed(cause) => assert_eq!(cause.to_string(), "disk full"),
///     other => panic!("{other:?}"),
/// }
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum HandlerErrorKind {
    /// The handler returned this error.
    Failed(Arc<dyn Error + Send + Sync>),
    /// The handler, or the drop of something it captured, panicked with this message. Without std, where the message cannot be
    /// known, it says that the panic goes on.
    Panicked(String),
    /// The stack no longer accepted handlers, so this one was dropped without being run; or, if it was a transaction, it was
    /// not begun.
    Refused,
    /// The handler was still running after this time, and the drain went on without it: see [`shutdown`](crate::shutdown).
    TimedOut(Duration),
    /// The handler was not run. Either no time was left for it, and it was not dropped either (see
    /// [`shutdown`](crate::shutdown)), or it is async, and its stack was dropped without `close().await`.
    NotRun,
    /// The handler is async, and its future was dropped before it finished: by `cancel_in_flight`, or because the stack was
    /// dropped.
    Cancelled,
    /// A transaction was rolled back although its body returned `Ok`: it had been drained before its work was done.
    ///
    /// Only [`Interpreter::scope`](crate::Interpreter::scope) returns this. The name is the transaction's, and the location is
    /// where it was begun.
    RolledBack,
}

/// The failure of one handler: which handler it was, where it was registered, and what happened.
///
/// It is cheap to clone. `Display` shows the path of the interpreter if there is one, the handler's name if it has one,
/// where it was registered, and that it failed. Why it failed is the [`source`](Error::source): the handler's own
/// error, whose text `Display` does not repeat. The alternate form, `{:#}`, shows both on one line, with the whole
/// chain of causes (at most 128):
///
/// ```text
/// process > plugin-a > db: exit handler `flush` registered at src/db.rs:10:5 failed
/// process > plugin-a > db: exit handler `flush` registered at src/db.rs:10:5 failed: disk full
/// ```
///
/// A panic has no source; its message is part of the text, `... panicked: message`. Control characters are always
/// escaped in names and paths, and in the alternate form everywhere.
///
/// ```
/// use exitstack::{ExitStack, Handler};
/// use std::error::Error;
///
/// let mut stack = ExitStack::new();
/// stack.register(Handler::new(|| Err("disk full")).named("flush"));
/// let error = stack.close().unwrap_err();
/// let error = &error.errors()[0];
/// assert_eq!(error.name(), Some("flush"));
/// assert!(error.location().file().ends_with(".rs"));
/// assert!(error.to_string().ends_with(" failed"));
/// assert_eq!(error.source().unwrap().to_string(), "disk full");
/// assert!(format!("{error:#}").ends_with(" failed: disk full"));
/// ```
#[derive(Clone)]
pub struct HandlerError(Arc<Facts>);

struct Facts {
    at: Moment,
    path: Option<String>,
    site: Site,
    kind: HandlerErrorKind,
    subject: Subject,
    /// Whether the failure has been reported, or is about to be.
    told: AtomicBool,
}

impl Drop for Facts {
    /// The drop of a user's error may panic, and must not end what happens to hold the last reference.
    fn drop(&mut self) {
        discard(mem::replace(&mut self.kind, HandlerErrorKind::Refused));
    }
}

/// What an error is about.
enum Subject {
    Handler,
    Transaction,
    /// This many handlers that were refused after the one at the place.
    More(usize),
}

/// The name of a handler; cloning it does not allocate.
#[derive(Clone, Debug)]
pub enum Name {
    Static(&'static str),
    Shared(Arc<str>),
}

impl From<Cow<'static, str>> for Name {
    fn from(name: Cow<'static, str>) -> Self {
        match name {
            Cow::Borrowed(name) => Self::Static(name),
            Cow::Owned(name) => Self::Shared(name.into()),
        }
    }
}

impl Deref for Name {
    type Target = str;

    fn deref(&self) -> &str {
        match self {
            Self::Static(name) => name,
            Self::Shared(name) => name,
        }
    }
}

/// The label of a handler: its name, and how long it may run.
#[derive(Clone, Debug, Default)]
pub struct Label {
    pub(crate) name: Option<Name>,
    pub(crate) limit: Option<Duration>,
}

/// The name of a handler and where it was registered: what is known about it while it runs and afterwards.
#[derive(Clone, Debug)]
pub(crate) struct Site {
    pub(crate) name: Option<Name>,
    pub(crate) location: &'static Location<'static>,
}

impl HandlerError {
    pub(crate) fn new(path: Option<String>, site: Site, kind: HandlerErrorKind) -> Self {
        Self::of(path, site, kind, Subject::Handler)
    }

    /// Creates the error of a transaction, with its own path, its name, and the place where it was begun.
    pub(crate) fn of_transaction(path: String, site: Site, kind: HandlerErrorKind) -> Self {
        Self::of(Some(path), site, kind, Subject::Transaction)
    }

    /// Creates the report of `more` refusals by one stack after the first, whose handler was registered at `location`.
    pub(crate) fn more_refused(path: Option<String>, location: &'static Location<'static>, more: usize) -> Self {
        Self::of(path, Site { name: None, location }, HandlerErrorKind::Refused, Subject::More(more))
    }

    fn of(path: Option<String>, site: Site, kind: HandlerErrorKind, subject: Subject) -> Self {
        Self(Arc::new(Facts { at: Moment::now(), path, site, kind, subject, told: AtomicBool::new(false) }))
    }

    /// Returns true on the first call for this failure, whose caller then has to report it.
    pub(crate) fn tell(&self) -> bool {
        !self.0.told.swap(true, Ordering::Relaxed)
    }

    /// Returns the handler's name, if it was given one with [`Handler::named`](crate::Handler::named).
    ///
    /// ```
    /// use exitstack::{ExitStack, Handler};
    ///
    /// let mut stack = ExitStack::new();
    /// stack.register(Handler::new(|| Err("disk full")).named("save"));
    /// let error = stack.close().unwrap_err();
    /// assert_eq!(error.errors()[0].name(), Some("save"));
    /// ```
    pub fn name(&self) -> Option<&str> {
        self.0.site.name.as_deref()
    }

    /// Returns where the handler was registered.
    ///
    /// ```
    /// use exitstack::{ExitStack, Handler};
    ///
    /// let mut stack = ExitStack::new();
    /// stack.register(Handler::new(|| Err("disk full")).named("save"));
    /// let error = stack.close().unwrap_err();
    /// assert_eq!(error.errors()[0].location().file(), file!());
    /// ```
    pub fn location(&self) -> &'static Location<'static> {
        self.0.site.location
    }

    /// Returns what happened to the handler.
    ///
    /// ```
    /// use exitstack::{ExitStack, Handler, HandlerErrorKind};
    ///
    /// let mut stack = ExitStack::new();
    /// stack.register(Handler::new(|| Err("disk full")).named("save"));
    /// let error = stack.close().unwrap_err();
    /// assert!(matches!(error.errors()[0].kind(), HandlerErrorKind::Failed(_)));
    /// ```
    pub fn kind(&self) -> &HandlerErrorKind {
        &self.0.kind
    }

    /// Returns the path of the interpreter that the handler was registered in, such as `process > plugin-a > db`.
    ///
    /// It is `process` for the process stack, and `None` for a stack that is a value.
    ///
    #[cfg_attr(feature = "std", doc = "```")]
    #[cfg_attr(not(feature = "std"), doc = "```ignore")]
    /// use exitstack::Interpreter;
    ///
    /// let plugin = Interpreter::new("plugin-a");
    /// plugin.stack().register(|| Err("disk full"));
    /// let error = plugin.finalize().unwrap_err();
    /// assert_eq!(error.errors()[0].path(), Some("process > plugin-a"));
    /// ```
    pub fn path(&self) -> Option<&str> {
        self.0.path.as_deref()
    }
}

impl Display for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if f.alternate() {
            return Causes { error: self, show: |link, line| write!(line, "{link}") }.fmt(f);
        }
        let Facts { path, site, kind, subject, .. } = &*self.0;
        if let Some(path) = path {
            OneLine(f).write_str(path)?;
            f.write_str(": ")?;
        }
        let (what, placed) = match subject {
            Subject::Handler => ("exit handler", "registered"),
            Subject::Transaction => ("transaction", "begun"),
            Subject::More(more) => {
                let handlers = if *more == 1 { "handler was" } else { "handlers were" };
                return write!(f, "{more} more exit {handlers} refused after the one registered at {}", site.location);
            }
        };
        write!(f, "{what} ")?;
        if let Some(name) = &site.name {
            f.write_str("`")?;
            OneLine(f).write_str(name)?;
            f.write_str("` ")?;
        }
        write!(f, "{placed} at {} ", site.location)?;
        match kind {
            HandlerErrorKind::Failed(_) => write!(f, "failed"),
            HandlerErrorKind::Panicked(message) => write!(f, "panicked: {message}"),
            HandlerErrorKind::Refused => write!(f, "was refused: the stack no longer accepts handlers"),
            HandlerErrorKind::TimedOut(after) => write!(f, "was given up: it was still running after {after:.1?}"),
            // Only stacks in a tree have limits, and no async stack is in one.
            HandlerErrorKind::NotRun if path.is_some() => write!(f, "was not run: there was no time left"),
            HandlerErrorKind::NotRun => write!(f, "was not run: the stack was dropped without `close().await`"),
            HandlerErrorKind::Cancelled => write!(f, "was cancelled before it finished"),
            HandlerErrorKind::RolledBack => {
                write!(f, "was rolled back: an enclosing stack drained before its body had ended")
            }
        }
    }
}

impl fmt::Debug for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HandlerError")
            .field("path", &self.path())
            .field("name", &self.name())
            .field("location", &format_args!("{}", self.location()))
            .field("kind", self.kind())
            .finish_non_exhaustive()
    }
}

impl Error for HandlerError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.0.kind {
            HandlerErrorKind::Failed(error) => Some(&**error),
            _ => None,
        }
    }
}

/// The failures of one drain, in the order in which they happened, and the exit status requested, if any.
///
/// It is cheap to clone. However it is printed, each failure is shown once:
///
/// - If there is one failure, `Display` and [`source`](Error::source) are those of the [`HandlerError`].
/// - If there are several, `Display` shows all of them on one line, each with its whole chain of causes. There is no
///   source, because a chain has room for only one of them. [`last`](Self::last) is the one that Python's `atexit`
///   would re-raise.
/// - If there is only an exit request ([`Exit`]), there is no failure and no source.
///
/// The alternate form, `{:#}`, always shows everything on one line. Code that prints the whole chain of an error's
/// causes, as `anyhow` does, therefore omits nothing and repeats nothing.
///
/// ```
/// use exitstack::ExitStack;
/// use std::error::Error;
///
/// let mut stack = ExitStack::new();
/// stack.register(|| Err("disk full"));
/// let error = stack.close().unwrap_err();
/// assert!(error.to_string().ends_with(" failed"));
/// assert_eq!(error.source().unwrap().to_string(), "disk full");
///
/// stack.register(|| Err("second to run"));
/// stack.register(|| Err("first to run"));
/// let error = stack.close().unwrap_err();
/// let messages: Vec<String> = error.errors().iter().map(|e| e.source().unwrap().to_string()).collect();
/// assert_eq!(messages, ["first to run", "second to run"]);
/// assert!(error.to_string().starts_with("2 exit handlers failed: exit handler registered at "));
/// assert!(error.to_string().ends_with(" failed: second to run"));
/// assert!(error.source().is_none());
/// ```
#[derive(Clone)]
pub struct CloseError(Arc<Details>);

/// Failures; up to two are stored in place, which takes as much room as a `Vec`.
pub(crate) type Errors = SmallVec<[HandlerError; 2]>;

/// The contents of a [`CloseError`].
struct Details {
    errors: Errors,
    exit: Option<ExitRequest>,
}

impl CloseError {
    pub(crate) fn of(error: HandlerError) -> Self {
        Self(Arc::new(Details { errors: SmallVec::from_iter([error]), exit: None }))
    }

    #[cold]
    #[inline(never)]
    fn join(&self, then: &Self) -> Self {
        let mut both = Failures::from(self);
        drop(both.merge(then.into()));
        both.into_result().err().unwrap_or_else(|| self.clone())
    }

    /// Returns the exit status that was requested, and when it was.
    pub(crate) fn exit_request(&self) -> Option<ExitRequest> {
        self.0.exit
    }

    /// Returns the failures, in the order in which they happened.
    ///
    /// There are none if handlers only requested an exit status.
    ///
    /// ```
    /// use exitstack::ExitStack;
    ///
    /// let mut stack = ExitStack::new();
    /// stack.register(|| Err("second"));
    /// stack.register(|| Err("first"));
    /// let error = stack.close().unwrap_err();
    /// assert!(error.errors()[0].to_string().starts_with("exit handler registered at "));
    /// assert_eq!(error.errors().len(), 2);
    /// ```
    pub fn errors(&self) -> &[HandlerError] {
        &self.0.errors
    }

    /// Returns an iterator over the failures, in the order in which they happened.
    ///
    /// ```
    /// use exitstack::ExitStack;
    ///
    /// let mut stack = ExitStack::new();
    /// stack.register(|| Err("second"));
    /// stack.register(|| Err("first"));
    /// let error = stack.close().unwrap_err();
    /// for failure in error.iter() {
    ///     eprintln!("{failure:#}");
    /// }
    /// ```
    pub fn iter(&self) -> slice::Iter<'_, HandlerError> {
        self.0.errors.iter()
    }

    /// Returns the failure that happened last: the one that Python's `atexit` re-raises.
    ///
    /// ```
    /// use exitstack::ExitStack;
    ///
    /// let mut stack = ExitStack::new();
    /// stack.register(|| Err("last"));
    /// stack.register(|| Err("first"));
    /// let error = stack.close().unwrap_err();
    /// assert!(format!("{:#}", error.last().unwrap()).ends_with(" failed: last"));
    /// ```
    pub fn last(&self) -> Option<&HandlerError> {
        self.errors().last()
    }

    /// Returns the exit status that a handler requested with [`Exit`], the last one if there were several.
    ///
    /// ```
    /// use exitstack::{Exit, ExitStack};
    ///
    /// let mut stack = ExitStack::new();
    /// stack.register(|| Err(Exit(74)));
    /// assert_eq!(stack.close().unwrap_err().exit_code(), Some(74));
    /// ```
    pub fn exit_code(&self) -> Option<i32> {
        self.0.exit.map(|request| request.code)
    }
}

impl<'e> IntoIterator for &'e CloseError {
    type Item = &'e HandlerError;
    type IntoIter = slice::Iter<'e, HandlerError>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl Display for CloseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.errors(), self.exit_code()) {
            ([], code) => write!(f, "an exit handler requested exit status {}", code.unwrap_or_default()),
            ([only], _) => only.fmt(f),
            (errors, _) => {
                write!(f, "{} exit handlers failed: ", errors.len())?;
                for (at, error) in errors.iter().enumerate() {
                    let separator = if at == 0 { "" } else { "; " };
                    write!(f, "{separator}{error:#}")?;
                }
                Ok(())
            }
        }
    }
}

impl fmt::Debug for CloseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CloseError").field("errors", &self.errors()).field("exit_code", &self.exit_code()).finish()
    }
}

impl Error for CloseError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        if let [only] = self.errors() { only.source() } else { None }
    }
}
