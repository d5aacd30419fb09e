//! The observer, and the thread that it runs on.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};
use std::{io, thread};

use super::event::{Closed, Event, Reason};
use crate::panics::discard;
use crate::sync::{Condvar, Lock};
use crate::tree::{Fate, Record, Running};

/// How long the end of the process waits for an observer that has not seen everything.
const PATIENCE: Duration = Duration::from_millis(200);

/// What is sent to the observer.
pub(super) enum Told {
    Began(Reason),
    Slow(Running),
    Ended(Record),
    Closed(Closed),
    /// All that came before has been seen.
    Seen(Arc<Seen>),
}

/// Set once, and waited for by a thread that may be past its thread-locals, where a channel's receiver may not be used.
#[derive(Default)]
pub(super) struct Seen(Lock<bool>, Condvar);

impl Seen {
    fn set(&self) {
        *self.0.lock() = true;
        self.1.notify_all();
    }

    fn wait(&self) {
        let until = Instant::now() + PATIENCE;
        let mut seen = self.0.lock();
        while !*seen {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            seen = self.1.wait_timeout(seen, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Where to send it.
#[derive(Clone)]
pub(super) struct Observer(Sender<Told>);

impl Observer {
    /// Starts the thread.
    pub(super) fn new(observer: Box<dyn Fn(&Event<'_>) + Send + Sync>) -> io::Result<Self> {
        let (sender, receiver) = mpsc::channel();
        thread::Builder::new().name("exitstack-watch".into()).spawn(move || {
            for told in receiver {
                let event = match &told {
                    Told::Began(reason) => Event::Began(*reason),
                    Told::Slow(running) => Event::Slow(running),
                    Told::Ended(record) if matches!(record.fate(), Fate::GivenUp) => Event::GivenUp(record),
                    Told::Ended(record) => Event::Finished(record),
                    Told::Closed(closed) => Event::Ended(closed),
                    Told::Seen(seen) => {
                        seen.set();
                        continue;
                    }
                };
                // It goes on being told: what it panics with was written by the panic hook.
                let _ = catch_unwind(AssertUnwindSafe(|| observer(&event))).map_err(discard);
            }
        })?;
        Ok(Self(sender))
    }

    /// Sends something, without waiting.
    pub(super) fn tell(&self, told: Told) {
        let _ = self.0.send(told);
    }

    /// Waits until everything sent has been seen, if that does not take long.
    pub(super) fn settle(&self) {
        let seen = Arc::<Seen>::default();
        self.tell(Told::Seen(Arc::clone(&seen)));
        seen.wait();
    }
}
