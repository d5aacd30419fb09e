//! The observer, and the thread that it runs on.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};
use std::{io, thread};

use super::event::{Closed, Event, Reason};
use crate::panics::discard;
use crate::raw;
use crate::sync::{Condvar, Lock};
use crate::tree::{Fate, Record, Running};

/// How long the end of the process waits for an observer that has not seen everything.
pub(super) const PATIENCE: Duration = Duration::from_millis(200);

/// What is sent to the observer.
pub(super) enum Told {
    Began(Reason),
    Slow(Running),
    Ended(Record),
    Closed(Closed),
    /// Is written to standard error, which may be a full pipe that nobody reads: no other thread must wait for that.
    Line(String),
    /// Sets this once the observer has seen everything sent before.
    Seen(Arc<Seen>),
}

/// Set once, and waited for by a thread whose thread-locals may be gone, where the receiver of a channel cannot be
/// used.
#[derive(Default)]
pub(super) struct Seen(Lock<bool>, Condvar);

impl Seen {
    fn set(&self) {
        *self.0.lock() = true;
        self.1.notify_all();
    }

    /// Waits until it is set, or patience is over. Returns whether it is set.
    fn wait(&self, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        let mut seen = self.0.lock();
        while !*seen {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            seen = self.1.wait_timeout(seen, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

/// The channel to the thread of the observer.
#[derive(Clone)]
pub(super) struct Observer {
    sender: Sender<Told>,
    /// Whether it was waited for in vain: the end of the process has patience once.
    hangs: Arc<AtomicBool>,
}

impl Observer {
    /// Starts the thread that the observer runs on.
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
                    Told::Line(line) => {
                        raw::write_stderr(line.as_bytes());
                        continue;
                    }
                    Told::Seen(seen) => {
                        seen.set();
                        continue;
                    }
                };
                // After a panic, whose message the panic hook has written, it is still told what follows.
                let _ = catch_unwind(AssertUnwindSafe(|| observer(&event))).map_err(discard);
            }
        })?;
        Ok(Self { sender, hangs: Arc::default() })
    }

    /// Starts the thread that writes lines where no observer is set.
    pub(super) fn of_lines() -> io::Result<Self> {
        Self::new(Box::new(|_| ()))
    }

    /// Sends something to the observer, without waiting.
    pub(super) fn tell(&self, told: Told) {
        let _ = self.sender.send(told);
    }

    /// Waits until the observer has seen everything sent, if that does not take long.
    pub(super) fn settle(&self, patience: Duration) {
        if self.hangs.load(Ordering::Relaxed) || patience.is_zero() {
            return;
        }
        let seen = Arc::<Seen>::default();
        self.tell(Told::Seen(Arc::clone(&seen)));
        self.hangs.store(!seen.wait(patience), Ordering::Relaxed);
    }
}

#[cfg(all(test, not(all(loom, feature = "loom"))))]
mod tests {
    use super::*;

    /// More than any of this takes.
    const LONG: Duration = Duration::from_secs(60);

    /// Waits for the observer on another thread. Returns whether that has ended.
    fn settles(observer: &Observer, patience: Duration) -> bool {
        let (settled, when) = mpsc::channel();
        let observer = observer.clone();
        thread::spawn(move || {
            observer.settle(patience);
            settled.send(()).unwrap();
        });
        when.recv_timeout(LONG).is_ok()
    }

    #[test]
    fn an_observer_that_answers_is_waited_for_each_time() {
        let observer = Observer::of_lines().unwrap();
        for _ in 0..2 {
            assert!(settles(&observer, 10 * LONG));
            assert!(!observer.hangs.load(Ordering::Relaxed));
        }
    }

    #[test]
    fn an_observer_that_hangs_is_waited_for_once() {
        let (release, released) = mpsc::channel::<()>();
        let released = Lock::new(released);
        let observer = Observer::new(Box::new(move |_| _ = released.lock().recv())).unwrap();
        observer.tell(Told::Began(Reason::Exit));
        assert!(settles(&observer, Duration::from_millis(1)));
        assert!(settles(&observer, 10 * LONG));
        drop(release);
    }

    #[test]
    fn without_patience_nothing_is_waited_for() {
        let observer = Observer::of_lines().unwrap();
        observer.settle(Duration::ZERO);
        assert!(!observer.hangs.load(Ordering::Relaxed));
    }
}
