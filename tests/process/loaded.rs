//! The library inside something that is loaded, or refused, or built to abort: `tests/fixtures`, built here.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use libtest_mimic::{Failed, Trial};

use crate::{Status, status_of};

pub(crate) fn trials() -> Vec<Trial> {
    let trial = |name: &str, test: fn() -> Result<(), Failed>| Trial::test(name, test);
    vec![
        trial("a_loaded_librarys_handlers_run_when_it_is_unloaded", || {
            let host = host()?;
            expect(Command::new(host).arg("close").arg(library()?), 0, &["loaded", "plugin's", "unloaded", "host's"])
        }),
        trial("a_loaded_librarys_handlers_run_at_exit_if_it_stays", || {
            expect(Command::new(host()?).arg("stay").arg(library()?), 0, &["loaded", "plugin's", "host's"])
        }),
        trial("a_loaded_library_does_not_decide_its_hosts_status", || {
            expect(
                Command::new(host()?).arg("status").arg(library()?),
                0,
                &["loaded", "plugin's", "unloaded", "host's"],
            )
        }),
        trial("a_loaded_library_exports_a_close_that_tells_failures", || {
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
        trial("a_library_loaded_by_python_runs_its_handlers_at_its_exit", || {
            let program = "import atexit, ctypes, sys; atexit.register(print, 'python\\'s', flush=True); \
                           ctypes.CDLL(sys.argv[1]).plugin_register(0); print('loaded', flush=True)";
            expect(
                Command::new("python3").args(["-c", program]).arg(library()?),
                0,
                &["loaded", "python's", "plugin's"],
            )
        }),
        trial("a_registration_is_refused_and_handed_back_if_c_refuses", || {
            let refused = build("dev", "refused")?;
            let output = output(&mut Command::new(refused))?;
            has_error(&output, "refused: the stack takes no more handlers")?;
            compare(&output, Status::Code(0), &["handed back"])
        }),
        trial("c_is_given_as_many_hooks_as_the_first_block_of_its_list_has_room_for", || {
            let counted = build("dev", "counted")?;
            compare(&output(&mut Command::new(counted))?, Status::Code(0), &["16", "31"])
        }),
        trial("with_panic_abort_a_panicking_handler_aborts_and_exit_does_not", || {
            let aborting = build("abort", "aborting")?;
            let panics = output(Command::new(&aborting).arg("panic"))?;
            compare(&panics, Status::Signal(libc::SIGABRT), &["B"])?;
            let fails = output(Command::new(&aborting).arg("fail"))?;
            compare(&fails, Status::Code(0), &["B", "A"])?;
            let exits = output(Command::new(&aborting).arg("exit"))?;
            compare(&exits, Status::Code(3), &["B", "A"])
        }),
        trial("with_panic_abort_a_hook_that_closes_runs_the_handlers", || {
            let panics = output(&mut Command::new(build("abort", "panic_abort")?))?;
            has_error(&panics, "the work panicked")?;
            compare(&panics, Status::Signal(libc::SIGABRT), &["the handler ran"])
        }),
        trial("with_panic_abort_a_hook_that_exits_goes_on_after_a_handler", || {
            let panics = output(Command::new(build("abort", "aborting")?).arg("hook"))?;
            has_error(&panics, "in a handler")?;
            compare(&panics, Status::Code(101), &["B", "A"])
        }),
        trial("the_guides_optional_dependency_builds_both_ways", optional_dependency),
    ]
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// Where the fixtures are built: beside what this test was built into.
fn target() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("fixtures")
}

fn cargo(profile: &str, what: &[&str]) -> Result<PathBuf, Failed> {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--profile", profile, "--manifest-path"]).arg(fixtures().join("Cargo.toml"));
    let built = output(cargo.arg("--target-dir").arg(target()).args(what))?;
    if !built.status.success() {
        return Err(String::from_utf8_lossy(&built.stderr).into_owned().into());
    }
    Ok(target().join(if profile == "dev" { "debug" } else { profile }))
}

fn build(profile: &str, bin: &str) -> Result<PathBuf, Failed> {
    Ok(cargo(profile, &["--bin", bin])?.join(bin))
}

fn library() -> Result<PathBuf, Failed> {
    Ok(cargo("dev", &["--lib"])?.join("libfixtures.so"))
}

fn host() -> Result<PathBuf, Failed> {
    std::fs::create_dir_all(target())?;
    // Each test builds its own, for they run at the same time.
    let host = target().join(format!("host-{:?}", std::thread::current().id()).replace(['(', ')'], "-"));
    let built = output(Command::new("gcc").arg("-o").arg(&host).arg(fixtures().join("host.c")).arg("-ldl"))?;
    if built.status.success() { Ok(host) } else { Err(String::from_utf8_lossy(&built.stderr).into_owned().into()) }
}

/// Builds the example of `guide::optional_dependency` as a library of its own, without the feature and with it.
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

/// What the chapter shows of its block of this language.
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
