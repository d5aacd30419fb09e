//! Captures standard error by replacing it with a file for a moment.
#![allow(unsafe_code, reason = "there is no safe `dup2` in the standard library")]

use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

/// The file that replaces standard error. Use only one at a time, and let nothing else write to standard error then.
pub struct Capture {
    file: File,
}

impl Capture {
    pub fn new() -> Self {
        // SAFETY: the name is a C string; the call creates a new descriptor.
        let file = unsafe { libc::memfd_create(c"stderr".as_ptr(), libc::MFD_CLOEXEC) };
        assert!(file >= 0, "no memory file");
        // SAFETY: the descriptor was created above and has no other owner.
        Self { file: unsafe { File::from_raw_fd(file) } }
    }

    /// Returns what is written to standard error while `action` runs. `action` must not panic.
    pub fn during(&mut self, action: impl FnOnce()) -> Vec<u8> {
        self.file.set_len(0).expect("emptied");
        self.file.rewind().expect("rewound");
        // SAFETY: duplicates an open descriptor.
        let before = unsafe { libc::dup(libc::STDERR_FILENO) };
        assert!(before >= 0, "no descriptor is left");
        // SAFETY: the descriptor was created above and has no other owner.
        let before = unsafe { OwnedFd::from_raw_fd(before) };
        redirect(self.file.as_raw_fd());
        action();
        redirect(before.as_raw_fd());
        let mut written = Vec::new();
        self.file.rewind().expect("rewound");
        self.file.read_to_end(&mut written).expect("read");
        written
    }
}

fn redirect(to: i32) {
    // SAFETY: both descriptors are open, and a process may redirect its own standard error.
    assert!(unsafe { libc::dup2(to, libc::STDERR_FILENO) } >= 0, "standard error redirected");
}
