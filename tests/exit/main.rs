//! Every way out of a process, each in a child process. This binary runs itself with the case's name and checks the
//! child's output and its exit status. It has `harness = false`, because the cases need `main` for themselves.
//!
//! `EXITSTACK_RUNS` sets how often racing cases run (13 to 100 times if unset), `EXITSTACK_MINUTES` after how many
//! minutes a child counts as hung (1), and `EXITSTACK_RUNNER` the command that runs the children, if the system cannot
//! run this binary by itself.

#![allow(missing_docs, reason = "a test")]
#![allow(unsafe_code, reason = "C's exit, fork and signals are what is tested")]
#![allow(unreachable_pub, reason = "`watched` is shared with other tests")]
#![cfg(unix)]

mod child;
mod fork;
mod hooks;
mod limits;
mod loaded;
mod race;
#[cfg(feature = "signals")]
#[path = "../support/random.rs"]
mod random;
mod report;
mod resume;
#[cfg(feature = "signals")]
mod signals;
mod transaction;
#[path = "../support/watched.rs"]
mod watched;
mod ways;

use std::process::{Command, ExitCode, Output, Stdio};

use libtest_mimic::{Arguments, Failed, Trial};

/// What `main` returns in a child. `Err` ends it like any `main` that returns `Err`.
type Ended = Result<ExitCode, String>;

const OK: Ended = Ok(ExitCode::SUCCESS);

/// A child's program, and its expected result.
struct Case {
    name: &'static str,
    child: fn() -> Ended,
    /// The accepted statuses.
    statuses: Vec<Status>,
    /// Standard output, line by line.
    out: Vec<String>,
    /// Texts that standard error must contain.
    err: Vec<&'static str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    Code(i32),
    Signal(i32),
}

fn case(name: &'static str, status: Status, out: &[&str], child: fn() -> Ended) -> Case {
    Case {
        name,
        child,
        statuses: vec![status],
        out: out.iter().map(|line| (*line).to_owned()).collect(),
        err: Vec::new(),
    }
}

impl Case {
    /// Also accepts another status: if several threads leave, the status may be that of any of them.
    fn or(mut self, status: Status) -> Self {
        self.statuses.push(status);
        self
    }

    fn err(mut self, text: &'static str) -> Self {
        self.err.push(text);
        self
    }

    fn check(&self) -> Result<(), Failed> {
        let output = run_child(self.name, &[]);
        let out = String::from_utf8_lossy(&output.stdout).into_owned();
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        let status = status_of(&output);
        let shown = || format!("{status:?}\n--- stdout\n{out}--- stderr\n{err}---");
        if !self.statuses.contains(&status) {
            return Err(format!("expected {:?}, got {}", self.statuses, shown()).into());
        }
        if out.lines().collect::<Vec<_>>() != self.out {
            return Err(format!("expected {:?}, got {}", self.out, shown()).into());
        }
        match self.err.iter().find(|text| !err.contains(**text)) {
            Some(text) => Err(format!("expected {text:?} on standard error, got {}", shown()).into()),
            None => Ok(()),
        }
    }
}

fn status_of(output: &Output) -> Status {
    use std::os::unix::process::ExitStatusExt;
    let status = output.status;
    status.code().map_or_else(|| Status::Signal(status.signal().unwrap_or_default()), Status::Code)
}

/// A command that runs another command, and kills it if it hangs.
fn timeout() -> Command {
    let mut command = Command::new("timeout");
    let minutes = std::env::var("EXITSTACK_MINUTES").unwrap_or_else(|_| "1".into());
    command.arg("--signal=KILL").arg(minutes + "m");
    command
}

/// Runs a case's child.
fn run_child(name: &str, arguments: &[String]) -> Output {
    let me = std::env::current_exe().expect("a test has a path");
    let mut command = timeout();
    let runner = std::env::var("EXITSTACK_RUNNER").unwrap_or_default();
    command.args(runner.split_whitespace()).arg(me);
    command
        .env("EXITSTACK_CASE", name)
        .env("RUST_BACKTRACE", "0")
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("the child starts")
}

fn runs() -> usize {
    runs_or(20)
}

fn runs_or(unset: usize) -> usize {
    std::env::var("EXITSTACK_RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(unset)
}

fn minutes() -> u32 {
    std::env::var("EXITSTACK_MINUTES").ok().and_then(|minutes| minutes.parse().ok()).unwrap_or(1)
}

fn can_run(case: &Case) -> bool {
    // `pthread_atfork` hooks do not notice it.
    !(cfg!(exitstack_no_wipe) && case.name.starts_with("a_raw_clone"))
        // How to run out of threads is only known on Linux.
        && (cfg!(target_os = "linux") || !case.name.starts_with("without_threads"))
}

fn main() -> Ended {
    let mut cases = ways::cases();
    for more in [report::cases(), resume::cases(), fork::cases(), hooks::cases(), transaction::cases(), limits::cases()]
    {
        cases.extend(more);
    }
    cases.retain(can_run);
    if let Ok(name) = std::env::var("EXITSTACK_CASE") {
        match &*name {
            "race" => return race::child(),
            "first" => return race::child_of_the_first_registration(),
            "transaction" => return transaction::child(),
            "limits" => return limits::child(),
            "slow" => return limits::child_that_is_slow(),
            #[cfg(feature = "signals")]
            "signals" => return signals::child_that_races(),
            #[cfg(feature = "signals")]
            "signals_ignored" => return signals::child_with_ignored(),
            #[cfg(feature = "signals")]
            "signals_decided_late" => return signals::child_that_decides_late(),
            #[cfg(feature = "signals")]
            "signals_to_the_group" => return signals::child_of_a_shell(),
            _ => {}
        }
        #[cfg(feature = "signals")]
        cases.extend(signals::cases());
        let case = cases.iter().find(|case| case.name == name).ok_or("no such case")?;
        return (case.child)();
    }
    let mut trials: Vec<Trial> = cases.into_iter().map(|case| Trial::test(case.name, move || case.check())).collect();
    trials.extend(race::trials());
    trials.extend(transaction::trials());
    trials.extend(limits::trials());
    trials.extend(loaded::trials());
    #[cfg(feature = "signals")]
    trials.extend(signals::trials());
    Ok(libtest_mimic::run(&Arguments::from_args(), trials).exit_code())
}
