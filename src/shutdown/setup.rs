//! What this process has set up: limits, the keeper that enforces them, the observer.

use std::io;
use std::sync::mpsc::Sender;

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
}

global! {
    static SETUP: PerProcess<Setup> = PerProcess::new(Setup { limits: Limits::new(), keeper: None, observer: None });
}

/// Returns what is set up now.
pub(super) fn setup() -> Setup {
    SETUP.lock().clone()
}

/// Sets the limits, and starts the keeper if there is none.
pub(super) fn limit(limits: Limits) -> io::Result<()> {
    let keeper = match setup().keeper {
        Some(keeper) => keeper,
        None => keeper::start()?,
    };
    turn_on();
    let before = {
        let mut setup = SETUP.lock();
        setup.limits = limits;
        setup.keeper.replace(keeper)
    };
    drop(before);
    Ok(())
}

/// Sets the observer.
pub(super) fn observe(observer: Option<Observer>) {
    turn_on();
    let before = std::mem::replace(&mut SETUP.lock().observer, observer);
    drop(before);
}
