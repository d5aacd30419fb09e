//! A killed run leaves its files in `jobs`, and the next run removes them: `sweep [abort
//! wait]`.

#[cfg(unix)]
#[allow(unsafe_code, reason = "files are locked by a call to C")]
mod journal;

#[cfg(unix)]
fn main() -> std::io::Result<()> {
    use std::path::Path;
    use std::{env, fs, io, process};

    let jobs = Path::new("jobs");
    fs::create_dir_all(jobs)?;
    println!("swept: {}", journal::sweep(jobs)?);
    let directory = journal::begin(jobs)?;
    fs::write(directory.join("draft"), "half of it")?;
    println!("begun");
    match env::args().nth(1).as_deref() {
        Some("abort") => process::abort(),
        Some("wait") => io::stdin().read_line(&mut String::new()).map(drop),
        _ => Ok(()),
    }
}

#[cfg(not(unix))]
fn main() {}
