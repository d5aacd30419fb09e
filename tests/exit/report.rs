//! What happens to reports: whatever standard error is and whatever the hook does, the drain continues and each failure
//! is reported once.

use std::fs::{self, File};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::fd::{AsRawFd, FromRawFd as _, OwnedFd};
use std::panic;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use exitstack::report::set_hook;
use exitstack::{ExitStack, HandlerError, process_stack, register};

use crate::Status::Code;
use crate::child::{c_exit, say, says};
use crate::fork::pid;
use crate::watched::Watched;
use crate::{Case, Ended, OK, case};

/// Both ends of a pipe: the one to read from, and the one to write to.
fn pipe() -> (File, File) {
    let mut ends = [0; 2];
    // SAFETY: fills the array, which has room for both.
    assert_eq!(unsafe { libc::pipe(ends.as_mut_ptr()) }, 0);
    // SAFETY: the descriptors were created above and have no other owner.
    let [reads, writes] = ends.map(|end| File::from(unsafe { OwnedFd::from_raw_fd(end) }));
    (reads, writes)
}

/// Replaces standard error, and returns the previous one.
fn replace_standard_error(by: &impl AsRawFd) -> File {
    // SAFETY: creates a descriptor.
    let before = unsafe { libc::dup(libc::STDERR_FILENO) };
    // SAFETY: duplicates open descriptors.
    assert_eq!(unsafe { libc::dup2(by.as_raw_fd(), libc::STDERR_FILENO) }, libc::STDERR_FILENO);
    // SAFETY: the descriptor was created above and has no other owner.
    File::from(unsafe { OwnedFd::from_raw_fd(before) })
}

fn set_nonblocking(file: &File) {
    // SAFETY: reads the flags of an open descriptor.
    let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
    // SAFETY: sets the flags of an open descriptor.
    assert_eq!(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) }, 0);
}

/// Whether the pipe is full.
fn is_full(writes: &File) -> bool {
    let mut file = libc::pollfd { fd: writes.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
    // SAFETY: one entry, which lives until the call returns.
    unsafe { libc::poll(&raw mut file, 1, 0) == 0 }
}

/// Once the pipe is full, reads from it a little at a time, until it has no writer any more.
fn read_slowly(mut reads: File, writes: File) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        while !is_full(&writes) {
            thread::yield_now();
        }
        drop(writes);
        let (mut text, mut part) = (Vec::new(), [0; 4096]);
        loop {
            match reads.read(&mut part) {
                Ok(0) => return text,
                Ok(length) => text.extend_from_slice(&part[..length]),
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
            thread::yield_now();
        }
    })
}

/// Sets what a signal does. A call of the system that it interrupts ends.
fn set_action(signal: i32, action: libc::sighandler_t) {
    // SAFETY: a `sigaction` of zeros is valid.
    let mut set: libc::sigaction = unsafe { std::mem::zeroed() };
    set.sa_sigaction = action;
    // SAFETY: the action is one of the system's constants, or a function that only changes an atomic.
    assert_eq!(unsafe { libc::sigaction(signal, &raw const set, std::ptr::null_mut()) }, 0);
}

/// Reports a failure to a pipe that is full, while signals interrupt the wait for a reader.
fn interrupted(is_blocking: bool) -> Ended {
    static INTERRUPTED: AtomicUsize = AtomicUsize::new(0);
    extern "C" fn interrupts(_: i32) {
        INTERRUPTED.fetch_add(1, Ordering::Relaxed);
    }
    let interrupts: extern "C" fn(i32) = interrupts;
    set_action(libc::SIGUSR1, interrupts as usize);
    let (mut reads, mut writes) = pipe();
    set_nonblocking(&writes);
    while writes.write(b"x").is_ok() {}
    if is_blocking {
        // SAFETY: sets the flags of an open descriptor.
        assert_eq!(unsafe { libc::fcntl(writes.as_raw_fd(), libc::F_SETFL, 0) }, 0);
    }
    let before = replace_standard_error(&writes);
    drop(writes);
    let waits = Watched::this();
    let reader = thread::spawn(move || {
        block(libc::SIGUSR1); // so it interrupts the other thread
        for times in 1..=3 {
            waits.until_it_sleeps();
            // SAFETY: no preconditions.
            assert_eq!(unsafe { libc::kill(pid(), libc::SIGUSR1) }, 0);
            while INTERRUPTED.load(Ordering::Relaxed) < times {
                thread::yield_now();
            }
        }
        let mut text = String::new();
        reads.read_to_string(&mut text).unwrap();
        text
    });
    ExitStack::new().register(|| Err("disk full"));
    replace_standard_error(&before);
    say(last_word(&reader.join().unwrap()));
    OK
}

/// A set of signals, filled by a C function.
fn signals(fill: impl FnOnce(*mut libc::sigset_t)) -> libc::sigset_t {
    let mut set = std::mem::MaybeUninit::zeroed();
    fill(set.as_mut_ptr());
    // SAFETY: a `sigset_t` is made of numbers, which may be zero.
    unsafe { set.assume_init() }
}

fn is_pending(signal: i32) -> bool {
    // SAFETY: fills the set.
    let pending = signals(|set| assert_eq!(unsafe { libc::sigpending(set) }, 0));
    // SAFETY: reads the set.
    unsafe { libc::sigismember(&raw const pending, signal) == 1 }
}

fn is_blocked(signal: i32) -> bool {
    // SAFETY: fills the set; null changes nothing.
    let change = |set| assert_eq!(unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), set) }, 0);
    let blocked = signals(change);
    // SAFETY: reads the set.
    unsafe { libc::sigismember(&raw const blocked, signal) == 1 }
}

fn block(signal: i32) {
    // SAFETY: changes the set; a zeroed set is empty.
    let set = signals(|set| assert_eq!(unsafe { libc::sigaddset(set, signal) }, 0));
    // SAFETY: reads the set.
    assert_eq!(unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) }, 0);
}

/// A file without a name, private to this process.
fn nameless_file() -> File {
    let path = std::env::temp_dir().join(format!("exitstack-report-{}", std::process::id()));
    let file = File::options().read(true).append(true).create_new(true).open(&path).unwrap();
    fs::remove_file(path).unwrap();
    file
}

/// Calls `last` after all handlers have run.
fn at_the_very_end(last: extern "C" fn()) {
    // SAFETY: a function that does not unwind. Registered first, it runs last.
    assert_eq!(unsafe { libc::atexit(last) }, 0);
}

/// When the handlers have run, says the default reports on standard output, each as its last word.
fn say_reports_at_the_end() {
    static REPORTS: OnceLock<File> = OnceLock::new();
    extern "C" fn say_them() {
        use std::os::unix::fs::FileExt as _;
        let mut text = [0; 10_000];
        let length = REPORTS.get().map_or(0, |file| file.read_at(&mut text, 0).unwrap_or_default());
        for line in String::from_utf8_lossy(&text[..length]).lines() {
            say(&format!("default: {}", last_word(line)));
        }
    }
    at_the_very_end(say_them);
    let file = REPORTS.get_or_init(nameless_file);
    drop(replace_standard_error(file));
    panic::set_hook(Box::new(|_| ()));
}

fn last_word(line: &str) -> &str {
    line.trim_end().rsplit(' ').next().unwrap_or_default()
}

fn say_failure(error: &HandlerError) {
    say(&format!("hook: {}", last_word(&format!("{error:#}"))));
}

fn fails(text: &'static str) {
    register(move || Err(text));
}

/// Sets a hook that says each failure and then does not return.
fn tell_and(then: fn() -> !) {
    set_hook(Box::new(move |error| {
        say_failure(error);
        then()
    }));
}

/// Registers four handlers, every other one of which fails.
fn two_fail() -> Ended {
    says("A");
    fails("two");
    says("B");
    fails("one");
    OK
}

/// Panics when dropped.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        panic::resume_unwind(Box::new(())); // a payload that owned memory would be leaked
    }
}

#[expect(clippy::too_many_lines, reason = "a table")]
pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("a_report_that_nobody_reads_stops_nothing", Code(0), &["B", "A", "removed"], || {
            static PATH: OnceLock<PathBuf> = OnceLock::new();
            extern "C" fn is_removed() {
                say(if PATH.get().is_some_and(|path| path.exists()) { "left" } else { "removed" });
            }
            at_the_very_end(is_removed);
            let name = format!("exitstack-removed-{}", std::process::id());
            let path = PATH.get_or_init(|| std::env::temp_dir().join(name));
            fs::write(path, "").unwrap();
            set_action(libc::SIGPIPE, libc::SIG_DFL);
            let (reads, writes) = pipe();
            drop((reads, replace_standard_error(&writes)));
            register(move || fs::remove_file(path));
            says("A");
            fails("upload failed");
            says("B");
            fails("and this");
            OK
        }),
        case(
            "a_report_takes_back_its_own_signal_alone",
            Code(0),
            &["pending: false, blocked: false", "pending: true, blocked: true"],
            || {
                let (reads, writes) = pipe();
                drop((reads, replace_standard_error(&writes)));
                for action in [libc::SIG_IGN, libc::SIG_DFL] {
                    set_action(libc::SIGPIPE, action);
                    ExitStack::new().register(|| Err("bad"));
                }
                let state = || {
                    let (pending, blocked) = (is_pending(libc::SIGPIPE), is_blocked(libc::SIGPIPE));
                    say(&format!("pending: {pending}, blocked: {blocked}"));
                };
                state();
                block(libc::SIGPIPE);
                // SAFETY: the signal is blocked.
                assert_eq!(unsafe { libc::raise(libc::SIGPIPE) }, 0);
                ExitStack::new().register(|| Err("bad"));
                state();
                OK
            },
        ),
        case("a_report_past_a_file_size_limit_stops_nothing", Code(0), &["B", "A", "10 bytes"], || {
            static FILE: OnceLock<File> = OnceLock::new();
            extern "C" fn length() {
                let length = FILE.get().map_or(0, |file| file.metadata().map_or(0, |about| about.len()));
                say(&format!("{length} bytes"));
            }
            at_the_very_end(length);
            drop(replace_standard_error(FILE.get_or_init(nameless_file)));
            let limit = libc::rlimit { rlim_cur: 10, rlim_max: 10 };
            // SAFETY: reads the limit.
            assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit) }, 0);
            says("A");
            fails("cut");
            says("B");
            fails("cut");
            OK
        }),
        #[cfg(target_os = "linux")]
        case("a_report_to_a_full_disk_stops_nothing", Code(0), &["B", "A"], || {
            drop(replace_standard_error(&File::options().write(true).open("/dev/full").unwrap()));
            says("A");
            fails("lost");
            says("B");
            fails("lost");
            OK
        }),
        case("a_report_waits_for_a_reader_that_is_slow", Code(0), &["200000 bytes, one line"], || {
            let (reads, writes) = pipe();
            set_nonblocking(&writes);
            let before = replace_standard_error(&writes);
            let reader = read_slowly(reads, writes);
            ExitStack::new().register(|| Err("E".repeat(200_000)));
            replace_standard_error(&before);
            let text = String::from_utf8(reader.join().unwrap()).unwrap();
            let lines = if text.find('\n') == Some(text.len() - 1) { "one line" } else { "lines" };
            say(&format!("{} bytes, {lines}", text.matches('E').count()));
            OK
        }),
        case("a_report_waits_on_after_a_signal", Code(0), &["full"], || interrupted(true)),
        case("a_report_without_a_reader_waits_on_after_a_signal", Code(0), &["full"], || interrupted(false)),
        // After that, nothing waits until the reader reads again.
        case("a_stopped_reader_costs_one_wait", Code(0), &["in time", "heard", "200000"], || {
            let (mut reads, writes) = pipe();
            set_nonblocking(&reads);
            set_nonblocking(&writes);
            let before = replace_standard_error(&writes);
            let began = Instant::now();
            let stack = ExitStack::new();
            for _ in 0..10 {
                stack.register(|| Err("x".repeat(100_000)));
            }
            drop(stack);
            say(if began.elapsed() < Duration::from_secs(15) { "in time" } else { "late" });
            let mut text = Vec::new();
            let _ = reads.read_to_end(&mut text); // ends where it would block
            ExitStack::new().register(|| Err("heard"));
            text.clear();
            let _ = reads.read_to_end(&mut text);
            say(last_word(&String::from_utf8_lossy(&text)));
            let reader = read_slowly(reads, writes);
            ExitStack::new().register(|| Err("E".repeat(200_000)));
            replace_standard_error(&before);
            say(&String::from_utf8_lossy(&reader.join().unwrap()).matches('E').count().to_string());
            OK
        }),
        // The hook. Here it calls C's exit itself, during the reports of a `close()`.
        case("a_hook_in_c_exit_hears_each_failure_once", Code(3), &["hook: one", "hook: two"], || {
            say_reports_at_the_end();
            tell_and(|| c_exit(3));
            register(|| c_exit(2));
            fails("two");
            fails("one");
            let _ = process_stack().close();
            say("never reached");
            OK
        }),
        case("a_hook_that_calls_c_exit_as_the_process_ends", Code(3), &["hook: one", "B", "hook: two", "A"], || {
            say_reports_at_the_end();
            tell_and(|| c_exit(3));
            two_fail()
        }),
        // Two threads in C's exit are about to report the same failure.
        case("a_failure_two_threads_report_is_told_once", Code(3), &["hook: one", "hook: two", "A"], || {
            say_reports_at_the_end();
            let (one, wait_one) = mpsc::channel();
            let (two, wait_two) = mpsc::channel();
            let wait_two = Mutex::new(wait_two);
            set_hook(Box::new(move |error| {
                say_failure(error);
                if format!("{error:#}").ends_with("one") {
                    one.send(()).unwrap();
                    wait_two.lock().unwrap().recv().unwrap();
                } else {
                    two.send(()).unwrap();
                }
            }));
            says("A");
            register(move || {
                thread::spawn(|| c_exit(3)); // would report both, and is in the hook with the first
                wait_one.recv().unwrap();
                c_exit(3) // is about to report the second too
            });
            fails("two");
            fails("one");
            let _ = process_stack().close();
            say("never reached");
            OK
        }),
        case("a_hook_that_calls_exit_has_told", Code(3), &["hook: one", "B", "hook: two", "A"], || {
            say_reports_at_the_end();
            tell_and(|| exitstack::exit(3));
            two_fail()
        }),
        // The hook receives each failure and panics, so the default report is made as well.
        case(
            "a_panicking_hook_leaves_all_to_the_default",
            Code(0),
            &["hook: one", "B", "hook: two", "A", "default: one", "default: two"],
            || {
                say_reports_at_the_end();
                tell_and(|| panic!("the hook"));
                two_fail()
            },
        ),
        case("a_hook_that_replaces_itself_has_told", Code(0), &["hook: one", "B", "next: two", "A"], || {
            say_reports_at_the_end();
            let bomb = Bomb;
            set_hook(Box::new(move |error| {
                let _captured = &bomb;
                say_failure(error);
                set_hook(Box::new(|error| say(&format!("next: {}", last_word(&format!("{error:#}"))))));
            }));
            two_fail()
        }),
    ]
}
