//! Threads that leave at the same time.

use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;

use exitstack::{exit, register};
use libtest_mimic::Trial;

use crate::child::{c_exit, say};
use crate::fork::fork;
use crate::{Ended, Status, run_child, runs, status_of};

const WAYS: [&str; 7] = ["std", "c", "exit", "std+c", "std+exit", "c+exit", "return+c"];

/// Every handler runs once and in order, and none is cut short. The last one says so, and any that is out of order says
/// that.
pub(crate) fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for way in WAYS {
        for (threads, handlers) in [(2, 100), (8, 100), (64, 100), (64, 10_000)] {
            let name = format!("{threads}_exits_by_{way}_run_{handlers}_handlers");
            trials.push(Trial::test(name, move || {
                let arguments = [way.to_owned(), threads.to_string(), handlers.to_string()];
                let bad: Vec<_> = (0..runs())
                    .map(|_| run_child("race", &arguments))
                    .filter(|output| output.stdout != b"all\n" || status_of(output) != Status::Code(0))
                    .collect();
                if bad.is_empty() {
                    Ok(())
                } else {
                    Err(format!("{} of {}, such as {:?}", bad.len(), runs(), bad[0]).into())
                }
            }));
        }
    }
    // No child hangs, whether another thread registers that handler just before the fork or during it.
    trials.push(Trial::test("the_first_handler_may_come_at_the_fork", || {
        let delays = (0..runs()).map(|run| [0, 30, 100, 300, 1000, 3000][run % 6].to_string());
        let bad: Vec<_> = delays
            .map(|delay| run_child("first", &[delay]))
            .filter(|output| output.stdout != b"child 0\n" || status_of(output) != Status::Code(0))
            .collect();
        if bad.is_empty() { Ok(()) } else { Err(format!("{} of {}, such as {:?}", bad.len(), runs(), bad[0]).into()) }
    }));
    trials
}

/// Forks while another thread registers the process's first handler, or a little later.
pub(crate) fn child_of_the_first_registration() -> Ended {
    let delay: u32 = std::env::args().nth(1).and_then(|delay| delay.parse().ok()).ok_or("a delay")?;
    let start = Barrier::new(2);
    thread::scope(|scope| {
        scope.spawn(|| {
            start.wait();
            register(|| ());
        });
        start.wait();
        (0..delay).for_each(|_| std::hint::spin_loop());
        let forked = fork(|| {
            register(|| ());
            std::process::exit(0)
        });
        say(&format!("child {}", forked.unwrap_or_default()));
    });
    Ok(ExitCode::SUCCESS)
}

fn leave(way: &str) {
    match way {
        "std" => std::process::exit(0),
        "c" => c_exit(0),
        "exit" => exit(0),
        _ => {} // returns from `main`
    }
}

pub(crate) fn child() -> Ended {
    static RAN: AtomicUsize = AtomicUsize::new(0);
    let arguments: Vec<String> = std::env::args().collect();
    let [_, way, threads, handlers] = &arguments[..] else { return Err("way, threads, handlers".into()) };
    let threads: usize = threads.parse().map_err(|_| "threads")?;
    let handlers: usize = handlers.parse().map_err(|_| "handlers")?;
    register(move || say(if RAN.load(Ordering::SeqCst) == handlers { "all" } else { "not all" }));
    for place in (0..handlers).rev() {
        register(move || {
            if RAN.load(Ordering::SeqCst) != place {
                say("out of order");
            }
            thread::yield_now(); // gives other threads a chance to get in
            RAN.fetch_add(1, Ordering::SeqCst);
        });
    }
    let ways: Vec<String> = way.split('+').map(str::to_owned).collect();
    let start = Arc::new(Barrier::new(threads));
    for thread in 1..threads {
        let (start, way) = (Arc::clone(&start), ways[thread % ways.len()].clone());
        thread::spawn(move || {
            start.wait();
            leave(if way == "return" { "c" } else { &way });
        });
    }
    start.wait();
    leave(&ways[0]);
    Ok(ExitCode::SUCCESS)
}
