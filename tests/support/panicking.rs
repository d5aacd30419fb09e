//! Panics that the panic hook does not print.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

/// Panics without running the panic hook.
pub fn quiet_panic(message: &'static str) -> ! {
    resume_unwind(Box::new(message))
}

/// Panics with an empty payload, for the drop of a panic payload or of an error that nobody receives: a payload that
/// owned memory would be leaked there.
pub fn panic_with_nothing() -> ! {
    resume_unwind(Box::new(()))
}

/// Returns the message of the panic that `action` must end with.
pub fn panic_of<R>(action: impl FnOnce() -> R) -> String {
    let Err(payload) = catch_unwind(AssertUnwindSafe(action)) else { panic!("no panic") };
    match payload.downcast::<&str>() {
        Ok(text) => (*text).to_owned(),
        Err(payload) => *payload.downcast::<String>().expect("a panic with a text"),
    }
}
