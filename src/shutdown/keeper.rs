//! The thread that enforces limits, and the one that goes on where a handler was given up.
//!
//! A thread that exits cannot start others, so both are started beforehand: the keeper waits for drains to watch, and a
//! spare thread waits in case it is needed.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};
use std::{io, thread};

use super::limits::{Expiry, Limits};
use super::observer::{Observer, Told};
use super::setup::lines;
use crate::error::{CloseError, OneLine};
use crate::sync::{PerProcess, global};
use crate::tree::{Blocking, Running, Watch};

/// How often the keeper checks whether a drain now waits for something else.
const TICK: Duration = Duration::from_millis(10);

/// How long the end of the process waits, when its time is over, for something that is not a handler, such as a report
/// hook.
const PATIENCE: Duration = Duration::from_secs(1);

global! {
    /// The number of handlers that still have to be given up because each blocks a drain at the end of the process.
    static HURRIED: PerProcess<usize> = PerProcess::new(0);
}

/// Gives up the handler that blocks a drain at the end of the process, or the next one that does.
#[cfg(all(any(unix, windows), feature = "signals"))]
pub(crate) fn hurry() {
    *HURRIED.lock() += 1;
}

/// Receives the result of a drain that ended on another thread than it began on.
pub(super) type Finish = Arc<dyn Fn(Result<(), CloseError>) + Send + Sync>;

/// A drain to be watched.
#[derive(Clone)]
pub(super) struct Job {
    pub(super) began: Instant,
    pub(super) watch: Arc<Watch>,
    pub(super) limits: Limits,
    pub(super) observer: Option<Observer>,
    pub(super) finish: Finish,
    /// Called on a thread that goes on with the drain, before it does.
    pub(super) relieved: Arc<dyn Fn() + Send + Sync>,
    /// Ends the process if the drain is not over in time; `None` if the process goes on.
    pub(super) force: Option<fn() -> !>,
}

/// When to look again.
pub(super) enum Look {
    Over,
    At(Instant),
}

/// A thread that waits for something to do.
pub(super) struct Spare(Sender<Box<dyn FnOnce() + Send>>);

impl Spare {
    pub(super) fn new() -> io::Result<Self> {
        let (sender, receiver) = mpsc::channel::<Box<dyn FnOnce() + Send>>();
        thread::Builder::new().name("exitstack-drain".into()).spawn(move || {
            if let Ok(task) = receiver.recv() {
                task();
            }
        })?;
        Ok(Self(sender))
    }

    pub(super) fn run(self, task: impl FnOnce() + Send + 'static) {
        let _ = self.0.send(Box::new(task));
    }
}

/// Starts the keeper.
pub(super) fn start() -> io::Result<Sender<Job>> {
    let (sender, receiver) = mpsc::channel();
    let spare = Spare::new()?;
    thread::Builder::new().name("exitstack-keeper".into()).spawn(move || keep(&receiver, Some(spare)))?;
    Ok(sender)
}

fn keep(receiver: &Receiver<Job>, mut spare: Option<Spare>) {
    let mut jobs: Vec<Job> = Vec::new();
    loop {
        let mut next = None;
        jobs.retain_mut(|job| match job.look(&mut spare) {
            Look::Over => false,
            Look::At(at) => {
                next = Some(next.map_or(at, |next: Instant| next.min(at)));
                true
            }
        });
        let job = match next {
            Some(at) => receiver.recv_timeout(at.saturating_duration_since(Instant::now())),
            None => receiver.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match job {
            // Look at it at once.
            Ok(job) => jobs.push(job),
            // Time to look again.
            Err(RecvTimeoutError::Timeout) => {}
            // Another keeper was started at the same time, and this one has never had a job.
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

impl Job {
    /// Checks what the drain is waiting for, and gives that handler up if its time is over.
    pub(super) fn look(&mut self, spare: &mut Option<Spare>) -> Look {
        if self.watch.is_over() {
            return Look::Over;
        }
        let now = Instant::now();
        let mut next = now + TICK;
        if let Some(force) = self.force {
            if self.limits.expiry != Expiry::Wait
                && self.watch.stopped_since().is_some_and(|at| now.saturating_duration_since(at) > PATIENCE)
            {
                force();
            }
        }
        let Some(blocking) = self.watch.blocking() else { return Look::At(next) };
        if let Some(at) = self.limits.warn_after.and_then(|after| blocking.since.checked_add(after)) {
            if now < at {
                next = next.min(at);
            } else if !blocking.run.is_slow.swap(true, Ordering::Relaxed) {
                self.tell_slow(&blocking.run.running(self.watch.root.stack().count_all()));
            }
        }
        // A drain that goes on elsewhere waits for nothing that another one has given up; the process's end keeps to its
        // own limits, as it may still go on here.
        let by_signal = self.force.is_some() && *HURRIED.lock() > 0;
        if by_signal || blocking.is_stuck || (self.force.is_none() && blocking.is_given_up) {
            if self.give_up(&blocking, spare) && by_signal {
                // Each call counts for one drain, because another watched drain may be waiting for that one.
                let mut hurried = HURRIED.lock();
                *hurried = hurried.saturating_sub(1);
            }
            next = now;
        } else if self.limits.expiry != Expiry::Wait {
            match self.watch.due(&blocking.run, blocking.since) {
                Some(due) if now >= due => {
                    if self.limits.expiry == Expiry::Leave {
                        self.watch.stop();
                    }
                    self.give_up(&blocking, spare);
                    next = now;
                }
                Some(due) => next = next.min(due),
                None => {}
            }
        }
        Look::At(next)
    }

    fn tell_slow(&self, running: &Running) {
        match &self.observer {
            Some(observer) => observer.tell(Told::Slow(running.clone())),
            None => write(line(running, "is still running")),
        }
    }

    /// Gives up that handler; returns false if it has returned by now.
    fn give_up(&self, blocking: &Blocking, spare: &mut Option<Spare>) -> bool {
        let running = blocking.run.running(0);
        let Some(needs_relief) = self.watch.give_up(blocking) else { return false };
        if self.observer.is_none() && self.force.is_none() {
            write(line(&running, "was given up")); // otherwise it is reported as a failure
        }
        if needs_relief {
            self.relieve(spare);
        }
        true
    }

    /// Lets another thread go on with the drain.
    fn relieve(&self, spare: &mut Option<Spare>) {
        let Some(thread) = spare.take().or_else(|| Spare::new().ok()) else {
            // No thread can be started to go on with it.
            if let Some(force) = self.force {
                force();
            }
            return self.watch.abandon();
        };
        let job = self.clone();
        thread.run(move || {
            (job.relieved)();
            // Otherwise this thread was given up in turn, and yet another goes on.
            if let Ok(result) = job.watch.resume() {
                (job.finish)(result);
            }
        });
        *spare = Spare::new().ok();
    }
}

/// Writes a line on another thread. Without one, it is lost: this thread must not wait for a reader.
fn write(line: String) {
    if let Ok(lines) = lines() {
        lines.tell(Told::Line(line));
    }
}

/// Returns one line of text about a running handler.
fn line(running: &Running, what: &str) -> String {
    use std::fmt::Write;

    let mut text = String::new();
    let mut line = OneLine(&mut text);
    if let Some(path) = running.path() {
        let _ = write!(line, "{path}: ");
    }
    let _ = write!(line, "exit handler ");
    if let Some(name) = running.name() {
        let _ = write!(line, "`{name}` ");
    }
    let _ = write!(line, "registered at {} {what} after {:.1?}", running.location(), running.since().elapsed());
    if let Some(thread) = running.thread() {
        let _ = write!(line, ", on thread `{thread}`");
    }
    text.push('\n');
    text
}
