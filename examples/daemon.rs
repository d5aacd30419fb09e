//! A daemon that takes over what its parent registered. Run as `daemon exit`, the parent leaves by `exit` instead of
//! `_exit`.
#![allow(unsafe_code, reason = "there is no safe fork")]

use std::fs;
use std::io;
use std::mem;
use std::process;

/// Returns only in the child, which owns the handlers from then on.
#[cfg(unix)]
fn daemonize() -> io::Result<()> {
    // SAFETY: no other thread is running yet, so the child may do whatever its parent may.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 if !exitstack::adopt_after_fork() => Err(io::Error::other("a thread was using a stack at the fork")),
        0 => Ok(()), // followed by `setsid` and so on
        _ if std::env::args().len() == 1 => {
            // SAFETY: ends the process at once and runs no handlers.
            unsafe { libc::_exit(0) }
        }
        _ => {
            mem::forget(exitstack::process_stack().pop_all()); // the child has them
            process::exit(0)
        }
    }
}

#[cfg(not(unix))]
fn daemonize() -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

fn main() -> io::Result<()> {
    let pid_file = std::env::temp_dir().join("daemon.pid");
    let removed = pid_file.clone();
    exitstack::register(move || {
        println!("the pid file is removed");
        fs::remove_file(removed)
    });
    daemonize()?;
    fs::write(&pid_file, process::id().to_string())?;
    println!("the daemon works");
    Ok(())
}
