//! For what must be gone even after an end that runs no handlers: SIGKILL, `abort`, the out-of-memory killer, a power
//! failure. Let the kernel own it.
//!
//! ```
//! # #[cfg(target_os = "linux")]
//! # fn main() -> std::io::Result<()> {
//! use std::fs::{self, File};
//! use std::io;
//! use std::os::linux::net::SocketAddrExt;
//! use std::os::unix::net::{SocketAddr, UnixListener};
//! use std::os::unix::process::CommandExt;
//! use std::process::{Command, id};
//!
//! // A file without a name: it is freed with its last descriptor.
//! let path = std::env::temp_dir().join(format!("scratch-{}", id()));
//! let scratch = File::options().read(true).write(true).create_new(true).open(&path)?;
//! fs::remove_file(&path)?;
//!
//! // One instance at a time: the name is free again when the process is gone.
//! let name = SocketAddr::from_abstract_name(format!("only-{}", id()))?;
//! let only = UnixListener::bind_addr(&name)?;
//! assert_eq!(UnixListener::bind_addr(&name).unwrap_err().kind(), io::ErrorKind::AddrInUse);
//!
//! // A child that dies with the thread that has started it.
//! let parent = id();
//! let mut command = Command::new("sleep");
//! let dies_with_parent = move || {
//!     // SAFETY: the call has no conditions.
//!     if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong) } != 0 {
//!         return Err(io::Error::last_os_error());
//!     }
//!     // The parent may be dead already.
//!     if std::os::unix::process::parent_id() == parent { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
//! };
//! // SAFETY: what runs in the child makes two system calls, and neither allocates nor locks.
//! let mut child = unsafe { command.arg("60").pre_exec(dies_with_parent) }.spawn()?;
//! # child.kill()?;
//! # child.wait()?;
//! # Ok(())
//! # }
//! # #[cfg(not(target_os = "linux"))]
//! # fn main() {}
//! ```
//!
//! | instead of | on Linux | freed when |
//! | --- | --- | --- |
//! | a temporary file | a file opened with `O_TMPFILE`, or removed once it is open | its last descriptor is closed |
//! | a file used as shared memory | `memfd_create` | its last descriptor and mapping are gone |
//! | a socket file | a socket with an abstract name, to which every user of the network namespace may connect | it is closed |
//! | a pid file, a lock file | a lock by `flock` on a file that may stay | all copies of the descriptor are closed, those in children too |
//! | a list of children to kill | `PR_SET_PDEATHSIG` in the child; it is lost at a further `fork` | the *thread* that started the child ends |
//! | the same, for all that they start | a PID namespace | its first process ends: the kernel kills the others |
//! | mounts to undo | a mount namespace | its last process ends |
//!
//! A file that was opened with `O_TMPFILE` can be given a name by `linkat` when it is complete, so that nobody ever
//! finds it half-written. For a service, systemd's `RuntimeDirectory=` and `PrivateTmp=` remove directories when the
//! service has ended, however it ended. On Windows, `FILE_FLAG_DELETE_ON_CLOSE` and job objects do the same for files
//! and children.
//!
//! # What it does not do
//!
//! Directories, database rows, resources of other machines: the kernel frees none of these. For what can be found
//! again, see [`sweep`](super::sweep). After a power failure, only what is on the disk is left, and a sweep is all that
//! helps.
