//! What interpreters promise: isolation, position in the parent, the current interpreter, refusals and paths.
//!
//! This is a separate binary because the report hook is global. It is set once, here, and collects all reports; each
//! test looks for those with its own interpreter's name. `EXITSTACK_SEED` seeds the random numbers. `EXITSTACK_MINUTES`
//! is how long a test may take before it counts as hung (1 if unset), for slow machines.

#![allow(missing_docs, reason = "a test")]
#![allow(unreachable_pub, reason = "`support` is shared with other tests")]

mod bounded;
mod current;
mod late;
mod load;
#[path = "../support/log.rs"]
mod log;
mod paths;
#[path = "../support/random.rs"]
mod random;
mod refused;
#[path = "../support/rude.rs"]
mod rude;
mod threads;
mod transactions;
mod tree;
#[path = "../support/watched.rs"]
mod watched;

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use exitstack::{CloseError, HandlerError, report};

use random::Random;

type Log = log::Log<String>;

static REPORTS: LazyLock<Mutex<Vec<HandlerError>>> = LazyLock::new(|| {
    report::set_hook(Box::new(|error| {
        REPORTS.lock().unwrap_or_else(PoisonError::into_inner).push(error.clone());
    }));
    Mutex::default()
});

/// Starts collecting reports.
fn file_reports() {
    LazyLock::force(&REPORTS);
}

/// Returns the reports whose path contains this name.
fn reports_of(name: &str) -> Vec<HandlerError> {
    let reports = REPORTS.lock().unwrap_or_else(PoisonError::into_inner);
    reports.iter().filter(|error| error.path().is_some_and(|path| path.contains(name))).cloned().collect()
}

/// The message of each failure, without its prefix.
fn messages(result: &Result<(), CloseError>) -> Vec<String> {
    result.as_ref().err().map_or(&[][..], CloseError::errors).iter().map(message).collect()
}

/// The last word of the failure's text.
fn message(error: &HandlerError) -> String {
    format!("{error:#}").rsplit(' ').next().unwrap_or_default().to_owned()
}

/// A number from an environment variable.
fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Runs `body` on a thread with a 2 MiB stack, as spawned threads have by default. If it hangs, the test fails.
fn within_a_minute<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, wait) = channel();
    let thread = thread::Builder::new().stack_size(2 << 20);
    let thread = thread.spawn(move || done.send(body())).expect("a thread");
    let minutes = setting("EXITSTACK_MINUTES").unwrap_or(1);
    match wait.recv_timeout(Duration::from_secs(60 * minutes)) {
        Ok(value) => value,
        Err(RecvTimeoutError::Timeout) => panic!("it hangs"),
        Err(RecvTimeoutError::Disconnected) => std::panic::resume_unwind(thread.join().expect_err("it panicked")),
    }
}

/// The random numbers for one thread.
fn random(thread: usize) -> Random {
    Random::stream(setting("EXITSTACK_SEED").unwrap_or(0x5eed), thread as u64)
}
