//! The events of a console on Windows, which has no signals.
//!
//! **Need.** A console tells a process of Ctrl-C, Ctrl-Break, that it is closed, a logoff and a shutdown. By default each of
//! them ends the process on the spot.
//!
//! **Mechanism.** The system calls a routine for each event, on a new thread. The routine passes the event on to a thread of
//! this crate, as the number of a signal, and reports it as handled. After one of the last three events the system ends the
//! process as soon as the routine returns. So there it does not return, and the handlers run while it blocks, until the process
//! ends or the system's time limit, about 5 seconds, is over.
//!
//! **Why the routine is safe to call.** It runs on an ordinary thread, which may wait and allocate. It is a function of a
//! module that stays loaded, takes a number, and refers only to a static. A panic could not leave it: it would abort. The
//! one function of the system is declared here, with the prototype of its documentation.

use std::ffi::c_int;
use std::io;
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use super::system;

// The numbers that C uses on Windows. SIGHUP is not among them, and has its number on Unix.
const SIGHUP: c_int = 1;
const SIGINT: c_int = 2;
const SIGTERM: c_int = 15;
const SIGBREAK: c_int = 21;

/// The signals that ask a process to end.
pub(crate) const ENDING: [c_int; 4] = [SIGINT, SIGTERM, SIGHUP, SIGBREAK];

const CTRL_C_EVENT: u32 = 0;
const CTRL_BREAK_EVENT: u32 = 1;
const CTRL_CLOSE_EVENT: u32 = 2;
const CTRL_LOGOFF_EVENT: u32 = 5;
const CTRL_SHUTDOWN_EVENT: u32 = 6;

/// The status of a process that an event has ended, as others see it: 0xC000013A.
const STATUS_CONTROL_C_EXIT: u32 = 0xC000_013A;

const TRUE: i32 = 1;
const FALSE: i32 = 0;

/// How many events may wait to be answered. Further ones are dropped, as signals are that are pending already.
const WAITING: usize = 16;

type Routine = extern "system" fn(event: u32) -> i32;

#[link(name = "kernel32")]
unsafe extern "system" {
    fn SetConsoleCtrlHandler(routine: Option<Routine>, add: i32) -> i32;
}

/// What the routine knows.
struct Caught {
    signals: Vec<c_int>,
    answers: SyncSender<c_int>,
}

static CAUGHT: OnceLock<Caught> = OnceLock::new();

/// The events that have come, under the numbers of signals.
pub(crate) struct Incoming(Receiver<c_int>);

impl Incoming {
    /// Waits for each of them.
    pub(crate) fn forever(&mut self) -> impl Iterator<Item = c_int> {
        self.0.iter()
    }
}

/// Returns false, or an error if no event has this number.
///
/// A process can ignore Ctrl-C, and its children inherit that. The system has no way to ask whether it does, and does not
/// call the routine then.
pub(crate) fn is_ignored(signal: c_int) -> io::Result<bool> {
    if ENDING.contains(&signal) {
        return Ok(false);
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, format!("signal {signal} cannot be caught")))
}

/// Catches these signals from now on.
pub(crate) fn catch(signals: &[c_int]) -> io::Result<Incoming> {
    let (answers, incoming) = sync_channel(WAITING);
    if CAUGHT.set(Caught { signals: signals.to_vec(), answers }).is_err() {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    if !system::keep_loaded() {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the routine is a function of this module, which stays loaded, and it may be called at any time from now on.
    if unsafe { SetConsoleCtrlHandler(Some(routine), TRUE) } == FALSE {
        return Err(io::Error::last_os_error());
    }
    Ok(Incoming(incoming))
}

/// Called by the system for each event. Returns whether it is handled; if not, the system calls the routine that was added
/// before this one, and in the end its own, which ends the process.
extern "system" fn routine(event: u32) -> i32 {
    let (signal, ends_process) = match event {
        CTRL_C_EVENT => (SIGINT, false),
        CTRL_BREAK_EVENT => (SIGBREAK, false),
        CTRL_CLOSE_EVENT => (SIGHUP, true),
        CTRL_LOGOFF_EVENT | CTRL_SHUTDOWN_EVENT => (SIGTERM, true),
        _ => return FALSE,
    };
    let Some(caught) = CAUGHT.get().filter(|caught| caught.signals.contains(&signal)) else { return FALSE };
    let _is_full = caught.answers.try_send(signal);
    if ends_process {
        super::park() // the process ends while this waits
    }
    TRUE
}

/// Ends this process as an event does by default.
pub(crate) fn die_by(_signal: c_int) -> ! {
    system::end_now(c_int::from_ne_bytes(STATUS_CONTROL_C_EXIT.to_ne_bytes()))
}
