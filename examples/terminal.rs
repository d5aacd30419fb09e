//! A terminal program that restores the terminal however it ends, so that its error or panic message is readable.

use std::io::{self, Write};
use std::panic;
use std::process::{Command, ExitCode, Stdio};

use exitstack::Interpreter;

/// Reads or changes the terminal's mode. In crossterm: `enable_raw_mode` and `disable_raw_mode`.
fn stty(arguments: &[&str]) -> io::Result<String> {
    let output = Command::new("stty").args(arguments).stdin(Stdio::inherit()).output()?;
    let text = |bytes| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(io::Error::other(text(&output.stderr))) }
}

fn show(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// Registers each way back before the step that needs it, so that a step that fails halfway is undone as well.
fn take(terminal: &Interpreter) -> io::Result<()> {
    let before = stty(&["-g"])?;
    terminal.stack().register(move || stty(&[&before]).map(drop));
    stty(&["raw", "-echo"])?;
    terminal.stack().register(|| show("\x1b[?1049l")); // leaves the alternate screen
    show("\x1b[?1049h")
}

fn work() -> io::Result<()> {
    show("this is gone when the program ends")?;
    match std::env::args().nth(1).as_deref() {
        Some("error") => Err(io::Error::other("the work failed")),
        Some("panic") => panic!("the work panicked"),
        Some("exit") => std::process::exit(3),
        _ => Ok(()),
    }
}

fn main() -> ExitCode {
    exitstack::run(|| {
        let terminal = Interpreter::new("terminal");
        let (in_hook, print) = (terminal.clone(), panic::take_hook());
        panic::set_hook(Box::new(move |panicked| {
            let given_back = in_hook.stack().close(); // handlers run once: these do not run again later
            print(panicked);
            if let Err(error) = given_back {
                eprintln!("{error:#}");
            }
        }));
        take(&terminal)?;
        work()
    }) // the handlers run here, and then the error is printed
}
