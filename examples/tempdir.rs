//! A temporary directory that is removed on every exit path: `tempdir [error | panic | exit | thread]`.

use std::error::Error;
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::path::PathBuf;
use std::process;
use std::thread;

use exitstack::{Handler, Interpreter};

/// Creates a directory under an unguessable name, and registers its removal with `job`.
fn temporary_directory(job: &Interpreter) -> io::Result<PathBuf> {
    let random = RandomState::new().hash_one(process::id());
    let directory = std::env::temp_dir().join(format!("tempdir-{random:016x}"));
    fs::create_dir(&directory)?;
    let removed = directory.clone();
    job.stack().register(Handler::new(|| fs::remove_dir_all(removed)).named("remove the directory"));
    Ok(directory)
}

fn main() -> Result<(), Box<dyn Error>> {
    let job = Interpreter::new("job");
    let directory = temporary_directory(&job)?;
    fs::write(directory.join("draft"), "half of it")?;
    match std::env::args().nth(1).as_deref() {
        Some("error") => return Err("the work failed".into()),
        Some("panic") => panic!("the work panicked"),
        Some("exit") => process::exit(3),
        Some("thread") => _ = thread::spawn(|| process::exit(4)).join(),
        _ => println!("there: {}", directory.exists()),
    }
    job.finalize()?; // removed here; if that fails, it is an error here
    println!("there: {}", directory.exists());
    Ok(())
}
