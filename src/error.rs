//! How things end: the outcome of a scope, and what went wrong in its cleanup.

use std::borrow::Cow;
use std::error::Error;
use std::fmt::{self, Display, Write};
use std::mem;
use std::ops::Deref;
use std::panic::Location;
use std::process::{ExitCode, Termination};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use smallvec::SmallVec;

use crate::chain::{Chain, Link};

/// How the work ended whose cleanup runs: it decides between `on_success` and `on_failure` handlers.
///
/// **A stack that is dropped without `close()` has failed**, whatever led to the drop.
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
    /// The work was done: [`close()`](crate::ExitStack::close) was reached, or
    /// [`close_with(Success)`](crate::ExitStack::close_with), or the body of a [`scope`](crate::scope) returned `Ok`.
    Success,
    /// The work ended in any other way: with an error, with a panic, or with a stack that nobody closed.
    Failure,
}

/// "End with this status": an error that is a request, not a failure.
///
/// A handler that returns `Err(Exit(code))` has not failed: nothing is reported. `close()` returns a [`CloseError`]
/// whose [`exit_code`](CloseError::exit_code) is the last one asked for; on the way out of the process the last one
/// asked for becomes the exit status, of which Unix keeps the low byte. A stack that is dropped has nobody to tell, and
/// forgets it; so does a [`scope`](crate::scope) whose body failed, and the process stack of a shared library, whose
/// unloading is no exit. It counts bare or in a box, not as the `source` of another error nor inside an `anyhow::Error`.
///
/// Python's `atexit` has no such thing: a `SystemExit` in a handler is printed and changes nothing.
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
///
/// # As the value of `main`
///
/// A `main` that returns `Exit(3)` ends with status 3, and so does a body of [`run`](crate::run), or an `Ok(Exit(3))` from
/// either; an `ExitCode` can hold no more than the low byte of it.
///
/// **`Err(Exit(3))` from `main` is an error, not a request**: std reports every `Err` alike, prints `Error: Exit(3)` and
/// ends with status 1. Return the `Exit` itself instead:
///
/// ```
/// use exitstack::Exit;
///
/// fn work() -> Result<(), Exit> {
///     if std::env::args().len() > 1 {
///         eprintln!("no arguments, please");
///         return Err(Exit(2));
///     }
///     Ok(())
/// }
///
/// fn main() -> Exit {
///     work().err().unwrap_or(Exit(0))
/// }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[error("exit with status {0}")]
pub struct Exit(
    /// The exit status.
    pub i32,
);

impl Termination for Exit {
    /// The low byte: what a parent sees on Unix, and all that can be made an [`ExitCode`] of.
    fn report(self) -> ExitCode {
        let [low, ..] = self.0.to_le_bytes();
        ExitCode::from(low)
    }
}

/// What happened to a handler: see [`HandlerError::kind`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum HandlerErrorKind {
    /// It returned this error.
    Failed(Arc<dyn Error + Send + Sync>),
    /// It, or the drop of something it captured, panicked with this message.
    Panicked(String),
    /// It was registered where no handler is taken any more, and dropped without being run.
    Refused,
}

/// One handler that failed, panicked or was refused: which, registered where, and why.
///
/// It is cheap to clone. Its `Display` says which handler it was, where that was registered, and that it failed; in front
/// stands the path of the interpreter if there is one. Why it failed is its [`source`](Error::source), the handler's own
/// error, whose text is not repeated. The alternate form, `{:#}`, shows both, with the whole chain of causes (128 of them
/// at most), on one line:
///
/// ```text
/// process > plugin-a > db: exit handler `flush` registered at src/db.rs:10:5 failed
/// process > plugin-a > db: exit handler `flush` registered at src/db.rs:10:5 failed: disk full
/// ```
///
/// A panic has no source: its message is part of the text, `... panicked: message`. In the alternate form control
/// characters are escaped, as they always are in names and paths.
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
    more: usize,
    /// The report hook has been told of it, or is about to be.
    told: AtomicBool,
}

/// A place in the order of what happened in this process: later ones are greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Moment(usize);

impl Moment {
    fn now() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// A handler's name, which is cloned without an allocation.
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

/// Which handler: what remains of it while and after it runs.
#[derive(Clone, Debug)]
pub(crate) struct Site {
    pub(crate) name: Option<Name>,
    pub(crate) location: &'static Location<'static>,
}

impl HandlerError {
    pub(crate) fn new(path: Option<String>, site: Site, kind: HandlerErrorKind) -> Self {
        Self::of(path, site, kind, 0)
    }

    /// The refusals of one stack beyond the first, which stood at `location`.
    pub(crate) fn more_refused(path: Option<String>, location: &'static Location<'static>, more: usize) -> Self {
        Self::of(path, Site { name: None, location }, HandlerErrorKind::Refused, more)
    }

    fn of(path: Option<String>, site: Site, kind: HandlerErrorKind, more: usize) -> Self {
        Self(Arc::new(Facts { at: Moment::now(), path, site, kind, more, told: AtomicBool::new(false) }))
    }

    /// Whether this is the first call for this failure, which gives its report to the caller.
    pub(crate) fn tell(&self) -> bool {
        !self.0.told.swap(true, Ordering::Relaxed)
    }

    /// The handler's name, if it was given one with [`Handler::named`](crate::Handler::named).
    pub fn name(&self) -> Option<&str> {
        self.0.site.name.as_deref()
    }

    /// Where the handler was registered.
    pub fn location(&self) -> &'static Location<'static> {
        self.0.site.location
    }

    /// What happened.
    pub fn kind(&self) -> &HandlerErrorKind {
        &self.0.kind
    }

    /// The path of the interpreter it was registered in, `process > plugin-a > db`; `process` for the process stack,
    /// none for a stack that is a value.
    pub fn path(&self) -> Option<&str> {
        self.0.path.as_deref()
    }
}

impl Display for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if f.alternate() {
            return Causes { error: self, show: |link, line| write!(line, "{link}") }.fmt(f);
        }
        let Facts { path, site, kind, more, .. } = &*self.0;
        if let Some(path) = path {
            OneLine(f).write_str(path)?;
            f.write_str(": ")?;
        }
        if *more > 0 {
            let s = if *more == 1 { "" } else { "s" };
            return write!(f, "{more} more exit handler{s} refused after the one registered at {}", site.location);
        }
        write!(f, "exit handler ")?;
        if let Some(name) = &site.name {
            f.write_str("`")?;
            OneLine(f).write_str(name)?;
            f.write_str("` ")?;
        }
        write!(f, "registered at {} ", site.location)?;
        match kind {
            HandlerErrorKind::Failed(_) => write!(f, "failed"),
            HandlerErrorKind::Panicked(message) => write!(f, "panicked: {message}"),
            HandlerErrorKind::Refused => write!(f, "refused: the stack takes no more handlers"),
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
            HandlerErrorKind::Panicked(_) | HandlerErrorKind::Refused => None,
        }
    }
}

/// How many causes of a failure are shown: an error may be its own source.
const CAUSES: usize = 128;

/// A failure with the whole chain of its causes, on one line.
pub(crate) struct Causes<'e> {
    pub(crate) error: &'e HandlerError,
    /// Shows one of them: its own text alone.
    pub(crate) show: fn(&dyn Error, &mut OneLine<'_>) -> fmt::Result,
}

impl Display for Causes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = OneLine(f);
        (self.show)(self.error, &mut line)?;
        let mut causes = 0;
        let mut next = self.error.source();
        while let Some(cause) = next {
            line.write_str(": ")?;
            if causes == CAUSES {
                return line.write_str("...");
            }
            (self.show)(cause, &mut line)?;
            causes += 1;
            next = cause.source();
        }
        Ok(())
    }
}

/// Every failure of one drain, in the order they happened, and the exit status asked for, if any.
///
/// It is cheap to clone. One failure is told once, however it is printed:
///
/// - If there is one failure, this is that failure: `Display` and [`source`](Error::source) are those of the
///   [`HandlerError`].
/// - If there are several, `Display` shows them all, each with its whole chain of causes, on one line; there is no source,
///   as a chain has room for one of them only. The one that Python's `atexit` would re-raise is the [`last`](Self::last).
/// - If there is only an exit request ([`Exit`]), there is no failure and no source.
///
/// The alternate form, `{:#}`, always shows everything on one line. So what prints the whole chain of an error's causes,
/// as `anyhow` does, leaves nothing out and repeats nothing.
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

/// What a [`CloseError`] tells.
struct Details {
    /// In place up to two, which is as large as a `Vec`.
    errors: SmallVec<[HandlerError; 2]>,
    exit: Option<ExitRequest>,
}

/// What a drain has gathered so far: one word, until something fails.
#[derive(Default)]
pub(crate) struct Failures(Option<Box<Collected>>);

/// Failures in any order, some perhaps twice, for several drains may tell of one; and the exit status asked for.
struct Collected {
    errors: Chain<HandlerError>,
    exit: Option<ExitRequest>,
}

/// An exit status that was asked for. Of several the last one counts, whichever way they come together.
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
    pub(crate) fn failure(error: HandlerError) -> Self {
        let mut errors = Chain::new();
        errors.push(Link::new(error));
        Self(Some(Box::new(Collected { errors, exit: None })))
    }

    pub(crate) fn exit(request: ExitRequest) -> Self {
        Self(Some(Box::new(Collected { errors: Chain::new(), exit: Some(request) })))
    }

    pub(crate) fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |collected| collected.errors.len())
    }

    pub(crate) fn errors(&self) -> impl Iterator<Item = &HandlerError> {
        self.0.iter().flat_map(|collected| collected.errors.iter())
    }

    /// Adds what another drain gathered. What is returned is to be dropped where no lock is held.
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

    /// What `close()` returns for it: the failures in the order in which they happened, each once.
    #[inline]
    pub(crate) fn into_result(self) -> Result<(), CloseError> {
        self.0.map_or(Ok(()), |collected| Err(collected.into_error()))
    }
}

impl Collected {
    #[cold]
    #[inline(never)]
    fn into_error(self) -> CloseError {
        let mut errors: SmallVec<[HandlerError; 2]> = self.errors.collect();
        errors.sort_by_key(|error| error.0.at);
        errors.dedup_by_key(|error| error.0.at);
        CloseError(Arc::new(Details { errors, exit: self.exit }))
    }
}

/// What two drains came to, together.
#[inline]
pub(crate) fn merged(first: Result<(), CloseError>, then: Result<(), CloseError>) -> Result<(), CloseError> {
    match (first, then) {
        (Ok(()), result) | (result, Ok(())) => result,
        (Err(first), Err(then)) => Err(first.join(&then)),
    }
}

impl CloseError {
    #[cold]
    #[inline(never)]
    fn join(&self, then: &Self) -> Self {
        let mut both = self.failures();
        drop(both.merge(then.failures()));
        both.into_result().err().unwrap_or_else(|| self.clone())
    }

    /// Its failures and its exit status, to be merged with others.
    pub(crate) fn failures(&self) -> Failures {
        let mut errors = Chain::new();
        for error in self {
            errors.push(Link::new(error.clone()));
        }
        Failures(Some(Box::new(Collected { errors, exit: self.0.exit })))
    }

    /// The exit status that was asked for, and when.
    pub(crate) fn exit_request(&self) -> Option<ExitRequest> {
        self.0.exit
    }

    /// The failures, in the order they happened; empty if there were only exit requests.
    pub fn errors(&self) -> &[HandlerError] {
        &self.0.errors
    }

    /// The failures, in the order they happened.
    pub fn iter(&self) -> std::slice::Iter<'_, HandlerError> {
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

    /// The exit status that a handler asked for with [`Exit`], the last one if there were several.
    pub fn exit_code(&self) -> Option<i32> {
        self.0.exit.map(|request| request.code)
    }
}

impl<'e> IntoIterator for &'e CloseError {
    type Item = &'e HandlerError;
    type IntoIter = std::slice::Iter<'e, HandlerError>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl Display for CloseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.errors(), self.exit_code()) {
            ([], code) => write!(f, "an exit handler asked for exit status {}", code.unwrap_or_default()),
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

/// The handler that a stack did not take, handed back: what [`try_register`](crate::SharedExitStack::try_register)
/// returns from a finalized interpreter, or from the process stack past its last drain.
///
/// ```
/// use exitstack::Interpreter;
///
/// let plugin = Interpreter::new("plugin");
/// plugin.finalize()?;
/// let refused = plugin.stack().try_register(|| println!("too late")).unwrap_err();
/// assert!(refused.to_string().contains("refused"));
/// let handler = refused.into_handler();
/// handler(); // run it now instead
/// # Ok::<(), exitstack::CloseError>(())
/// ```
#[derive(Clone, thiserror::Error)]
#[error("exit handler registered at {location} refused: the stack takes no more handlers")]
pub struct Refused<H> {
    handler: H,
    location: &'static Location<'static>,
}

impl<H> Refused<H> {
    pub(crate) fn new(handler: H, location: &'static Location<'static>) -> Self {
        Self { handler, location }
    }

    /// The handler, as it was.
    #[doc(alias = "into_inner")]
    pub fn into_handler(self) -> H {
        self.handler
    }

    /// Where it was to be registered.
    pub fn location(&self) -> &'static Location<'static> {
        self.location
    }
}

impl<H> fmt::Debug for Refused<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Refused").field("location", &self.location).finish_non_exhaustive()
    }
}

/// Lets text through, but on one line: control characters and those that reorder or break lines are escaped, so that no
/// name or message can forge another line or rewrite a terminal.
pub(crate) struct OneLine<'w>(pub(crate) &'w mut dyn Write);

impl Write for OneLine<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            let unruly = c.is_control()
                || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
            if unruly {
                write!(self.0, "{}", c.escape_default())?;
            } else {
                self.0.write_char(c)?;
            }
        }
        Ok(())
    }
}
