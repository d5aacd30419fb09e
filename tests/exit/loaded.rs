//! The library inside something that is loaded, refused a hook, or built to abort: `tests/exit/fixtures`, built here.

use std::ffi::OsString;
use std::hash::BuildHasher;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use libtest_mimic::{Failed, Trial};

use crate::{Status, runs_or, status_of, timeout};

#[expect(clippy::too_many_lines, reason = "a table")]
pub(crate) fn trials() -> Vec<Trial> {
    let trial = |name: &str, test: fn() -> Result<(), Failed>| Trial::test(name, test);
    let mut trials = vec![
        trial("a_loaded_library_runs_handlers_when_unloaded", || {
            let host = host()?;
            expect(Command::new(host).arg("close").arg(library()?), 0, &["loaded", "plugin's", "unloaded", "host's"])
        }),
        trial("a_loaded_library_that_stays_drains_at_exit", || {
            expect(Command::new(host()?).arg("stay").arg(library()?), 0, &["loaded", "plugin's", "host's"])
        }),
        // The host's status stays as it is.
        trial("an_unloaded_library_decides_no_status", || {
            expect(
                Command::new(host()?).arg("status").arg(library()?),
                0,
                &["loaded", "plugin's", "unloaded", "host's"],
            )
        }),
        // The library is still loaded when its host exits.
        trial("a_loaded_library_decides_the_status_at_exit", || {
            expect(Command::new(host()?).arg("stay-status").arg(library()?), 7, &["loaded", "plugin's", "host's"])
        }),
        trial("a_library_loaded_2000_times_costs_no_memory", || {
            let output = output(timeout().arg(c("again")?).arg(library()?))?;
            let grown = String::from_utf8_lossy(&output.stdout).into_owned();
            let number = |part: &str| part.split(' ').next()?.parse::<i64>().ok();
            match grown.trim_end().split(", ").map(number).collect::<Vec<_>>()[..] {
                [Some(..100), Some(..1_000)] if output.status.success() => Ok(()),
                _ => Err(format!("{output:?}").into()),
            }
        }),
        // Handlers can decide its status, and its threads may race in `exit`, as in any other program.
        trial("a_program_with_the_crate_in_a_dylib_works", || {
            let (folder, libraries) = linked()?;
            let run = |argument: &str, status, lines: &[&str]| {
                let mut command = timeout();
                expect(
                    command.env("LD_LIBRARY_PATH", &libraries).arg(folder.join("linked")).arg(argument),
                    status,
                    lines,
                )
            };
            run("Exit", 7, &["100"])?;
            run("exit", 7, &["100"])?;
            (0..runs_or(20)).try_for_each(|_| run("race", 0, &["100"]))
        }),
        // The library exports a function that closes its stack.
        trial("a_loaded_librarys_close_tells_its_failures", || {
            let lines = ["loaded", "callback", "closed: 1", "again: 0", "plugin's", "unloaded", "host's"];
            let output = output(Command::new(host()?).arg("export").arg(library()?))?;
            has_error(&output, "process > exported: exit handler registered at src/lib.rs:")?;
            has_error(&output, " failed: the plugin's failure\n")?;
            compare(&output, Status::Code(0), &lines)
        }),
        trial("a_loaded_librarys_callback_may_call_exit", || {
            let output = output(Command::new(host()?).arg("exit").arg(library()?))?;
            has_error(&output, " failed: the plugin's failure\n")?;
            compare(&output, Status::Code(3), &["loaded", "callback", "plugin's", "host's"])
        }),
        trial("a_library_loaded_by_python_drains_at_exit", || {
            let program = "import atexit, ctypes, sys; atexit.register(print, 'python\\'s', flush=True); \
                           ctypes.CDLL(sys.argv[1]).plugin_register(0); print('loaded', flush=True)";
            expect(
                Command::new("python3").args(["-c", program]).arg(library()?),
                0,
                &["loaded", "python's", "plugin's"],
            )
        }),
        // C's `atexit` refuses the hook, and so the registration is refused.
        trial("a_handler_is_handed_back_if_c_refuses", || {
            let refused = build("dev", "refused")?;
            let output = output(&mut Command::new(refused))?;
            has_error(&output, "was refused: the stack no longer accepts handlers")?;
            compare(&output, Status::Code(0), &["handed back"])
        }),
        // That is the first block of C's list of functions.
        trial("c_is_given_as_many_hooks_as_one_block_holds", || {
            let counted = build("dev", "counted")?;
            compare(&output(&mut Command::new(counted))?, Status::Code(0), &["16", "31"])
        }),
        trial("an_allocator_may_register_while_a_list_grows", || {
            allocating("growth", &["fifth", "the allocator's", "first"])
        }),
        trial("an_allocator_may_use_the_value_that_is_in_use", || {
            allocating("value", &["each handler was dropped once"])
        }),
        trial("an_allocator_may_use_an_interpreter_in_use", || {
            allocating("interpreter", &["each handler was dropped once"])
        }),
        trial("an_allocator_may_use_the_process_stack_in_use", || {
            allocating("process", &["each handler was dropped once"])
        }),
        // Several threads use the stack and the lock.
        trial("an_allocator_with_a_lock_may_use_a_stack", || allocating("threads", &["each handler was dropped once"])),
        trial("an_allocator_in_a_forked_child_may_look", || {
            let lines = ["watched", "the child's", "the parent's", "the child ended with 0"];
            allocating("child", &lines)
        }),
        trial("an_allocator_in_a_child_of_a_handler_may_look", || allocating("handler", &["the child ended with 5"])),
        trial("an_allocator_may_look_at_a_tree_that_is_visited", || allocating("wide", &["visited"])),
        trial("an_allocator_may_look_at_what_is_reported", || allocating("reports", &["reported"])),
        trial("an_allocator_may_look_while_all_is_adopted", || allocating("generations", &["adopted: true"])),
        trial("around_a_fork_nothing_is_allocated", || allocating("fork", &["child: 0 calls", "parent: 0 calls"])),
        // A handler that returns an error or calls `exit` does not abort.
        trial("with_panic_abort_a_panicking_handler_aborts", || {
            let aborting = build("abort", "aborting")?;
            let panics = output(Command::new(&aborting).arg("panic"))?;
            compare(&panics, Status::Signal(libc::SIGABRT), &["B"])?;
            let fails = output(Command::new(&aborting).arg("fail"))?;
            compare(&fails, Status::Code(0), &["B", "A"])?;
            let exits = output(Command::new(&aborting).arg("exit"))?;
            compare(&exits, Status::Code(3), &["B", "A"])
        }),
        trial("with_panic_abort_a_hook_that_closes_drains", || {
            let panics = output(&mut Command::new(build("abort", "panic_abort")?))?;
            has_error(&panics, "the work panicked")?;
            compare(&panics, Status::Signal(libc::SIGABRT), &["the handler ran"])
        }),
        // A handler panics, and the handlers below it run.
        trial("with_panic_abort_a_hook_that_exits_drains", || {
            let panics = output(Command::new(build("abort", "aborting")?).arg("hook"))?;
            has_error(&panics, "in a handler")?;
            compare(&panics, Status::Code(101), &["B", "A"])
        }),
        // The manifest is the one shown in the guide.
        trial("an_optional_dependency_builds_both_ways", optional_dependency),
    ];
    for threads in [1, 3, 8] {
        let name = |order| format!("{threads}_threads_exit_{order}_a_loaded_library_goes");
        trials.push(Trial::test(name("before"), move || meet(threads, || "exit".into())));
        trials.push(Trial::test(name("after"), move || meet(threads, || "unload".into())));
        trials.push(Trial::test(name("while"), move || meet(threads, at_once)));
    }
    // The report is made while the host exits.
    trials.push(trial("a_loaded_library_is_unloaded_after_a_report", || meet(1, || "report".into())));
    trials
}

/// Checks that nothing crashes or hangs, every handler runs once, and the status is the one given to `exit`.
fn meet(threads: usize, order: impl Fn() -> String) -> Result<(), Failed> {
    let (program, library) = (c("meet")?, library()?);
    let run = |_| {
        let order = order();
        let mut meets = timeout();
        meets.arg(&program).arg(&library).args([&order, &threads.to_string()]);
        let output = meets.output().map_err(|error| error.to_string())?;
        // Among threads that leave once the library is gone, the third may end the process under the first: C allows
        // that.
        let cut = order.parse::<i64>().is_ok() && threads > 2 && output.stdout == b"plugin's\n";
        let lines: &[&str] = if cut { &["plugin's"] } else { &["plugin's", "host's"] };
        compare(&output, Status::Code(7), lines)
            .map_err(|failed| format!("{order}: {}", failed.message().unwrap_or_default()))
    };
    let runs = runs_or(50);
    let bad: Vec<String> = (0..runs).map(run).filter_map(Result::err).collect();
    if bad.is_empty() { Ok(()) } else { Err(format!("{} of {runs}, such as {}", bad.len(), bad[0]).into()) }
}

/// A positive or negative number of nanoseconds, about as long as running the handlers and unloading take.
fn at_once() -> String {
    let random = std::hash::RandomState::new().hash_one(());
    format!("{}{}", if random % 2 == 0 { "" } else { "-" }, random / 2 % 200_000)
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/exit/fixtures")
}

/// Where the fixtures are built: inside this test's own build directory.
fn target() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("fixtures")
}

fn cargo(profile: &str, what: &[&str]) -> Result<PathBuf, Failed> {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--profile", profile, "--manifest-path"]).arg(fixtures().join("Cargo.toml"));
    built(cargo.arg("--target-dir").arg(target()).args(what))?;
    Ok(target().join(if profile == "dev" { "debug" } else { profile }))
}

fn build(profile: &str, bin: &str) -> Result<PathBuf, Failed> {
    Ok(cargo(profile, &["--bin", bin])?.join(bin))
}

/// Runs the program whose allocator uses the stacks. If it hangs, the error shows the last thing it said.
fn allocating(what: &str, lines: &[&str]) -> Result<(), Failed> {
    let mut output = output(Command::new(build("dev", "allocating")?).arg(what))?;
    let from = output
        .stderr
        .iter()
        .rev()
        .skip(1)
        .position(|&byte| byte == b'\n')
        .map_or(0, |end| output.stderr.len() - 1 - end);
    output.stderr.drain(..from);
    compare(&output, Status::Code(0), lines)
}

fn library() -> Result<PathBuf, Failed> {
    Ok(cargo("dev", &["--lib"])?.join("libfixtures.so"))
}

/// Where to find a program that has the crate in a `dylib`, and the libraries that it needs.
fn linked() -> Result<(PathBuf, OsString), Failed> {
    let target = target().join("linked");
    let flags = std::env::var("RUSTFLAGS").unwrap_or_default() + " -C prefer-dynamic";
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--manifest-path"]).arg(fixtures().join("linked/Cargo.toml"));
    built(cargo.arg("--target-dir").arg(&target).env("RUSTFLAGS", flags))?;
    let compiler = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let std = built(Command::new(compiler).args(["--print", "target-libdir"]))?;
    let folder = target.join("debug");
    let libraries = std::env::join_paths([&folder, Path::new(String::from_utf8(std)?.trim_end())])?;
    Ok((folder, libraries))
}

fn host() -> Result<PathBuf, Failed> {
    c("host")
}

/// Builds a program written in C.
fn c(program: &str) -> Result<PathBuf, Failed> {
    std::fs::create_dir_all(target())?;
    // Each test builds its own copy, because they run at the same time.
    let file = target().join(format!("{program}-{:?}", std::thread::current().id()).replace(['(', ')'], "-"));
    let mut gcc = Command::new("gcc");
    gcc.arg("-o").arg(&file).arg(fixtures().join(program).with_extension("c")).args(["-pthread", "-ldl"]);
    built(&mut gcc)?;
    Ok(file)
}

fn built(command: &mut Command) -> Result<Vec<u8>, Failed> {
    let built = output(command)?;
    if built.status.success() {
        Ok(built.stdout)
    } else {
        Err(String::from_utf8_lossy(&built.stderr).into_owned().into())
    }
}

/// Builds the example of `guide::optional_dependency` as a separate library, with the feature and without it.
fn optional_dependency() -> Result<(), Failed> {
    let package = target().join("optional");
    std::fs::create_dir_all(package.join("src"))?;
    let here = env!("CARGO_MANIFEST_DIR");
    let manifest = shown("toml").replace("version = \"0.1\"", &format!("path = {here:?}"));
    let head = "[package]\nname = \"optional\"\nversion = \"0.0.0\"\nedition = \"2024\"\n[workspace]\n";
    std::fs::write(package.join("Cargo.toml"), format!("{head}{manifest}"))?;
    std::fs::write(package.join("src/lib.rs"), format!("#![deny(warnings)]\n{}", shown("rust")))?;
    for features in ["", "exitstack"] {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--quiet", "--features", features]).current_dir(&package);
        let built = output(cargo.arg("--target-dir").arg(target()))?;
        if !built.status.success() {
            return Err(String::from_utf8_lossy(&built.stderr).into_owned().into());
        }
    }
    Ok(())
}

/// The code block in this language that the chapter shows.
fn shown(language: &str) -> String {
    let chapter = include_str!("../../src/guide/optional_dependency.rs");
    let lines = chapter.lines().map(|line| line.strip_prefix("//! ").unwrap_or_default());
    let block = lines.skip_while(|line| *line != format!("```{language}")).skip(1).take_while(|line| *line != "```");
    let hidden = |line: &&str| line.starts_with("# ") || *line == "#";
    block.filter(|line| !hidden(line)).fold(String::new(), |text, line| text + line + "\n")
}

fn output(command: &mut Command) -> Result<Output, Failed> {
    Ok(command.env("RUST_BACKTRACE", "0").output()?)
}

fn has_error(output: &Output, text: &str) -> Result<(), Failed> {
    let err = String::from_utf8_lossy(&output.stderr);
    if err.contains(text) { Ok(()) } else { Err(format!("expected {text:?} on standard error, got {err}").into()) }
}

fn expect(command: &mut Command, code: i32, lines: &[&str]) -> Result<(), Failed> {
    compare(&output(command)?, Status::Code(code), lines)
}

fn compare(output: &Output, status: Status, lines: &[&str]) -> Result<(), Failed> {
    let out = String::from_utf8_lossy(&output.stdout);
    if status_of(output) == status && out.lines().eq(lines.iter().copied()) {
        return Ok(());
    }
    Err(format!("expected {status:?} and {lines:?}, got {output:?}").into())
}
