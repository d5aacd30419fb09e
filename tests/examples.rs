//! Runs every example as a program, and checks its output, its exit status and what it leaves behind.
//!
//! `cargo test` builds the examples first; they are next to this test's own executable.

#![cfg(all(unix, not(loom), not(miri)))]

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::fd::FromRawFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::ptr;

use exitstack::ExitStack;

/// What a program leaves when it has ended.
struct Ended {
    status: Option<i32>,
    stdout: String,
    stderr: String,
}

/// An example to be run in `directory`, which is also where it puts temporary files.
fn command(example: &str, args: &[&str], directory: &Path) -> Command {
    let me = std::env::current_exe().unwrap();
    let program = me.ancestors().nth(2).unwrap().join("examples").join(example);
    assert!(program.exists(), "{} is not built: a plain `cargo test` does it", program.display());
    let mut command = Command::new(program);
    command.args(args).current_dir(directory).env("TMPDIR", directory).env_remove("RUST_BACKTRACE");
    command
}

fn run(example: &str, args: &[&str], directory: &Path) -> Ended {
    let output = command(example, args, directory).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ended { status: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// Creates an empty directory for `body`, and removes it afterwards.
fn in_directory(name: &str, body: impl FnOnce(&Path)) {
    let directory = std::env::temp_dir().join(format!("exitstack-{name}-{}", std::process::id()));
    fs::create_dir(&directory).unwrap();
    let stack = ExitStack::new();
    stack.register(|| fs::remove_dir_all(&directory));
    body(&directory);
}

fn names(directory: &Path) -> Vec<PathBuf> {
    let mut names: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into()).collect();
    names.sort();
    names
}

/// Checks that an example without arguments prints this, succeeds, and leaves nothing behind.
fn prints(example: &str, expected: &str) {
    in_directory(example, |directory| {
        let ended = run(example, &[], directory);
        assert_eq!(ended.stdout, expected);
        assert_eq!((ended.status, &*ended.stderr), (Some(0), ""));
        assert!(names(directory).is_empty(), "{:?}", names(directory));
    });
}

/// Runs the counter on a file with the content `before` (or none), and checks its status and the file's content
/// afterwards.
fn counts(before: Option<&str>, args: &[&str], status: i32, after: Option<&str>) -> Ended {
    let mut ended = None;
    let name = format!("counter-{}", std::thread::current().name().unwrap_or_default());
    in_directory(&name, |directory| {
        let file = directory.join("counterfile");
        before.inspect(|text| fs::write(&file, text).unwrap());
        let counted = run("counter", args, directory);
        assert_eq!(counted.status, Some(status), "{}", counted.stderr);
        assert_eq!(fs::read_to_string(&file).ok().as_deref(), after);
        let only = if after.is_some() { vec![PathBuf::from("counterfile")] } else { vec![] };
        assert_eq!(names(directory), only, "nothing stays beside it");
        ended = Some(counted);
    });
    ended.unwrap()
}

#[test]
fn the_counter_starts_at_zero_without_a_file() {
    let ended = counts(None, &[], 0, Some("1"));
    assert_eq!((&*ended.stdout, &*ended.stderr), ("0 + 1 = 1\n", ""));
}

#[test]
fn the_counter_adds_the_number_given() {
    let ended = counts(Some("41\n"), &["5"], 0, Some("46"));
    assert_eq!(ended.stdout, "41 + 5 = 46\n");
    counts(Some("41"), &["-42"], 0, Some("-1"));
}

/// The count continues from run to run.
#[test]
fn the_counter_counts_on_in_the_file_it_is_told() {
    in_directory("counter-path", |directory| {
        let path = directory.join("visits.txt");
        let path = path.to_str().unwrap();
        for (run_on, expected) in [(vec![path], "1"), (vec![path, "10"], "11"), (vec!["100", path], "111")] {
            assert_eq!(run("counter", &run_on, directory).status, Some(0));
            assert_eq!(fs::read_to_string(path).unwrap(), expected);
        }
        assert_eq!(names(directory), [PathBuf::from("visits.txt")]);
    });
}

#[test]
fn the_counter_saves_when_process_exit_ends_it() {
    let ended = counts(Some("7"), &["3", "--exit", "5"], 5, Some("10"));
    assert_eq!(ended.stderr, "");
    counts(Some("7"), &["--exit", "0"], 0, Some("8"));
}

#[test]
fn the_counter_saves_when_a_panic_ends_it() {
    let ended = counts(Some("7"), &["--panic", "counterfile", "2"], 101, Some("9"));
    assert!(ended.stderr.contains("as you asked"), "{}", ended.stderr);
}

/// It replaces the file with a new one.
#[test]
fn the_counter_never_writes_into_its_file() {
    in_directory("counter-atomic", |directory| {
        let (file, old) = (directory.join("counterfile"), directory.join("old"));
        fs::write(&file, "7").unwrap();
        fs::hard_link(&file, &old).unwrap();
        assert_eq!(run("counter", &[], directory).status, Some(0));
        assert_eq!(fs::read_to_string(file).unwrap(), "8");
        assert_eq!(fs::read_to_string(old).unwrap(), "7", "what had the file open sees the old count, whole");
    });
}

/// Counting in it is an error.
#[test]
fn a_file_without_a_number_stays_as_it_was() {
    for text in ["", "seven", "1 2", "9223372036854775808"] {
        let ended = counts(Some(text), &[], 1, Some(text));
        assert_eq!((&*ended.stdout, &*ended.stderr), ("", "Error: \"counterfile holds no number\"\n"));
    }
    let full = i64::MAX.to_string();
    assert!(counts(Some(&full), &[], 1, Some(&full)).stderr.contains("full"));
}

#[test]
fn the_counter_says_how_it_is_used_if_asked() {
    for args in [vec!["--help"], vec!["counterfile", "3", "--help"], vec!["--help", "--nonsense"]] {
        let ended = counts(Some("7"), &args, 0, Some("7"));
        assert!(ended.stdout.starts_with("usage: counter [PATH]"), "{}", ended.stdout);
        assert_eq!(ended.stderr, "");
    }
}

#[test]
fn the_counter_says_how_it_is_used_if_misused() {
    let misuses = [
        (vec!["--exit"], "--exit needs a number"),
        (vec!["--exit", "soon"], "--exit needs a number"),
        (vec!["--nonsense"], "unexpected argument \"--nonsense\""),
        (vec!["one", "two"], "unexpected argument \"two\""),
    ];
    for (args, why) in misuses {
        let ended = counts(Some("7"), &args, 2, Some("7"));
        assert!(ended.stderr.starts_with(&format!("counter: {why}\nusage: counter [PATH]")), "{}", ended.stderr);
        assert_eq!(ended.stdout, "");
    }
}

/// The failure is reported.
#[test]
fn a_count_that_cannot_be_saved_is_status_1() {
    in_directory("counter-unsaved", |directory| {
        let ended = run("counter", &["missing/counterfile"], directory);
        assert_eq!((ended.status, &*ended.stdout), (Some(1), "0 + 1 = 1\n"));
        let report = "process: exit handler `save the count` registered at examples/counter.rs:";
        assert!(ended.stderr.starts_with(report), "{}", ended.stderr);
        assert_eq!(ended.stderr.lines().count(), 1, "{}", ended.stderr);
    });
}

#[test]
fn goodbye() {
    prints(
        "goodbye",
        "\
2 waves taken back
0 the second time
taken back by its id: true
hello
(waves)
Goodbye Walter, it was loud to meet you.
Goodbye Donny, it was nice to meet you.
",
    );
}

#[test]
fn resources() {
    prints(
        "resources",
        "\
three files:
  open a
  open b
  open c
  3 to close
  sync and close c
  sync and close b
  sync and close a
the second of these is there already:
  open d
  sync and close d
  failed, as expected: true
one that fails to close:
  closed before it
  draft 2 was not saved
",
    );
}

#[test]
fn rollback() {
    prints(
        "rollback",
        "\
1.0, with its manual:
  1. make its directory
  2. list it
  3. copy the manual
  1.0 is out
  (done, one way or the other)
1.1, whose manual is missing:
  1. make its directory
  2. list it
  3. copy the manual
  undo 2
  undo 1
  (done, one way or the other)
  the error is the step's own: true
listed: 1.0
1.1 left a directory: false
1.1, announced:
  1. write the news
  2. check that it is out
  undo 1
  failed, as expected: true
1.0, announced:
  1. write the news
  2. check that it is out
  1.0 is announced
",
    );
}

/// The text with source locations, `examples/name.rs:12:34`, reduced to the file name.
fn without_lines(text: &str) -> String {
    let places =
        text.split_inclusive(".rs:").map(|part| part.trim_start_matches(|c: char| c.is_ascii_digit() || c == ':'));
    places.collect::<String>().replace(".rs:", ".rs")
}

#[test]
fn subsystems() {
    in_directory("subsystems", |directory| {
        let ended = run("subsystems", &[], directory);
        assert_eq!(
            without_lines(&ended.stdout),
            "\
open  disk
open  memory
open  index
open  socket
open  log
-- the store goes first, with its cache in it
close index
close memory
close disk
process > store > cache: `write back` failed: 3 entries not written back
the cache takes no more: true
-- main ends; the web subsystem is still there
close log
reported: process > web: exit handler `end sessions` registered at examples/subsystems.rs panicked: a session was still open
close socket
"
        );
        assert_eq!(ended.status, Some(0), "a handler that fails does not change the status");
        assert!(ended.stderr.contains("a session was still open"), "the panic's own message: {}", ended.stderr);
    });
}

#[test]
fn embed() {
    in_directory("embed", |directory| {
        let ended = run("embed", &[], directory);
        assert_eq!(
            without_lines(&ended.stdout),
            "\
one starts
  1 unregistered
two starts
  1 unregistered
two ends; one is not touched
  (somebody compared me)
  two ends
  error: `dance`: no such verb
  process > two: exit handler `atexit` registered at examples/embed.rs failed: `dance`: no such verb
one ends
  registered while the handlers run
  one is last
"
        );
        assert_eq!((ended.status, &*ended.stderr), (Some(0), ""));
    });
}

/// Two runtimes at the same time, each of which runs its own handlers when it ends.
#[test]
fn runtime() {
    prints(
        "runtime",
        "\
one: 2 handlers
two: 0 handlers
two: what was registered before is cleared
one: the newest runs first
one: the runtime ends
",
    );
}

/// The rows of CPython's `_test_atexit.py`, and what scripts may do while the list is in use. A script contains its
/// expected output: `#: ` begins a line of output, and `#! ` an error message, to which Koto adds a trace.
#[test]
fn each_script_prints_what_it_says() {
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/runtime");
    for name in names(&scripts) {
        let name = name.to_str().unwrap();
        let script = fs::read_to_string(scripts.join(name)).unwrap();
        let said = |mark| script.lines().filter_map(|line| line.strip_prefix(mark)).collect::<Vec<&str>>();
        let ended = run("runtime", &[name], &scripts);
        let errors = ended.stderr.lines().filter(|line| line.starts_with("error in ")).collect::<Vec<_>>();
        assert_eq!(ended.stdout.lines().collect::<Vec<_>>(), said("#: "), "{name}: {}", ended.stderr);
        assert_eq!(errors, said("#! "), "{name}: {}", ended.stderr);
        let fails = ended.stderr.contains(&format!("error in {name}: "));
        assert_eq!(ended.status, Some(i32::from(fails)), "{name}: {}", ended.stderr);
        assert!(script.contains("\n#: ") || script.contains("\n#! "), "{name} says nothing");
    }
}

#[test]
fn a_transaction_is_undone_on_every_way_out() {
    let ways = [
        (vec![], 0, ""),
        (vec!["error"], 1, "Error: \"the work failed\"\n"),
        (vec!["panic"], 101, "the work panicked"),
        (vec!["exit"], 3, ""),
        (vec!["thread"], 4, ""),
    ];
    for (args, status, stderr) in ways {
        in_directory("transaction", |directory| {
            let users = directory.join("users");
            fs::write(&users, "before").unwrap();
            let ended = run("transaction", &args, directory);
            assert_eq!((ended.status, &*ended.stdout), (Some(status), ""), "{args:?}: {}", ended.stderr);
            assert!(ended.stderr.contains(stderr) && ended.stderr.is_empty() == stderr.is_empty(), "{}", ended.stderr);
            if args.is_empty() {
                assert_eq!(fs::read_to_string(&users).unwrap(), "ada\n");
                assert_eq!(names(directory), [Path::new("groups"), Path::new("users")]);
            } else {
                assert_eq!(fs::read_to_string(&users).unwrap(), "before", "{args:?}");
                assert_eq!(names(directory), [Path::new("users")], "{args:?}");
            }
        });
    }
}

#[test]
fn every_way_out_removes_a_temporary_directory() {
    let ways = [
        (vec![], 0, "there: true\nthere: false\n", ""),
        (vec!["error"], 1, "", "Error: \"the work failed\"\n"),
        (vec!["panic"], 101, "", "the work panicked"),
        (vec!["exit"], 3, "", ""),
        (vec!["thread"], 4, "", ""),
    ];
    for (args, status, stdout, stderr) in ways {
        in_directory("tempdir", |directory| {
            let ended = run("tempdir", &args, directory);
            assert_eq!((ended.status, &*ended.stdout), (Some(status), stdout), "{args:?}: {}", ended.stderr);
            assert!(ended.stderr.contains(stderr), "{args:?}: {}", ended.stderr);
            assert!(names(directory).is_empty(), "{args:?}: {:?}", names(directory));
        });
    }
}

/// This holds on every exit path.
#[test]
fn a_failed_cleanup_makes_the_status_1() {
    let report = "process: exit handler `save` registered at examples/status.rs failed: disk full\n";
    let ways = [
        (vec!["return"], 0, vec![]),
        (vec!["return", "fails"], 1, vec!["Error: CloseError {", "Failed(\"disk full\")"]),
        (vec!["error", "fails"], 1, vec!["Error: \"the work failed\"\n", report]),
        (vec!["exit"], 0, vec![]),
        (vec!["exit", "fails"], 1, vec![report]),
    ];
    for (args, status, told) in ways {
        in_directory("status", |directory| {
            let ended = run("status", &args, directory);
            assert_eq!(ended.status, Some(status), "{args:?}: {}", ended.stderr);
            let stderr = without_lines(&ended.stderr);
            assert!(told.iter().all(|text| stderr.contains(text)), "{args:?}: {stderr}");
            assert_eq!(stderr.matches("disk full").count(), usize::from(args.contains(&"fails")), "{args:?}: {stderr}");
        });
    }
}

/// The example's hook is for panics that abort; here they unwind.
#[test]
fn a_panic_runs_the_handlers_without_the_hook() {
    in_directory("panic_abort", |directory| {
        let ended = run("panic_abort", &[], directory);
        assert_eq!((ended.status, &*ended.stdout), (Some(101), "the handler ran\n"), "{}", ended.stderr);
    });
}

/// Its parent does not remove it.
#[test]
fn a_daemon_alone_removes_its_pid_file() {
    for args in [vec![], vec!["exit"]] {
        in_directory("daemon", |directory| {
            let ended = run("daemon", &args, directory); // reads until the daemon has ended as well
            assert_eq!(ended.stdout, "the daemon works\nthe pid file is removed\n", "{args:?}");
            assert_eq!((ended.status, &*ended.stderr), (Some(0), ""));
            assert!(names(directory).is_empty(), "{:?}", names(directory));
        });
    }
}

#[test]
fn the_next_run_sweeps_what_a_killed_one_left() {
    in_directory("sweep", |directory| {
        let jobs = directory.join("jobs");
        assert_eq!(run("sweep", &["abort"], directory).status, None, "it died by a signal");
        assert_eq!(names(&jobs).len(), 2, "a journal and a directory");
        let ended = run("sweep", &[], directory);
        assert_eq!((ended.status, &*ended.stdout, &*ended.stderr), (Some(0), "swept: 1\nbegun\n", ""));
        assert!(names(&jobs).is_empty(), "{:?}", names(&jobs));
    });
}

/// Whatever belongs to that process stays.
#[test]
fn a_sweep_leaves_a_running_process_alone() {
    in_directory("sweep-running", |directory| {
        let jobs = directory.join("jobs");
        // It prints "begun" once its job has begun, and then waits until its standard input is closed.
        let mut waits = run_until(command("sweep", &["wait"], directory), "begun");
        let before = names(&jobs);
        assert_eq!(before.len(), 2);
        assert_eq!(run("sweep", &[], directory).stdout, "swept: 0\nbegun\n");
        assert_eq!(names(&jobs), before);
        drop(waits.stdin.take());
        assert!(waits.wait().unwrap().success());
        assert!(names(&jobs).is_empty(), "{:?}", names(&jobs));
    });
}

/// Runs the command with an open standard input until it prints this line.
fn run_until(mut command: Command, until: &str) -> Child {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut said, mut stdout) = (String::new(), BufReader::new(child.stdout.take().unwrap()));
    while said.trim_end() != until {
        said.clear();
        assert_ne!(stdout.read_line(&mut said).unwrap(), 0, "it ended early");
    }
    child.stdout = Some(stdout.into_inner()); // nothing follows that line
    child
}

/// Everything in a directory, at any depth.
fn tree(directory: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    let mut next = vec![directory.to_owned()];
    while let Some(directory) = next.pop() {
        for name in names(&directory) {
            let path = directory.join(name);
            next.extend(path.is_dir().then(|| path.clone()));
            all.push(path);
        }
    }
    all.sort();
    all.iter().map(|path| path.strip_prefix(directory).unwrap().to_owned()).collect()
}

const INSTALLED: [&str; 6] = ["app", "app/bin", "app/lib", "app/lib/plugins", "app/share", "jobs"];

#[test]
fn an_installation_is_whole_or_not_there() {
    let undone = "swept: 0\nmade bin\nmade lib\nundo lib/plugins\nundo lib\nundo bin\n";
    let ways = [
        (vec!["fail"], 1, "Error: \"no plugins\"\n"),
        (vec!["panic"], 101, "no plugins"),
        (vec!["exit"], 3, ""),
        (vec!["thread"], 4, ""),
    ];
    in_directory("install", |directory| {
        for (args, status, stderr) in ways {
            let ended = run("install", &args, directory);
            assert_eq!((ended.status, &*ended.stdout), (Some(status), undone), "{args:?}: {}", ended.stderr);
            assert!(ended.stderr.contains(stderr), "{args:?}: {}", ended.stderr);
            assert_eq!(tree(directory), [PathBuf::from("jobs")], "{args:?}");
        }
        let ended = run("install", &[], directory);
        let made = "swept: 0\nmade bin\nmade lib\nmade lib/plugins\nmade share\n";
        assert_eq!((ended.status, &*ended.stdout, &*ended.stderr), (Some(0), made, ""));
        assert_eq!(tree(directory), INSTALLED.map(PathBuf::from));
        // A commit that fails leaves exactly what was there before.
        let ended = run("install", &[], directory);
        assert_eq!(ended.status, Some(1));
        assert!(ended.stderr.contains("process > install"), "{}", ended.stderr);
        assert_eq!(tree(directory), INSTALLED.map(PathBuf::from));
    });
}

#[test]
fn a_killed_installation_is_swept_by_the_next() {
    use std::os::unix::process::ExitStatusExt;
    in_directory("install-killed", |directory| {
        let mut waits = run_until(command("install", &["wait"], directory), "waits");
        waits.kill().unwrap();
        assert_eq!(waits.wait().unwrap().signal(), Some(libc::SIGKILL));
        assert_eq!(names(&directory.join("jobs")).len(), 2, "a journal and a directory");
        let ended = run("install", &["fail"], directory);
        assert!(ended.stdout.starts_with("swept: 1\nmade bin\n"), "{}", ended.stdout);
        assert_eq!(tree(directory), [PathBuf::from("jobs")]);
    });
}

#[test]
fn a_running_installation_is_not_swept() {
    in_directory("install-runs", |directory| {
        let mut waits = run_until(command("install", &["wait"], directory), "waits");
        let ended = run("install", &["exit"], directory);
        assert!(ended.stdout.starts_with("swept: 0\nmade bin\n"), "{}", ended.stdout);
        drop(waits.stdin.take());
        assert!(waits.wait_with_output().unwrap().status.success());
        assert_eq!(tree(directory), INSTALLED.map(PathBuf::from));
    });
}

/// Opens a terminal. What a program does at the second end appears at the first.
#[allow(unsafe_code, reason = "C opens terminals")]
fn open_terminal() -> (File, File) {
    let (mut ours, mut programs) = (0, 0);
    let (name, mode, size) = (ptr::null_mut(), ptr::null_mut(), ptr::null_mut());
    // SAFETY: the first two pointers are live, and the others may be null.
    assert_eq!(unsafe { libc::openpty(&raw mut ours, &raw mut programs, name, mode, size) }, 0);
    // SAFETY: the descriptor is open and has no other owner.
    let ours = unsafe { File::from_raw_fd(ours) };
    // SAFETY: as above.
    (ours, unsafe { File::from_raw_fd(programs) })
}

/// What `stty` says about a terminal.
fn mode_of(terminal: &File) -> String {
    let stty = Command::new("stty").arg("-g").stdin(terminal.try_clone().unwrap()).output().unwrap();
    assert!(stty.status.success());
    String::from_utf8(stty.stdout).unwrap()
}

/// Runs the example on a terminal; returns its status, its output there, and whether it restored the terminal's mode.
fn on_a_terminal(args: &[&str], directory: &Path) -> (Option<i32>, String, bool) {
    let (mut ours, programs) = open_terminal();
    let before = mode_of(&programs);
    let end = || programs.try_clone().unwrap();
    let status = command("terminal", args, directory).stdin(end()).stdout(end()).stderr(end()).status().unwrap();
    let restored = mode_of(&programs) == before;
    drop(programs);
    let mut shown = Vec::new();
    let _ = ours.read_to_end(&mut shown); // Linux reports an error after the last byte, others the end of the file
    (status.code(), String::from_utf8(shown).unwrap().replace("\r\n", "\n"), restored)
}

#[test]
fn a_terminal_is_restored_before_the_end_is_told() {
    let on_the_alternate_screen = "\x1b[?1049hthis is gone when the program ends\x1b[?1049l";
    let ways = [
        (vec![], 0, vec![""]),
        (vec!["error"], 1, vec!["Error: Custom { kind: Other, error: \"the work failed\" }\n"]),
        (vec!["panic"], 101, vec!["panicked at examples/terminal.rs:", "\nthe work panicked\n"]),
        (vec!["exit"], 3, vec![""]),
    ];
    for (args, status, told) in ways {
        in_directory("terminal", |directory| {
            let (ended, shown, restored) = on_a_terminal(&args, directory);
            assert_eq!((ended, restored), (Some(status), true), "{args:?}: {shown:?}");
            let after = shown.strip_prefix(on_the_alternate_screen).unwrap_or_else(|| panic!("{args:?}: {shown:?}"));
            assert!(told.iter().all(|text| after.contains(text)), "{args:?}: {shown:?}");
            assert_eq!(after.is_empty(), told == [""], "{args:?}: {shown:?}");
        });
    }
}

#[test]
fn the_terminal_example_says_if_there_is_none() {
    in_directory("no-terminal", |directory| {
        let ended = command("terminal", &[], directory).stdin(Stdio::null()).output().unwrap();
        assert_eq!((ended.status.code(), &*ended.stdout), (Some(1), &b""[..]));
        assert!(String::from_utf8(ended.stderr).unwrap().starts_with("Error: "));
    });
}

#[cfg(feature = "signals")]
mod signals {
    use std::io::Write;
    use std::os::unix::process::{CommandExt, ExitStatusExt};
    use std::process::Child;

    use libc::{SIGHUP, SIGINT, SIGTERM};

    use super::*;

    /// Resets the signals' actions: a child inherits ignored signals, for example if a shell without job control runs
    /// these tests in the background.
    #[allow(unsafe_code, reason = "std leaves signals as they are")]
    fn with_default_actions(command: &mut Command) -> &mut Command {
        let reset = || {
            for signal in [SIGINT, SIGTERM, SIGHUP] {
                // SAFETY: the action is one of C's constants.
                unsafe { libc::signal(signal, libc::SIG_DFL) };
            }
            Ok(())
        };
        // SAFETY: the closure, which runs in the child, makes only system calls.
        unsafe { command.pre_exec(reset) }
    }

    /// Starts an example with its standard input and output connected to this process.
    fn start(example: &str, args: &[&str], directory: &Path) -> (Child, BufReader<std::process::ChildStdout>) {
        let mut command = command(example, args, directory);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = with_default_actions(&mut command).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        (child, stdout)
    }

    /// Reads a line, which must be the expected one.
    fn expect(stdout: &mut impl BufRead, expected: &str) {
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        assert_eq!(line.trim_end(), expected);
    }

    #[allow(unsafe_code, reason = "std sends SIGKILL alone")]
    fn send(child: &Child, signal: i32) {
        // SAFETY: no preconditions. The child has not been waited for, so its process id has not been reused.
        assert_eq!(unsafe { libc::kill(child.id().try_into().unwrap(), signal) }, 0);
    }

    #[test]
    fn ctrl_c_leaves_no_half_written_file() {
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            in_directory(&format!("ctrl-c-{signal}"), |directory| {
                let (mut child, mut stdout) = start("ctrl_c", &[], directory);
                let mut stdin = child.stdin.take().unwrap();
                stdin.write_all(b"a line\n").unwrap();
                expect(&mut stdout, "a line is copied");
                assert_eq!(names(directory), [PathBuf::from("copy.partial")]);
                send(&child, signal);
                let ended = child.wait_with_output().unwrap(); // until then it reads its standard input, which is open
                drop(stdin);
                assert_eq!((ended.status.signal(), &*ended.stderr), (Some(signal), &b""[..]));
                assert!(names(directory).is_empty(), "{:?}", names(directory));
            });
        }
    }

    #[test]
    fn without_ctrl_c_the_file_is_written() {
        in_directory("no-ctrl-c", |directory| {
            let (mut child, _stdout) = start("ctrl_c", &[], directory);
            child.stdin.take().unwrap().write_all(b"a line\n").unwrap();
            assert!(child.wait().unwrap().success());
            assert_eq!(fs::read_to_string(directory.join("copy")).unwrap(), "a line\n");
            assert_eq!(names(directory), [PathBuf::from("copy")]);
        });
    }

    #[test]
    fn a_service_finishes_its_work_on_sigterm() {
        in_directory("service", |directory| {
            let (child, mut stdout) = start("service", &[], directory);
            expect(&mut stdout, "a task works");
            send(&child, SIGTERM);
            let mut rest = String::new();
            stdout.read_to_string(&mut rest).unwrap();
            let told = "signal 15\na task has finished\nnothing is served any more\nthe pool is closed\n";
            let ended = child.wait_with_output().unwrap();
            assert_eq!((&*rest, ended.status.signal(), &*ended.stderr), (told, Some(SIGTERM), &b""[..]));
        });
    }

    #[test]
    fn a_service_does_not_wait_for_a_slow_task() {
        in_directory("slow-service", |directory| {
            let (child, mut stdout) = start("service", &["200", "slow"], directory);
            expect(&mut stdout, "a task works");
            expect(&mut stdout, "a slow task works");
            send(&child, SIGTERM);
            let mut rest = String::new();
            stdout.read_to_string(&mut rest).unwrap();
            let told =
                "signal 15\na task has finished\n1 task is cancelled\nnothing is served any more\nthe pool is closed\n";
            let ended = child.wait_with_output().unwrap();
            assert_eq!((&*rest, ended.status.signal(), &*ended.stderr), (told, Some(SIGTERM), &b""[..]));
        });
    }

    /// Makes standard input the controlling terminal, so that its Ctrl-C reaches the command.
    #[allow(unsafe_code, reason = "C knows of sessions")]
    fn at_its_terminal(command: &mut Command) -> &mut Command {
        let take = || {
            // SAFETY: no preconditions.
            let session = unsafe { libc::setsid() };
            // SAFETY: standard input is a terminal that belongs to no session.
            if session < 0 || unsafe { libc::ioctl(libc::STDIN_FILENO, libc::TIOCSCTTY, 0) } < 0 {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        };
        // SAFETY: the closure, which runs in the child, makes only two system calls.
        unsafe { command.pre_exec(take) }
    }

    #[test]
    fn ctrl_c_gives_the_terminal_back() {
        let shown = "\x1b[?1049hq ends this, and so does Ctrl-C";
        for (key, signal) in [(&b"q"[..], None), (b"\x03", Some(SIGINT)), (b"", Some(SIGTERM))] {
            in_directory(&format!("pager-{signal:?}"), |directory| {
                let (mut ours, programs) = open_terminal();
                let before = mode_of(&programs);
                let end = || programs.try_clone().unwrap();
                let mut command = command("pager", &[], directory);
                command.stdin(end()).stdout(end()).stderr(end());
                let mut child = at_its_terminal(with_default_actions(&mut command)).spawn().unwrap();
                let mut told = vec![0; shown.len()];
                ours.read_exact(&mut told).unwrap();
                assert_eq!(String::from_utf8(told).unwrap(), shown);
                assert_ne!(mode_of(&programs), before);
                if key.is_empty() {
                    send(&child, SIGTERM);
                } else {
                    ours.write_all(key).unwrap();
                }
                assert_eq!(child.wait().unwrap().signal(), signal);
                assert_eq!(mode_of(&programs), before, "after {key:?}");
                drop((programs, command)); // which holds copies of its own
                let mut rest = Vec::new();
                let _ = ours.read_to_end(&mut rest);
                let rest = String::from_utf8(rest).unwrap();
                assert!(rest.ends_with("\x1b[?1049l"), "{rest:?}"); // the terminal may echo Ctrl-C before that
            });
        }
    }
}

/// As shown in `guide::tests`.
#[test]
fn exit_runs_the_handlers() {
    if std::env::var_os("AS_CHILD").is_some() {
        exitstack::register(|| println!("cleaned up"));
        std::process::exit(3);
    }
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "exit_runs_the_handlers", "--nocapture"]).env("AS_CHILD", "1");
    let output = child.output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&output.stdout).contains("cleaned up"));
}
