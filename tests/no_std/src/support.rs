//! What the tests share: a log, and the report hook, of which there is only one.

use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use alloc::{borrow::ToOwned, format};
use core::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Mutex, MutexGuard, PoisonError};

use exitstack::report::{set_hook, take_hook};

/// What ran, in order.
#[derive(Clone, Default)]
pub struct Log(Rc<RefCell<Vec<&'static str>>>);

impl Log {
    /// Returns a handler that adds an entry.
    pub fn handler(&self, entry: &'static str) -> impl FnOnce() + 'static {
        let log = self.clone();
        move || log.0.borrow_mut().push(entry)
    }

    /// Returns the entries since the last time.
    pub fn take(&self) -> Vec<&'static str> {
        self.0.take()
    }
}

/// Panics without a word from the panic hook.
pub fn quiet_panic(message: &'static str) -> ! {
    resume_unwind(Box::new(message))
}

/// Returns the message of the panic that `action` must end with.
pub fn panic_of<R>(action: impl FnOnce() -> R) -> String {
    let Err(payload) = catch_unwind(AssertUnwindSafe(action)) else { panic!("no panic") };
    (*payload.downcast::<&str>().expect("a panic with a text")).to_owned()
}

/// Makes the hook this test's alone, until the guard is dropped.
pub fn alone() -> MutexGuard<'static, ()> {
    static HOOK: Mutex<()> = Mutex::new(());
    HOOK.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns what `action` reports: the causes of failures, or what has happened to a handler.
pub fn reported(action: impl FnOnce()) -> Vec<String> {
    let _alone = alone();
    let reports = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&reports);
    set_hook(Box::new(move |error| {
        let text = format!("{error:#}");
        let (_, cause) = text.split_once(" failed: ").or_else(|| text.split_once(" panicked")).expect("a failure");
        sink.lock().unwrap().push(cause.to_owned());
    }));
    action();
    drop(take_hook());
    core::mem::take(&mut *reports.lock().unwrap())
}
