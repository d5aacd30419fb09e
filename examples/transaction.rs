//! Two files, both updated or both left as they were, on every exit path: `transaction [error
//! panic
//! exit
//! thread]`.

use std::error::Error;
use std::fs;
use std::io::{self, ErrorKind};
use std::process;
use std::thread;

use exitstack::{Handler, Interpreter};

/// Returns `None` if there is no such file.
fn unless_missing<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        result => result.map(Some),
    }
}

/// Registers the undo and then writes the file. The undo copes with a step that was not done, or only halfway.
fn write(update: &Interpreter, path: &'static str, text: &str) -> io::Result<()> {
    let before = unless_missing(fs::read(path))?;
    let undo = move || match before {
        Some(before) => fs::write(path, before),
        None => unless_missing(fs::remove_file(path)).map(drop),
    };
    update.stack().on_failure(Handler::new(undo).named(format!("restore {path}")));
    fs::write(path, text)
}

fn main() -> Result<(), Box<dyn Error>> {
    Interpreter::scope("update", |update| {
        write(update, "users", "ada\n")?;
        write(update, "groups", "staff: ada\n")?;
        match std::env::args().nth(1).as_deref() {
            Some("error") => return Err("the work failed".into()),
            Some("panic") => panic!("the work panicked"),
            Some("exit") => process::exit(3),
            Some("thread") => _ = thread::spawn(|| process::exit(4)).join(),
            _ => {}
        }
        Ok(())
    })
}
