//! What is known of the handlers of a drain that is watched: plain values.

use std::panic::Location;
use std::time::{Duration, Instant};

use crate::error::{HandlerError, HandlerErrorKind, Site};

/// A handler that is running, or a drain that waits for one that runs on another thread.
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
    pub fn name(&self) -> Option<&str> {
        self.site.name.as_deref()
    }

    /// Returns where the handler was registered.
    pub fn location(&self) -> &'static Location<'static> {
        self.site.location
    }

    /// Returns the path of the interpreter that the handler was registered in, such as `process > plugin-a > db`.
    pub fn path(&self) -> Option<&str> {
        self.path.as_deref()
    }

    /// Returns the name of the thread that the handler runs on, if it has one.
    pub fn thread(&self) -> Option<&str> {
        self.thread.as_deref()
    }

    /// Returns since when the handler has been running.
    pub fn since(&self) -> Instant {
        self.since
    }

    /// Returns the number of handlers that are pending in the stack which the drain began with, and in what is nested there.
    pub fn waiting(&self) -> usize {
        self.waiting
    }
}

/// What became of one handler of a drain that was watched.
#[derive(Clone, Debug)]
pub struct Record {
    pub(crate) site: Site,
    pub(crate) path: Option<String>,
    pub(crate) thread: Option<String>,
    pub(crate) took: Duration,
    pub(crate) fate: Fate,
}

impl Record {
    pub(crate) fn error(&self, kind: HandlerErrorKind) -> HandlerError {
        HandlerError::new(self.path.clone(), self.site.clone(), kind)
    }

    /// Returns the handler's name, if it was given one with [`Handler::named`](crate::Handler::named).
    pub fn name(&self) -> Option<&str> {
        self.site.name.as_deref()
    }

    /// Returns where the handler was registered.
    pub fn location(&self) -> &'static Location<'static> {
        self.site.location
    }

    /// Returns the path of the interpreter that the handler was registered in, such as `process > plugin-a > db`.
    pub fn path(&self) -> Option<&str> {
        self.path.as_deref()
    }

    /// Returns the name of the thread that the handler ran on, if it has one.
    pub fn thread(&self) -> Option<&str> {
        self.thread.as_deref()
    }

    /// Returns how long the handler ran, or has run so far; zero if it did not run.
    pub fn took(&self) -> Duration {
        self.took
    }

    /// Returns what became of the handler.
    pub fn fate(&self) -> &Fate {
        &self.fate
    }
}

/// What became of a handler.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Fate {
    /// It returned.
    Done,
    /// It failed or panicked.
    Failed(HandlerError),
    /// It ran for longer than it was given, and the drain went on without it. It may still be running.
    GivenUp,
    /// There was no time left for it. It was not dropped either.
    NotRun,
    /// It was running when the record was made.
    Running,
}
