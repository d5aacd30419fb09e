//! Ways out by a signal, or by an event of the console on Windows.

use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use exitstack::signals::{Signals, requested};
use exitstack::{Exit, process_stack, register};

use self::system::{deliver, send};
use crate::says;

const HUP: i32 = 1;
const INT: i32 = 2;
const TERM: i32 = 15;

/// Each signal counts, however soon it comes.
fn signals() -> Signals {
    system::prepare();
    Signals::new().repeat(Duration::ZERO)
}

/// Installs, and says which are caught.
fn install(signals: Signals) {
    let caught = signals.install().unwrap();
    println!("{}", caught.iter().map(i32::to_string).collect::<Vec<_>>().join("+"));
}

fn park() -> ! {
    loop {
        thread::park();
    }
}

/// Installs, registers, and dies by the signal in the end.
fn dies_by(signal: i32) -> ! {
    install(signals());
    process_stack().on_success(|| println!("succeeded"));
    process_stack().on_failure(|| println!("failed"));
    // In this time the process is ended, where its end is not held up.
    register(|| thread::sleep(Duration::from_millis(300)));
    register(|| println!("{:?}", requested()));
    send(signal);
    park()
}

/// Registers a handler that says this, sends the next signal, and never returns.
fn sticks(line: &'static str, next: i32) {
    register(move || {
        println!("{line}");
        send(next);
        park()
    });
}

/// Is the handler that a signal comes into, which a thread of the library answers meanwhile.
fn is_interrupted() {
    deliver(INT);
    while requested().is_none() {
        thread::yield_now();
    }
}

/// Lets another process run this case, and says how it ended.
fn watches(case: &str) {
    let program = std::env::current_exe().unwrap();
    let ended = Command::new(program).arg(case).stdout(Stdio::null()).status().unwrap();
    println!("{}", system::how(ended));
}

/// Does what the case of this name does, and returns; false if there is no such case.
pub(crate) fn leave(case: &str) -> bool {
    match case {
        "ctrl_c" => dies_by(INT),
        "terminated" => dies_by(TERM),
        "closed" => dies_by(HUP),
        #[cfg(windows)]
        "ctrl_break" => dies_by(system::BREAK),
        #[cfg(windows)]
        "logoff" => dies_by(system::LOGOFF),
        "ctrl_c_seen_by_its_parent" => watches("ctrl_c"),
        "exit_after_ctrl_c" => {
            signals().install().unwrap();
            register(|| Err(Exit(7)));
            says("B");
            deliver(INT);
            park()
        }
        "exit_after_closed" => {
            signals().install().unwrap();
            register(|| Err(Exit(7)));
            says("B");
            send(HUP);
            park()
        }
        "ctrl_c_twice" => {
            signals().install().unwrap();
            sticks("stuck", INT);
            send(INT);
            park()
        }
        "ctrl_c_three_times" => {
            signals().install().unwrap();
            sticks("again", INT);
            sticks("stuck", INT);
            send(INT);
            park()
        }
        "ctrl_c_and_grace" => {
            let (asked, when) = mpsc::channel();
            let request = move |signal| asked.send(signal).unwrap();
            signals().grace(Duration::from_secs(600)).on_request(request).install().unwrap();
            send(INT);
            println!("{}", when.recv().unwrap());
        }
        "ctrl_c_during_exit" => {
            signals().install().unwrap();
            register(is_interrupted);
        }
        "exit_and_ctrl_c_during_it" => {
            signals().install().unwrap();
            register(|| {
                is_interrupted();
                Err(Exit(7))
            });
        }
        "ctrl_c_is_not_caught" => {
            install(signals().only(&[TERM]));
            send(INT);
            park()
        }
        "ctrl_c_is_ignored" => {
            system::ignore_ctrl_c(true);
            install(signals());
            register(|| println!("{:?}", requested()));
            deliver(INT);
            system::ignore_ctrl_c(false); // it would have been noticed
            send(TERM);
            park()
        }
        "cannot_be_caught" => println!("{:?}", signals().only(&[INT, 9]).install().unwrap_err().kind()),
        "installed_twice" => {
            signals().install().unwrap();
            println!("{:?}", Signals::new().install().unwrap_err().kind());
        }
        _ => return false,
    }
    true
}

#[cfg(unix)]
mod system {
    use std::ffi::c_int;
    use std::os::unix::process::ExitStatusExt;

    use super::{ExitStatus, INT};

    unsafe extern "C" {
        fn raise(signal: c_int) -> c_int;
        fn signal(signal: c_int, action: usize) -> usize;
    }

    const SIG_IGN: usize = 1;

    pub(super) fn prepare() {}

    pub(super) fn send(signal: i32) {
        // SAFETY: takes any number.
        assert_eq!(unsafe { raise(signal) }, 0);
    }

    pub(super) fn deliver(signal: i32) {
        send(signal);
    }

    pub(super) fn ignore_ctrl_c(ignores: bool) {
        if ignores {
            // SAFETY: no handler is set.
            unsafe { signal(INT, SIG_IGN) };
        }
    }

    pub(super) fn how(ended: ExitStatus) -> String {
        format!("signal,{}", ended.signal().unwrap_or(0))
    }
}

/// An event comes as from the system, on a thread that is made for it. Where nobody is at the console, only Ctrl-C can be
/// asked for; `CtrlRoutine`, which calls a program's routines, is where a thread begins that is made for any event.
#[cfg(windows)]
mod system {
    use std::ffi::{CStr, c_char, c_void};
    use std::{mem, ptr, thread};

    use super::{ExitStatus, HUP, INT, TERM};

    pub(super) const BREAK: i32 = 21;
    pub(super) const LOGOFF: i32 = -1; // comes as TERM

    #[link(name = "kernel32")]
    unsafe extern "system" {
        fn AllocConsole() -> i32;
        fn FreeConsole() -> i32;
        fn GenerateConsoleCtrlEvent(event: u32, group: u32) -> i32;
        fn GetCurrentProcess() -> *mut c_void;
        fn GetModuleHandleA(name: *const c_char) -> *mut c_void;
        fn GetStdHandle(which: u32) -> *mut c_void;
        fn GetProcAddress(module: *mut c_void, name: *const c_char) -> *mut c_void;
        fn SetConsoleCtrlHandler(routine: *mut c_void, add: i32) -> i32;
        fn SetStdHandle(which: u32, handle: *mut c_void) -> i32;
        fn TerminateProcess(process: *mut c_void, status: u32) -> i32;
    }

    fn event_of(signal: i32) -> usize {
        match signal {
            INT => 0,
            BREAK => 1,
            HUP => 2,
            LOGOFF => 5,
            TERM => 6,
            _ => unreachable!("no such event"),
        }
    }

    /// Makes a console, before routines are set for it: without a terminal, the one that a program is started with is none.
    pub(super) fn prepare() {
        const STD_OUTPUT_HANDLE: u32 = 0_u32.wrapping_sub(11);
        const STD_ERROR_HANDLE: u32 = 0_u32.wrapping_sub(12);

        // SAFETY: no condition.
        let before = [STD_OUTPUT_HANDLE, STD_ERROR_HANDLE].map(|which| (which, unsafe { GetStdHandle(which) }));
        // SAFETY: no condition.
        unsafe { FreeConsole() };
        // SAFETY: no condition.
        assert_ne!(unsafe { AllocConsole() }, 0);
        for (which, handle) in before {
            // SAFETY: the handle is the one that it was, of a pipe or a file.
            unsafe { SetStdHandle(which, handle) };
        }
    }

    /// Calls the routines of this program, as a thread does that the system makes.
    fn call_routines(event: usize) {
        let (module, name): (&CStr, &CStr) = (c"kernelbase", c"CtrlRoutine");
        // SAFETY: the name is one.
        let module = unsafe { GetModuleHandleA(module.as_ptr()) };
        // SAFETY: the module is loaded in every process, and the name is one.
        let begins = unsafe { GetProcAddress(module, name.as_ptr()) };
        assert!(!begins.is_null());
        // SAFETY: the function is what a thread begins with, and is given the event in place of a pointer.
        let begins: extern "system" fn(usize) -> u32 = unsafe { mem::transmute(begins) };
        begins(event);
    }

    pub(super) fn send(signal: i32) {
        let event = event_of(signal);
        if event == 0 {
            // SAFETY: zero stands for all processes at this console.
            assert_ne!(unsafe { GenerateConsoleCtrlEvent(0, 0) }, 0);
            return;
        }
        thread::spawn(move || {
            call_routines(event);
            if event > 1 {
                // The system waits for no more than that the routines have returned.
                // SAFETY: no condition.
                let me = unsafe { GetCurrentProcess() };
                // SAFETY: the process is this one.
                unsafe { TerminateProcess(me, 99) };
            }
        });
    }

    /// Lets an event come on this thread, and returns when the routines have returned. There is no thread of the event then that
    /// ends while the process exits, by which Wine sometimes hangs.
    pub(super) fn deliver(signal: i32) {
        call_routines(event_of(signal));
    }

    /// Wine, unlike Windows, ignores every other event too.
    pub(super) fn ignore_ctrl_c(ignores: bool) {
        // SAFETY: null stands for Ctrl-C.
        assert_ne!(unsafe { SetConsoleCtrlHandler(ptr::null_mut(), ignores.into()) }, 0);
    }

    pub(super) fn how(ended: ExitStatus) -> String {
        format!("{:#x}", ended.code().unwrap_or(0))
    }
}
