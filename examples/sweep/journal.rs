//! Directories that are swept once the process that created them is dead.

use std::fs::{self, File};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

/// Locks a file unless another process has locked it. The kernel releases the lock when the process ends. From Rust
/// 1.89 on, `File::try_lock` does the same.
fn lock(file: &File) -> io::Result<bool> {
    use std::os::fd::AsRawFd;
    // SAFETY: the descriptor is open.
    if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    if error.kind() == ErrorKind::WouldBlock { Ok(false) } else { Err(error) }
}

/// Creates a directory that a later run sweeps if this process cannot remove it.
pub(crate) fn begin(jobs: &Path) -> io::Result<PathBuf> {
    let (journal, held) = loop {
        let random = RandomState::new().hash_one(std::process::id());
        let journal = jobs.join(format!("{random:016x}.journal"));
        let held = File::create_new(&journal)?;
        if lock(&held)? && journal.exists() {
            break (journal, held);
        } // otherwise a sweep came in between, and took this for a dead process's journal
    };
    let directory = journal.with_extension("d");
    let removed = directory.clone();
    exitstack::register(move || {
        remove(&removed, &journal)?;
        drop(held); // captured, and so locked until here: nobody else sweeps this job
        Ok::<(), io::Error>(())
    });
    fs::create_dir(&directory)?; // last, so that it never exists without its journal
    Ok(directory)
}

/// Removes what dead processes have left, and returns the number of their jobs.
pub(crate) fn sweep(jobs: &Path) -> io::Result<usize> {
    let mut swept = 0;
    for entry in fs::read_dir(jobs)? {
        let journal = entry?.path();
        if journal.extension().is_some_and(|extension| extension == "journal") {
            let Ok(file) = File::open(&journal) else { continue }; // its job has just ended
            if lock(&file)? && journal.exists() {
                remove(&journal.with_extension("d"), &journal)?;
                swept += 1;
            }
        }
    }
    Ok(swept)
}

fn remove(directory: &Path, journal: &Path) -> io::Result<()> {
    let gone = |error: io::Error| if error.kind() == ErrorKind::NotFound { Ok(()) } else { Err(error) };
    fs::remove_dir_all(directory).or_else(gone)?;
    fs::remove_file(journal).or_else(gone)
}
