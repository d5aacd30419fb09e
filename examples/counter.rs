//! A counter that saves its count however the program ends. `counter --help` explains how to use it.

use std::error::Error;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};

use exitstack::{Exit, Handler, process_stack, scope};

type Outcome<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

const USAGE: &str = "\
usage: counter [PATH] [NUMBER] [--exit STATUS | --panic]

Adds NUMBER, or 1, to the count in PATH, or in `counterfile`, and saves it when the program ends.

  --exit STATUS  end by `std::process::exit(STATUS)`
  --panic        end by a panic
  --help         print this
";

static COUNT: AtomicI64 = AtomicI64::new(0);

fn load(path: &Path) -> Outcome<i64> {
    match fs::read(path) {
        Ok(bytes) => {
            let number = String::from_utf8(bytes).ok().and_then(|text| text.trim().parse().ok());
            number.ok_or_else(|| format!("{} holds no number", path.display()).into())
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(0),
        Err(error) => Err(format!("{}: {error}", path.display()).into()),
    }
}

/// Writes a new file and renames it over the old one, so that a reader finds either the old count or the new one.
fn save(path: &Path) -> Outcome {
    let beside = path.with_extension(format!("{}.new", std::process::id()));
    scope(|stack| {
        let mut file = File::create(&beside)?;
        stack.on_failure(|| fs::remove_file(&beside));
        write!(file, "{}", COUNT.load(Ordering::Relaxed))?;
        file.sync_all()?;
        Ok(fs::rename(&beside, path)?)
    })
}

fn misused(why: &str) -> Exit {
    eprint!("counter: {why}\n{USAGE}");
    Exit(2)
}

fn main() -> Outcome<Exit> {
    let (mut path, mut number, mut status, mut panics) = (None, 1, None, false);
    let mut args = std::env::args_os().skip(1);
    while let Some(arg) = args.next() {
        match arg.to_str() {
            Some("--help") => {
                print!("{USAGE}");
                return Ok(Exit(0));
            }
            Some("--exit") => match args.next().and_then(|n| n.to_str()?.parse().ok()) {
                Some(number) => status = Some(number),
                None => return Ok(misused("--exit needs a number")),
            },
            Some("--panic") => panics = true,
            Some(text) if text.parse::<i64>().is_ok() => number = text.parse()?,
            Some(text) if path.is_none() && !text.starts_with('-') => path = Some(PathBuf::from(text)),
            _ => return Ok(misused(&format!("unexpected argument {arg:?}"))),
        }
    }
    let path = path.unwrap_or_else(|| "counterfile".into());
    let count = load(&path)?;
    COUNT.store(count.checked_add(number).ok_or("the count is full")?, Ordering::Relaxed);

    // From here on there is something to save. If saving fails, the failure is reported and the exit status is 1.
    let fail = |_: &_| _ = process_stack().register(|| Err(Exit(1)));
    process_stack().register(Handler::new(move || save(&path).inspect_err(fail)).named("save the count"));

    println!("{count} + {number} = {}", COUNT.load(Ordering::Relaxed));
    match status {
        Some(status) => std::process::exit(status), // runs no destructors, but runs the handler
        None if panics => panic!("as you asked"),
        None => Ok(Exit(0)),
    }
}
