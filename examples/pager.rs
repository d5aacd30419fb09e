//! A terminal program that restores the terminal on Ctrl-C, SIGTERM and SIGHUP as well. The `terminal` example shows
//! what a panic needs in addition.

use std::io::{self, Read, Write};
use std::process::{Command, ExitCode, Stdio};

use exitstack::signals::Signals;

/// Reads or changes the terminal's mode.
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

fn main() -> ExitCode {
    exitstack::run(|| {
        Signals::new().install()?; // before there is anything to restore
        let before = stty(&["-g"])?;
        exitstack::register(move || stty(&[&before]).map(drop));
        stty(&["-icanon", "-echo"])?; // keys arrive one by one, but Ctrl-C is still a signal
        exitstack::register(|| show("\x1b[?1049l")); // leaves the alternate screen
        show("\x1b[?1049hq ends this, and so does Ctrl-C")?;
        while !matches!(io::stdin().lock().bytes().next().transpose()?, Some(b'q') | None) {}
        Ok::<(), io::Error>(())
    })
}
