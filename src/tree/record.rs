//! What is known about the handlers of a watched drain: plain values.

use std::panic::Location;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::{HandlerError, HandlerErrorKind, Site};

/// A handler that is running in a drain that is watched.
///
/// ```
/// use exitstack::shutdown::{Limits, running};
/// use exitstack::{Handler, Interpreter};
///
/// let plugin = Interpreter::new("plugin-a");
/// plugin.stack().register(|| println!("runs last"));
/// let look = || {
///     let running = running();
///     assert_eq!((running[0].name(), running[0].path()), (Some("look"), Some("process > plugin-a")));
///     assert_eq!(running[0].waiting(), 1);
/// };
/// plugin.stack().register(Handler::new(look).named("look"));
/// assert!(plugin.finalize_within(&Limits::new()).result().is_ok());
/// ```
#[derive(Clone, Debug)]
pub struct Running {
    pub(crate) site: Site,
    pub(crate) path: Option<String>,
    pub(crate) thread: Option<String>,
    pub(crate) since: Instant,
    pub(crate) waiting: usize,
}

impl Running {
    /// Returns the handler's name, if it was given one with [`Handler::named`](crate::Handler::named).
    ///
    /// ```
    /// use exitstack::shutdown::{Limits, running};
    /// use exitstack::{Handler, Interpreter};
    ///
    /// let plugin = Interpreter::new("plugin-a");
    /// plugin.stack().register(Handler::new(|| assert_eq!(running()[0].name(), Some("look"))).named("look"));
    /// assert!(plugin.finalize_within(&Limits::new()).result().is_ok());
    /// ```
    pub fn name(&self) -> Option<&str> {
        self.site.name.as_deref()
    }

    /// Returns where the handler was registered.
    ///
    /// ```
    /// use exitstack::shutdown::{Limits, running};
    /// use exitstack::{Handler, Interpreter};
    ///
    /// let plugin = Interpreter::new("plugin-a");
    /// plugin.stack().register(Handler::new(|| assert_eq!(running()[0].location().file(), file!())).named("look"));
    /// assert!(plugin.finalize_within(&Limits::new()).result().is_ok());
    /// ```
    pub fn location(&self) -> &'static Location<'static> {
        self.site.location
    }

    /// Returns the path of the interpreter that the handler was registered in, such as `process > plugin-a > db`.
    ///
    /// ```
    /// use exitstack::shutdown::{Limits, running};
    /// use exitstack::{Handler, Interpreter};
    ///
    /// let plugin = Interpreter::new("plugin-a");
    /// plugin.stack().register(Handler::new(|| assert_eq!(running()[0].path(), Some("process > plugin-a"))).named("look"));
    /// assert!(plugin.finalize_within(&Limits::new()).result().is_ok());
    /// ```
    pub fn path(&self) -> Option<&str> {
        self.path.as_deref()
    }

    /// Returns the name of the thread that the handler runs on, if it has one.
    ///
    /// ```
    /// use exitstack::shutdown::{Limits, running};
    /// use exitstack::{Handler, Interpreter};
    ///
    /// let plugin = Interpreter::new("plugin-a");
    /// plugin.stack().register(Handler::new(|| println!("on {:?}", running()[0].thread())).named("look"));
    /// assert!(plugin.finalize_within(&Limits::new()).result().is_ok());
    /// ```
    pub fn thread(&self) -> Option<&str> {
        self.thread.as_deref()
    }

    /// Returns when the handler began to run.
    ///
    /// ```
    /// use exitstack::shutdown::{Limits, running};
    /// use exitstack::{Handler, Interpreter};
    ///
    /// let plugin = Interpreter::new("plugin-a");
    /// plugin.stack().register(Handler::new(|| assert!(running()[0].since() <= std::time::Instant::now())).named("look"));
    /// assert!(plugin.finalize_within(&Limits::new()).result().is_ok());
    /// ```
    pub fn since(&self) -> Instant {
        self.since
    }

    /// Returns the number of handlers that are still pending in the stack that the drain began with, and in everything
    /// nested in it.
    ///
    /// ```
    /// use exitstack::shutdown::{Limits, running};
    /// use exitstack::{Handler, Interpreter};
    ///
    /// let plugin = Interpreter::new("plugin-a");
    /// plugin.stack().register(Handler::new(|| assert_eq!(running()[0].waiting(), 0)).named("look"));
    /// assert!(plugin.finalize_within(&Limits::new()).result().is_ok());
    /// ```
    pub fn waiting(&self) -> usize {
        self.waiting
    }
}

/// What became of one handler in a drain that was watched.
///
/// ```
/// use exitstack::shutdown::{Fate, Limits};
/// use exitstack::{Handler, Interpreter};
///
/// let plugin = Interpreter::new("plugin-a");
/// plugin.stack().register(Handler::new(|| Err("disk full")).named("save"));
/// let closed = plugin.finalize_within(&Limits::new());
/// let record = &closed.records()[0];
/// assert_eq!((record.name(), record.path()), (Some("save"), Some("process > plugin-a")));
/// assert!(matches!(record.fate(), Fate::Failed(_)));
/// ```
#[derive(Clone, Debug)]
pub struct Record {
    pub(crate) site: Site,
    pub(crate) path: Option<Arc<str>>,
    pub(crate) thread: Option<Arc<str>>,
    pub(crate) took: Duration,
    pub(crate) fate: Fate,
}

impl Record {
    pub(crate) fn error(&self, kind: HandlerErrorKind) -> HandlerError {
        HandlerError::new(self.path().map(str::to_owned), self.site.clone(), kind)
    }

    /// Returns the handler's name, if it was given one with [`Handler::named`](crate::Handler::named).
    ///
    /// ```
    /// use exitstack::shutdown::Limits;
    /// use exitstack::{Handler, Interpreter};
    ///
    /// let plugin = Interpreter::new("plugin-a");
    /// plugin.stack().register(Handler::new(|| ()).named("save"));
    /// let closed = plugin.finalize_within(&Limits::new());
    /// assert_eq!(closed.records()[0].name(), Some("save"));
    /// ```
    pub fn name(&self) -> Option<&str> {
        self.site.name.as_deref()
    }

    /// Returns where the handler was registered.
    ///
    /// ```
    /// use exitstack::shutdown::Limits;
    /// use exitstack::{Handler, Interpreter};
    ///
    /// let plugin = Interpreter::new("plugin-a");
    /// plugin.stack().register(Handler::new(|| ()).named("save"));
    /// let closed = plugin.finalize_within(&Limits::new());
    /// assert_eq!(closed.records()[0].location().file(), file!());
    /// ```
    pub fn location(&self) -> &'static Location<'static> {
        self.site.location
    }

    /// Returns the path of the interpreter that the handler was registered in, such as `process > plugin-a > db`.
    ///
    /// ```
    /// use exitstack::shutdown::Limits;
    /// use exitstack::{Handler, Interpreter};
    ///
    /// let plugin = Interpreter::new("plugin-a");
    /// plugin.stack().register(Handler::new(|| ()).named("save"));
    /// let closed = plugin.finalize_within(&Limits::new());
    /// assert_eq!(closed.records()[0].path(), Some("process > plugin-a"));
    /// ```
    pub fn path(&self) -> Option<&str> {
        self.path.as_deref()
    }

    /// Returns the name of the thread that the handler ran on, if it has one.
    ///
    /// ```
    /// use exitstack::shutdown::Limits;
    /// use exitstack::{Handler, Interpreter};
    ///
    /// let plugin = Interpreter::new("plugin-a");
    /// plugin.stack().register(Handler::new(|| ()).named("save"));
    /// let closed = plugin.finalize_within(&Limits::new());
    /// println!("on {:?}", closed.records()[0].thread()); // a thread of the library
    /// ```
    pub fn thread(&self) -> Option<&str> {
        self.thread.as_deref()
    }

    /// Returns how long the handler ran, or has run so far; zero if it did not run.
    ///
    /// ```
    /// use exitstack::shutdown::Limits;
    /// use exitstack::{Handler, Interpreter};
    ///
    /// let plugin = Interpreter::new("plugin-a");
    /// plugin.stack().register(Handler::new(|| ()).named("save"));
    /// let closed = plugin.finalize_within(&Limits::new());
    /// assert!(closed.records()[0].took() < std::time::Duration::from_secs(60));
    /// ```
    pub fn took(&self) -> Duration {
        self.took
    }

    /// Returns what became of the handler.
    ///
    /// ```
    /// use exitstack::shutdown::Limits;
    /// use exitstack::{Handler, Interpreter};
    ///
    /// let plugin = Interpreter::new("plugin-a");
    /// plugin.stack().register(Handler::new(|| ()).named("save"));
    /// let closed = plugin.finalize_within(&Limits::new());
    /// assert!(matches!(closed.records()[0].fate(), exitstack::shutdown::Fate::Done));
    /// ```
    pub fn fate(&self) -> &Fate {
        &self.fate
    }
}

/// What became of a handler.
///
/// ```
/// use exitstack::Interpreter;
/// use exitstack::shutdown::{Fate, Limits};
/// use std::time::Duration;
///
/// let plugin = Interpreter::new("plugin-a");
/// plugin.stack().register(std::thread::park);
/// let closed = plugin.finalize_within(&Limits::new().each(Duration::from_millis(10)));
/// match closed.records()[0].fate() {
///     Fate::GivenUp => {} // it is still running
///     other => panic!("{other:?}"),
/// }
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Fate {
    /// The handler returned.
    Done,
    /// The handler failed or panicked.
    Failed(HandlerError),
    /// The handler ran for longer than its time, or a signal cut it short, and the drain went on without it. It may still
    /// be running.
    GivenUp,
    /// There was no time left for the handler. It was not dropped either.
    NotRun,
    /// The handler was still running when the record was made.
    Running,
}
