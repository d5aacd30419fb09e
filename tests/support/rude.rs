//! An error whose drop panics.

use std::panic::resume_unwind;

/// Panics with nothing when dropped: what a drop's panic carries is leaked.
#[derive(Debug, thiserror::Error)]
#[error("rude")]
pub struct Rude;

impl Drop for Rude {
    fn drop(&mut self) {
        resume_unwind(Box::new(()));
    }
}
