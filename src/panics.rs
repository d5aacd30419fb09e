//! Panics of foreign code: what they say, and how work is finished after one.
//!
//! Only std can catch a panic. What that changes is in `panics/with_std.rs` and `panics/without_std.rs`, which define the
//! same items.

use alloc::borrow::ToOwned;
use alloc::boxed::Box;
use alloc::string::String;
use core::any::Any;
use core::mem;

#[cfg_attr(feature = "std", path = "panics/with_std.rs")]
#[cfg_attr(not(feature = "std"), path = "panics/without_std.rs")]
mod catching;

pub(crate) use catching::{arm, catch, discard_or_leak};

/// What a panic carries.
pub(crate) type Payload = Box<dyn Any + Send>;

/// Returns a payload for the report of a panic that was not caught.
pub(crate) fn uncaught() -> Payload {
    Box::new("(the panic goes on)")
}

/// Returns the message of a panic's payload.
pub(crate) fn panic_message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied().or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("(non-string panic payload)").to_owned()
}

/// Drops a value whose drop may panic: a panic's payload, or an error of which this may be the last reference. The
/// payload of a second panic is leaked, as std does.
pub(crate) fn discard<T>(value: T) {
    if let Err(second) = catch(|| drop(value)) {
        mem::forget(second);
    }
}

/// Drops every value, even if the drop of one panics; the first such panic is resumed afterwards.
pub(crate) fn drop_all<T>(values: impl IntoIterator<Item = T>) {
    drop_each(&mut values.into_iter());
}

/// Drops every value, and then each of `last`, as [`drop_all`] does.
pub(crate) fn drop_all_then<T, L>(values: impl IntoIterator<Item = T>, last: impl IntoIterator<Item = L>) {
    let values = values.into_iter().map(|value| (Some(value), None));
    drop_all(values.chain(last.into_iter().map(|value| (None, Some(value)))));
}

fn drop_each<'v, T>(values: &mut (dyn Iterator<Item = T> + 'v)) {
    let mut first = None;
    while let Err(payload) = catch(|| {
        let mut rest = arm(&mut *values, drop_each);
        rest.state().for_each(drop);
        rest.disarm();
    }) {
        match first {
            None => first = Some(payload),
            Some(_) => discard(payload),
        }
    }
    if let Some(payload) = first {
        catching::resume(payload);
    }
}
