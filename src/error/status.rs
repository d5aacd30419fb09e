//! [`Exit`] as the value that `main` returns.

use std::process::{ExitCode, Termination};

use super::Exit;

impl Termination for Exit {
    /// Returns the low byte: what a parent process sees on Unix, and all that an [`ExitCode`] can hold.
    fn report(self) -> ExitCode {
        let [low, ..] = self.0.to_le_bytes();
        ExitCode::from(low)
    }
}
