//! One way out of a process, by the name of its case. What each must come to, on each system, stands in `expected`.

#[cfg(any(unix, windows))]
mod bounded;
#[cfg(target_os = "wasi")]
mod no_threads;
#[cfg(any(unix, windows))]
mod signals;

use std::ffi::c_int;
use std::process::ExitCode;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use exitstack::report::set_hook;
use exitstack::{Exit, Handler, HandlerId, Interpreter, register, run};

unsafe extern "C" {
    fn atexit(handler: extern "C" fn()) -> c_int;
    fn exit(status: c_int) -> !;
    fn _exit(status: c_int) -> !;
    fn putchar(character: c_int) -> c_int;
}

fn c_exit(status: c_int) -> ! {
    // SAFETY: the way out that is tested.
    unsafe { exit(status) }
}

/// Leaves something in C's buffer; not a line, which might go on at once.
fn c_keeps(character: u8) {
    // SAFETY: takes any character.
    unsafe { putchar(character.into()) };
}

/// Registers, with C, what another library would.
fn another_librarys_handler() {
    extern "C" fn handler() {
        println!("other");
    }
    // SAFETY: the handler is a function that does not unwind.
    assert_eq!(unsafe { atexit(handler) }, 0);
}

/// Registers a handler that says this.
fn says(line: &'static str) -> HandlerId {
    register(Handler::new(move || println!("{line}")).named(line))
}

/// Lets an interpreter that is never dropped refuse three handlers. Two of them are only counted.
fn refuses(name: &'static str) {
    let plugin = Interpreter::new(name);
    plugin.finalize().unwrap();
    (0..3).for_each(|_| _ = plugin.stack().register(|| ()));
    std::mem::forget(plugin);
}

/// Runs `body` on another thread, and waits for it if that is wanted.
#[cfg(not(target_os = "wasi"))]
fn on_another_thread(body: impl FnOnce() + Send + 'static, wait: bool) {
    let thread = thread::spawn(body);
    if wait {
        let _ = thread.join();
    }
}

/// There are no threads: the cases that need them are left out.
#[cfg(target_os = "wasi")]
fn on_another_thread(_body: impl FnOnce() + Send + 'static, _wait: bool) {
    unreachable!("no case with threads is run here")
}

/// Eight threads leave at once. Every handler runs once, in order, and to its end: the last one says so.
fn eight_threads_leave(leave: fn()) {
    static RAN: AtomicUsize = AtomicUsize::new(0);
    static START: Barrier = Barrier::new(8);
    register(|| println!("{}", if RAN.load(Ordering::SeqCst) == 100 { "all" } else { "some" }));
    for place in (0..100).rev() {
        register(move || {
            thread::yield_now(); // lets another thread in, if it can come in
            if RAN.fetch_add(1, Ordering::SeqCst) != place {
                println!("disorder");
            }
        });
    }
    for _ in 1..8 {
        let leaves = move || {
            START.wait();
            leave();
        };
        on_another_thread(leaves, false);
    }
    START.wait();
    leave();
}

#[allow(clippy::too_many_lines, reason = "a table; only pedantic lints mind")]
fn main() -> Result<ExitCode, String> {
    let case = std::env::args().nth(1).ok_or("which case?")?;
    another_librarys_handler();
    says("A");
    match &*case {
        "returns_ok" => {}
        "returns_err" => return Err("failed".into()),
        "panics" => panic!("in main"),
        "std_exit" => std::process::exit(4),
        "std_exit_on_a_thread" => on_another_thread(|| std::process::exit(5), true),
        "c_exit" => c_exit(7),
        "c_exit_on_a_thread" => on_another_thread(|| c_exit(8), true),
        "exit" => exitstack::exit(9),
        "exit_on_a_thread" => on_another_thread(|| exitstack::exit(10), true),
        "run" => return Ok(run(|| _ = says("B"))),
        "run_fails" => return Ok(run(|| Err::<(), _>("failed"))),
        "run_panics" => return Ok(run(|| -> Result<(), String> { panic!("in the body") })),
        "abort" => std::process::abort(),
        // SAFETY: the way out that is tested.
        "underscore_exit" => unsafe { _exit(6) },
        "registered_by_a_handler" => {
            register(|| {
                says("B");
                println!("C");
            });
        }
        "fails" => {
            register(|| Err("disk full"));
        }
        "panics_in_a_handler" => {
            register(|| panic!("disk full"));
            says("B");
        }
        "interpreter" => {
            let plugin = Interpreter::new("plugin");
            plugin.stack().register(|| println!("plugin"));
            plugin.stack().register(|| Err("disk full"));
            std::mem::forget(plugin);
            says("B");
        }
        "status_after_return" => {
            register(|| Err(Exit(8)));
            says("B");
        }
        "status_after_std_exit" => {
            register(|| Err(Exit(8)));
            std::process::exit(1)
        }
        "status_after_c_exit" => {
            register(|| Err(Exit(8)));
            c_exit(1)
        }
        "status_after_exit" => {
            register(|| Err(Exit(8)));
            exitstack::exit(1)
        }
        "status_and_cs_buffer" => {
            register(|| Err(Exit(8)));
            c_keeps(b'C');
        }
        "exit_in_a_handler" => {
            register(|| exitstack::exit(3));
            says("B");
        }
        "exit_in_a_handler_of_exit" => {
            register(|| exitstack::exit(3));
            exitstack::exit(1)
        }
        "c_exit_in_a_handler" => {
            register(|| c_exit(3));
            says("B");
        }
        "refusals_before_return" => refuses("plugin"),
        "refusals_before_status" => {
            refuses("plugin");
            register(|| Err(Exit(8)));
        }
        "refusals_before_exit" => {
            refuses("plugin");
            exitstack::exit(9)
        }
        "refusals_before_exits" => {
            ["a", "b", "c"].into_iter().for_each(refuses);
            set_hook(Box::new(|error| {
                println!("{}", error.to_string().contains("2 more"));
                exitstack::exit(1)
            }));
        }
        "eight_threads_exit" => eight_threads_leave(|| exitstack::exit(0)),
        "eight_threads_std_exit" => eight_threads_leave(|| std::process::exit(0)),
        "eight_threads_c_exit" => eight_threads_leave(|| c_exit(0)),
        #[cfg(any(unix, windows))]
        case if signals::leave(case) || bounded::leave(case) => {}
        _ => return Err(format!("no such case: {case}")),
    }
    Ok(ExitCode::SUCCESS)
}
