//! Panics of foreign code: what they say, and drops that may panic.

use std::any::Any;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

/// Returns the message of a panic's payload.
pub(crate) fn panic_message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied().or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("(non-string panic payload)").to_owned()
}

/// Drops a value whose drop may panic: a panic's payload, or an error that may be the last of its kind here. What the drop
/// panics with is leaked, as std does with it.
pub(crate) fn discard<T>(value: T) {
    if let Err(second) = catch_unwind(AssertUnwindSafe(|| drop(value))) {
        mem::forget(second);
    }
}

/// Drops every value, even if the drop of one panics; the first such panic is resumed afterwards.
pub(crate) fn drop_all<T>(values: impl IntoIterator<Item = T>) {
    let mut first = None;
    for value in values {
        if let Err(payload) = catch_unwind(AssertUnwindSafe(|| drop(value))) {
            match first {
                None => first = Some(payload),
                Some(_) => discard(payload),
            }
        }
    }
    if let Some(payload) = first {
        resume_unwind(payload);
    }
}
