//! What this process has set up: limits, the keeper that enforces them, the observer, or the thread that writes lines
//! in its place.

use std::io;
use std::sync::mpsc::Sender;
use std::time::Duration;

use super::keeper::{self, Job};
use super::limits::Limits;
use super::observer::Observer;
use crate::sync::{PerProcess, global};
use crate::tree::turn_on;

/// What this process has set up.
#[derive(Clone, Default)]
pub(crate) struct Setup {
    pub(super) limits: Limits,
    pub(super) keeper: Option<Sender<Job>>,
    pub(super) observer: Option<Observer>,
    pub(super) lines: Option<Observer>,
}

global! {
    static SETUP: PerProcess<Setup> =
        PerProcess::new(Setup { limits: Limits::new(), keeper: None, observer: None, lines: None });
}

/// Returns what is set up now.
pub(super) fn setup() -> Setup {
    SETUP.lock().clone()
}

/// Returns the thread that writes lines, and starts it if there is none.
pub(super) fn lines() -> io::Result<Observer> {
    if let Some(lines) = setup().lines {
        return Ok(lines);
    }
    let started = Observer::of_lines()?;
    let (lines, unused) = keep_first(&mut SETUP.lock().lines, started);
    drop(unused);
    Ok(lines)
}

/// Waits until all lines are written, if that does not take long.
pub(super) fn settle_lines(patience: Duration) {
    setup().lines.iter().for_each(|lines| lines.settle(patience));
}

/// Sets the limits, and starts the keeper if there is none.
pub(super) fn limit(limits: Limits) -> io::Result<()> {
    lines()?; // beforehand: the keeper may have no thread left to start
    let keeper = match setup().keeper {
        Some(keeper) => keeper,
        None => keeper::start()?,
    };
    turn_on();
    let unused = {
        let mut setup = SETUP.lock();
        setup.limits = limits;
        keep_first(&mut setup.keeper, keeper).1
    };
    drop(unused);
    Ok(())
}

/// Keeps what this thread has started, unless another thread did so at the same time and was first: that one may be in use.
/// Returns what is kept, and what is not needed.
fn keep_first<T: Clone>(kept: &mut Option<T>, started: T) -> (T, Option<T>) {
    match kept {
        Some(kept) => (kept.clone(), Some(started)),
        None => (kept.insert(started).clone(), None),
    }
}

/// Sets the observer.
pub(super) fn observe(observer: Option<Observer>) {
    turn_on();
    let before = std::mem::replace(&mut SETUP.lock().observer, observer);
    drop(before);
}

#[cfg(all(test, not(all(loom, feature = "loom"))))]
mod tests {
    use super::keep_first;

    #[test]
    fn what_was_started_first_is_kept() {
        let mut kept = None;
        assert_eq!(keep_first(&mut kept, "first"), ("first", None));
        assert_eq!(keep_first(&mut kept, "second"), ("first", Some("second")));
        assert_eq!(kept, Some("first"));
    }
}
