//! A thread observed from outside, because a handler cannot ask another thread whether it is waiting.

use std::fs::read_to_string;
use std::path::{Path, PathBuf};
use std::thread;

/// A thread that other threads can observe.
pub struct Watched(Option<PathBuf>);

impl Watched {
    /// Returns the calling thread.
    pub fn this() -> Self {
        let thread = std::fs::read_link("/proc/thread-self").ok();
        Self(thread.map(|thread| Path::new("/proc").join(thread).join("stat")))
    }

    /// Returns once the thread is asleep or has ended. Where the system cannot tell, gives it some time to fall asleep.
    ///
    /// An emulator's own locks put it to sleep as well, but not for long.
    pub fn until_it_sleeps(&self) {
        let Some(status) = &self.0 else { return (0..1000).for_each(|_| thread::yield_now()) };
        let mut in_a_row = 0;
        while in_a_row < 100 {
            let Ok(status) = read_to_string(status) else { return };
            in_a_row = if status.contains(") S ") { in_a_row + 1 } else { 0 };
            thread::yield_now();
        }
    }
}
