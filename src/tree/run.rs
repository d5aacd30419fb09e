//! A handler that is running in a watched drain, and the stack of the tree that it is from.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use super::record::{Fate, Record, Running};
use super::{Node, Place, SharedExitStack};
use crate::error::{HandlerError, HandlerErrorKind, Site};
use crate::handler::SharedEntry;
use crate::raw;

/// A stack of a tree.
#[derive(Clone)]
pub(crate) enum Spot {
    Root(fn() -> &'static SharedExitStack),
    Node(Arc<Node>),
}

impl Spot {
    pub(crate) fn stack(&self) -> &SharedExitStack {
        match self {
            Self::Root(stack) => stack(),
            Self::Node(node) => &node.stack,
        }
    }
}

impl SharedExitStack {
    /// Returns the stack as part of its tree, or `None` if it is a value.
    pub(super) fn spot(&self) -> Option<Spot> {
        match &self.place {
            Place::Value => None,
            Place::Root(root) => Some(Spot::Root(root.stack)),
            Place::Nested(node) => node.upgrade().map(Spot::Node),
        }
    }

    /// Returns the number of handlers in the stack and in what is nested in it.
    pub(crate) fn count_all(&self) -> usize {
        let mut count = self.count();
        self.visit_descendants(|node| count += node.stack.count());
        count
    }
}

/// A handler that is running.
pub(crate) struct Run {
    pub(super) site: Site,
    pub(super) thread: Option<String>,
    pub(super) since: Instant,
    pub(super) limit: Option<Duration>,
    /// The stack that it is from. The path is made only on demand, because its length grows with the depth of the
    /// nesting.
    pub(super) top: Spot,
    pub(crate) is_slow: AtomicBool,
}

impl Run {
    pub(super) fn new(entry: &SharedEntry, top: Spot) -> Self {
        let label = entry.closure.label();
        let site = Site { name: label.and_then(|label| label.name.clone()), location: entry.location };
        Self {
            site,
            thread: raw::thread_name(),
            since: Instant::now(),
            limit: label.and_then(|label| label.limit),
            top,
            is_slow: AtomicBool::new(false),
        }
    }

    pub(super) fn path(&self) -> Option<String> {
        self.top.stack().path()
    }

    pub(crate) fn since(&self) -> Instant {
        self.since
    }

    pub(crate) fn limit(&self) -> Option<Duration> {
        self.limit
    }

    pub(crate) fn running(&self, waiting: usize) -> Running {
        let Self { site, thread, since, .. } = self;
        Running { site: site.clone(), path: self.path(), thread: thread.clone(), since: *since, waiting }
    }

    pub(super) fn record(&self, fate: Fate) -> Record {
        let Self { site, since, .. } = self;
        let (path, thread) = (self.path().map(Arc::from), self.thread.as_deref().map(Arc::from));
        let took = if matches!(fate, Fate::NotRun) { Duration::ZERO } else { since.elapsed() };
        Record { site: site.clone(), path, thread, took, fate }
    }

    pub(super) fn error(&self, kind: HandlerErrorKind) -> HandlerError {
        HandlerError::new(self.path(), self.site.clone(), kind)
    }
}
