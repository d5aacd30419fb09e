//! Standard error read back, by putting a file in its place for a moment.
#![allow(unsafe_code, reason = "there is no safe `dup2` in the standard library")]

use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

/// The file. Only one may be in use at a time, and nothing else may write to standard error at that time.
pub struct Capture {
    file: File,
}

impl Capture {
    pub fn new() -> Self {
        // SAFETY: the name is a C string; the call makes a new descriptor.
        let file = unsafe { libc::memfd_create(c"stderr".as_ptr(), libc::MFD_CLOEXEC) };
        assert!(file >= 0, "no memory file");
        // SAFETY: the descriptor was made above and is nobody else's.
        Self { file: unsafe { File::from_raw_fd(file) } }
    }

    /// What was written to standard error while `action` ran. It must not panic.
    pub fn during(&mut self, action: impl FnOnce()) -> Vec<u8> {
        self.file.set_len(0).expect("emptied");
        self.file.rewind().expect("rewound");
        // SAFETY: duplicates descriptors, which are open.
        let before = unsafe { libc::dup(libc::STDERR_FILENO) };
        assert!(before >= 0, "no descriptor is left");
        // SAFETY: the descriptor was made above and is nobody else's.
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
    // SAFETY: both descriptors are open; standard error is the process's to point where it likes.
    assert!(unsafe { libc::dup2(to, libc::STDERR_FILENO) } >= 0, "standard error redirected");
}
