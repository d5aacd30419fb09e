//! Signals that end the process: SIGINT, SIGTERM and SIGHUP.
//!
//! By default such a signal ends the process on the spot, and no handler runs. A **program** that
//! [installs](Signals::install) this runs the handlers of the process stack first, on a thread of this crate, and then dies by
//! the signal, as a shell expects: a loop that is interrupted with Ctrl-C stops. **Libraries should leave this to the program.**
//!
//! ```no_run
//! use exitstack::shutdown::{Limits, set_limits};
//! use exitstack::signals::Signals;
//! use std::time::Duration;
//!
//! fn main() -> std::io::Result<()> {
//!     set_limits(Limits::new().within(Duration::from_secs(10)))?; // a second Ctrl-C does not wait that long
//!     Signals::new().install()?;
//!     exitstack::register(|| println!("cleaned up"));
//!     loop {
//!         std::thread::park(); // Ctrl-C prints "cleaned up", and `$?` is 130
//!     }
//! }
//! ```
//!
//! # What happens
//!
//! | signal | without [`grace`](Signals::grace) | with |
//! | --- | --- | --- |
//! | the first | the handlers run; the process dies by this signal | `main` is asked to return, with [`requested`] or [`on_request`](Signals::on_request) |
//! | the second | the handler that runs is given up, and the others run | the handlers run |
//! | the third | the process dies at once | the handler that runs is given up |
//! | the fourth | | the process dies at once |
//!
//! Signals that follow one within [`repeat`](Signals::repeat) do not count: one Ctrl-C may arrive twice, from the terminal
//! and from a wrapper.
//!
//! - The work has failed: `on_failure` handlers run.
//! - An [`Exit`](crate::Exit) that a handler returns decides the status. [`exit`](crate::exit) with a code does so too, in
//!   `main`, after the signal.
//! - Process 1, as in a container, ends with status 128 + the signal's number: the kernel spares it the signal.
//! - A signal that was ignored when the process started stays ignored, as with `nohup` and in background jobs. No signal mask is
//!   changed. SIGPIPE, SIGQUIT and the signals of crashes are left alone.
//! - What `print!` holds back is flushed for up to 100 ms: another thread may keep standard output locked, or nobody may
//!   read it.
//! - A forked child has the default actions, until it execs or installs its own.
//!
//! # Beside others
//!
//! `tokio::signal` and everything else that is built on signal-hook receives the signals too. **`ctrlc::set_handler` replaces
//! this silently if it is called later**, as does any other call of `sigaction`.
//!
//! # On Windows
//!
//! Windows has no signals. Its console tells a program of events, and each of them is given the number of a signal:
//!
//! | event | number |
//! | --- | --- |
//! | Ctrl-C | 2, SIGINT |
//! | Ctrl-Break | 21, SIGBREAK of C on Windows |
//! | the console is closed | 1, SIGHUP on Unix |
//! | logoff, shutdown of the system | 15, SIGTERM |
//!
//! - **About 5 seconds after the last two, Windows ends the process**, whatever still runs: [`grace`](Signals::grace) and
//!   [limits](crate::shutdown) together must be less. No further event may arrive in that time, so only limits give up a handler
//!   that does not return. What is printed to a closed console is lost.
//! - To die by a signal is to end with the status 0xC000013A, as a process does by default after these events. Nothing that DLLs
//!   or other libraries have registered for an exit is called. Where an [`Exit`](crate::Exit) decides the status, the process
//!   ends with `std::process::exit`.
//! - A process that ignores Ctrl-C, such as one started with `CREATE_NEW_PROCESS_GROUP`, goes on ignoring it. Windows has no
//!   way to ask, so [`install`](Signals::install) returns the number of Ctrl-C even then. Ctrl-Break cannot be ignored.
//! - Only services are told of a logoff or shutdown, and only if they have not loaded `user32.dll`.
//! - **If several libraries catch events, only the last to be installed receives them**, be it this one, `ctrlc` or
//!   `tokio::signal`. `AllocConsole`, `AttachConsole` and `FreeConsole` undo this silently: install afterwards.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use scopeguard::ScopeGuard;

use crate::process::by_signal as process;
use crate::{raw, shutdown};

/// Which signals end the process, and how.
///
/// ```no_run
/// use exitstack::signals::Signals;
/// use std::time::Duration;
///
/// let caught = Signals::new()
///     .grace(Duration::from_secs(5))
///     .on_request(|signal| eprintln!("signal {signal}: finishing"))
///     .install()?;
/// # let _ = caught;
/// # Ok::<(), std::io::Error>(())
/// ```
#[must_use = "signals do what they did before until they are installed"]
pub struct Signals {
    caught: Vec<i32>,
    grace: Duration,
    repeat: Duration,
    on_request: Option<Box<dyn FnMut(i32) + Send>>,
}

impl Signals {
    /// Creates a description of SIGINT, SIGTERM and SIGHUP, and on Windows of Ctrl-Break, without grace.
    ///
    /// ```
    /// use exitstack::signals::Signals;
    ///
    /// let caught = Signals::new().install()?;
    /// println!("{caught:?}"); // on Unix, [2, 15, 1]; fewer under `nohup`
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn new() -> Self {
        Self {
            caught: raw::ENDING.to_vec(),
            grace: Duration::ZERO,
            repeat: Duration::from_millis(500),
            on_request: None,
        }
    }

    /// Sets which signals are caught.
    ///
    /// ```
    /// use exitstack::signals::Signals;
    ///
    /// const SIGTERM: i32 = 15;
    ///
    /// Signals::new().only(&[SIGTERM]).install()?; // Ctrl-C still kills
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn only(mut self, signals: &[i32]) -> Self {
        self.caught = signals.to_vec();
        self
    }

    /// Sets how long `main` may go on after the first signal before the handlers run.
    ///
    /// If it returns or exits by then, the handlers run there as usual, and the process dies by the signal afterwards.
    ///
    /// ```no_run
    /// use exitstack::signals::{Signals, requested};
    /// use std::time::Duration;
    ///
    /// fn main() -> std::io::Result<()> {
    ///     Signals::new().grace(Duration::from_secs(5)).install()?;
    ///     while requested().is_none() {
    ///         std::thread::sleep(Duration::from_millis(10)); // a piece of the work
    ///     }
    ///     Ok(())
    /// }
    /// ```
    pub fn grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// Sets for how much time after a signal that counts no other one does. The default is 500 ms.
    ///
    /// ```
    /// use exitstack::signals::Signals;
    /// use std::time::Duration;
    ///
    /// Signals::new().repeat(Duration::from_secs(1)).install()?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn repeat(mut self, repeat: Duration) -> Self {
        self.repeat = repeat;
        self
    }

    /// Sets what is called at the first signal, before the grace begins, on a thread of this crate.
    ///
    /// **The grace and the handlers begin when it has returned**, so it should only pass the request on. It is not a signal
    /// handler, so it may call any function. If it panics, the panic is caught.
    ///
    /// ```no_run
    /// use exitstack::signals::Signals;
    /// use std::sync::mpsc;
    /// use std::time::Duration;
    ///
    /// fn main() -> std::io::Result<()> {
    ///     let (sender, requests) = mpsc::channel();
    ///     let ask = move |signal| drop(sender.send(signal));
    ///     Signals::new().grace(Duration::from_secs(5)).on_request(ask).install()?;
    ///     let _signal = requests.recv(); // a second one does not come here
    ///     Ok(())
    /// }
    /// ```
    pub fn on_request(mut self, request: impl FnMut(i32) + Send + 'static) -> Self {
        self.on_request = Some(Box::new(request));
        self
    }

    /// Catches the signals from now on, and returns those that are caught: not the ones that are ignored.
    ///
    /// # Errors
    ///
    /// Returns an error if this has succeeded before in this process, if one of the signals cannot be caught (SIGKILL and
    /// SIGSEGV are among them, and on Windows each that is not in the [table](self#on-windows)), or if no thread can be
    /// started. No signal is caught then, and this may be called again.
    ///
    /// ```
    /// use exitstack::signals::Signals;
    ///
    /// Signals::new().install()?;
    /// assert!(Signals::new().install().is_err());
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn install(self) -> io::Result<Vec<i32>> {
        static INSTALLED_IN: AtomicUsize = AtomicUsize::new(0);

        let mut caught = Vec::new();
        for &signal in &self.caught {
            if !raw::is_ignored(signal)? {
                caught.push(signal);
            }
        }
        let process = raw::epoch();
        if INSTALLED_IN.swap(process, Ordering::AcqRel) == process {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "signals are installed already"));
        }
        let failed = scopeguard::guard(Arc::new(Draining::default()), |draining| {
            draining.set(Step::GaveUp); // the thread that waits there finds no signal, and ends
            INSTALLED_IN.store(0, Ordering::Release);
        });
        shutdown::ensure_keeper()?;
        process::arm();
        let (grace, repeat) = (self.grace, self.repeat);
        let first = if grace.is_zero() { Step::Drains } else { Step::Asked };
        let (sender, receiver) = mpsc::channel();
        // Both threads run before a signal is caught: one that nobody answered would be lost. Nor can a thread that exits
        // start one.
        let draining = Arc::clone(&failed);
        thread::Builder::new().name("exitstack-drain".into()).spawn(move || draining.run(grace, self.on_request))?;
        let draining = Arc::clone(&failed);
        thread::Builder::new().name("exitstack-sig".into()).spawn(move || {
            if let Ok(incoming) = receiver.recv() {
                answer(incoming, first, repeat, &draining);
            }
        })?;
        let _ = sender.send(raw::catch(&caught)?);
        drop(ScopeGuard::into_inner(failed));
        Ok(caught)
    }
}

impl Default for Signals {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Signals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signals")
            .field("caught", &self.caught)
            .field("grace", &self.grace)
            .field("repeat", &self.repeat)
            .finish_non_exhaustive()
    }
}

/// Returns the signal that has asked this process to end, if one has.
///
/// ```
/// assert_eq!(exitstack::signals::requested(), None);
/// ```
pub fn requested() -> Option<i32> {
    process::signal()
}

/// What the thread that drains waits for.
#[derive(Default)]
struct Draining {
    step: Mutex<Step>,
    changed: Condvar,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    #[default]
    Idle,
    /// `main` was asked to return.
    Asked,
    /// The handlers run.
    Drains,
    /// What ran was given up.
    GaveUp,
}

impl Draining {
    fn set(&self, step: Step) {
        *self.step.lock().unwrap_or_else(PoisonError::into_inner) = step;
        self.changed.notify_all();
    }

    fn get(&self) -> Step {
        *self.step.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the first signal, then for the end of the grace or for the second; then drains and ends the process.
    fn run(&self, grace: Duration, on_request: Option<Box<dyn FnMut(i32) + Send>>) {
        let step = self.step.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.changed.wait_while(step, |step| *step == Step::Idle).unwrap_or_else(PoisonError::into_inner));
        let Some(signal) = requested() else { return };
        if let Some(mut request) = on_request {
            let called = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| request(signal)));
            let _ = called.map_err(crate::panics::discard);
            crate::panics::discard(request); // the drop of a capture may panic, too
        }
        let step = self.step.lock().unwrap_or_else(PoisonError::into_inner);
        let waits = |step: &mut Step| *step == Step::Asked;
        drop(self.changed.wait_timeout_while(step, grace, waits).unwrap_or_else(PoisonError::into_inner));
        {
            let mut step = self.step.lock().unwrap_or_else(PoisonError::into_inner);
            *step = (*step).max(Step::Drains);
        }
        process::end_by_signal();
    }
}

/// Takes the process one step further at each signal, to begin with to the `first`.
fn answer(mut incoming: raw::Incoming, first: Step, repeat: Duration, draining: &Draining) {
    let mut last: Option<Instant> = None; // that counted: who presses Ctrl-C without a pause wants to be heard
    for signal in incoming.forever() {
        let now = Instant::now();
        if last.is_some_and(|last| now.duration_since(last) < repeat) {
            continue;
        }
        last = Some(now);
        match draining.get() {
            Step::Idle => {
                process::note_signal(signal);
                draining.set(first);
            }
            Step::Asked => draining.set(Step::Drains),
            Step::Drains => {
                draining.set(Step::GaveUp);
                shutdown::hurry();
            }
            Step::GaveUp => raw::die_by(requested().unwrap_or(signal)),
        }
    }
}
