//! How handlers run: the one drain loop.

use std::any::Any;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use crate::error::{
    Asked, CloseError, Exit, Gathered, HandlerError, HandlerErrorKind, Name, Outcome, Site, panic_message,
};
use crate::handler::Entry;
use crate::list::Found;
use crate::raw::BoxError;
use crate::report::report;

/// What a drain takes its handlers from, and tells what came of them.
pub(crate) trait Source<B: ?Sized> {
    /// Lends the next entry, where nobody else can reach it: whatever it does, it runs at most once. Runs no user code;
    /// nothing is left in the entry that was lent before.
    fn next(&mut self) -> Option<&mut Entry<B>>;

    /// Keeps, or reports, what became of a handler that did not simply return.
    fn note(&mut self, note: Note);
}

/// What became of a handler that did not simply return.
pub(crate) struct Note {
    site: Site,
    failure: Option<HandlerErrorKind>,
    exit_code: Option<i32>,
}

impl Note {
    fn failed(site: Site, error: BoxError) -> Self {
        if let Some(exit) = downcast::<Exit>(&error) {
            return Self { site, failure: None, exit_code: Some(exit.0) };
        }
        let close = downcast::<CloseError>(&error);
        let exit_code = close.and_then(CloseError::exit_code);
        let asks_only = close.is_some_and(|close| close.errors().is_empty());
        let failure = if asks_only { None } else { Some(HandlerErrorKind::Failed(error.into())) };
        Self { site, failure, exit_code }
    }

    fn panicked(site: Site, payload: Box<dyn Any + Send>) -> Self {
        let exit_code = payload.downcast_ref().map(|exit: &Exit| exit.0);
        let failure = exit_code.is_none().then(|| HandlerErrorKind::Panicked(panic_message(&*payload)));
        discard(payload);
        Self { site, failure, exit_code }
    }

    /// What the drain is to gather of it; a failure is returned too, for who reports it.
    pub(crate) fn gathered(self, path: Option<String>) -> (Gathered, Option<HandlerError>) {
        let mut gathered = self.exit_code.map_or_else(Gathered::default, |code| Gathered::exit(Asked::now(code)));
        let error = self.failure.map(|kind| HandlerError::new(path, self.site, kind));
        if let Some(error) = &error {
            drop(gathered.merge(Gathered::failure(error.clone())));
        }
        (gathered, error)
    }
}

/// The error itself, or in a box of its own.
fn downcast<E: std::error::Error + 'static>(error: &BoxError) -> Option<&E> {
    error.downcast_ref::<E>().or_else(|| error.downcast_ref::<Box<E>>().map(|boxed| &**boxed))
}

/// Runs all that `source` gives, until it gives no more. Each handler that fails or panics is noted and the next one
/// runs; nothing unwinds out of here.
#[inline]
pub(crate) fn drain<B: ?Sized>(source: &mut impl Source<B>, outcome: Outcome) {
    loop {
        // What the report of a panic needs.
        let (mut name, mut location) = (None, None);
        // Entered again after a panic only: a handler that returns costs no unwinding frame of its own.
        let drained = catch_unwind(AssertUnwindSafe(|| {
            while let Some(entry) = source.next() {
                location = Some(entry.location);
                let plain = entry.closure.is_plain();
                let result = if plain { entry.closure.run() } else { run_dressed(entry, outcome, &mut name) };
                if let Err(error) = result {
                    let site = Site { name: name.take(), location: entry.location };
                    source.note(Note::failed(site, error));
                }
            }
        }));
        match (drained, location) {
            (Ok(()), _) => return,
            (Err(payload), Some(location)) => source.note(Note::panicked(Site { name, location }, payload)),
            // No handler's. The source is to let none out; to ask it again might be for ever.
            (Err(payload), None) => return discard(payload),
        }
    }
}

/// Runs a handler that may have a name, or drops it if it waits for another outcome. The name stands in `name` meanwhile,
/// and after that if it failed.
#[inline(never)]
fn run_dressed<B: ?Sized>(entry: &mut Entry<B>, outcome: Outcome, name: &mut Option<Name>) -> Result<(), BoxError> {
    *name = entry.closure.name().cloned();
    if entry.closure.only().is_none_or(|only| only == outcome) {
        entry.closure.run()?;
    } else {
        entry.closure.discard();
    }
    *name = None;
    Ok(())
}

/// Runs one entry that was taken out of its turn, whatever outcome it waits for.
pub(crate) fn run_one<B: ?Sized>(entry: Entry<B>, path: impl Fn() -> Option<String>) -> Result<(), CloseError> {
    struct One<B: ?Sized, P> {
        entry: Entry<B>,
        lent: bool,
        gathered: Gathered,
        path: P,
    }
    impl<B: ?Sized, P: Fn() -> Option<String>> Source<B> for One<B, P> {
        fn next(&mut self) -> Option<&mut Entry<B>> {
            (!mem::replace(&mut self.lent, true)).then_some(&mut self.entry)
        }

        fn note(&mut self, note: Note) {
            drop(self.gathered.merge(note.gathered((self.path)()).0));
        }
    }
    let outcome = entry.closure.only().unwrap_or(Outcome::Success);
    let mut one = One { entry, lent: false, gathered: Gathered::default(), path };
    drain(&mut one, outcome);
    one.gathered.into_result()
}

/// Drops every value, also when the drop of one panics; the first such panic then goes on.
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

/// Drops what was removed, as [`drop_all`], and counts it.
pub(crate) fn drop_counted<T>(removed: Found<T>) -> usize {
    let count = removed.len();
    drop_all(removed);
    count
}

/// Drops what a handler left: what a panic carried, or an error, which may be the last of its kind here. Its drop may panic
/// in turn; what that carries is leaked, as std does with it.
pub(crate) fn discard<T>(left: T) {
    if let Err(second) = catch_unwind(AssertUnwindSafe(|| drop(left))) {
        std::mem::forget(second);
    }
}

/// The exit status that a result asks for which nobody is told. What it holds is dropped: errors of the users' own, whose
/// drop may panic.
pub(crate) fn status_of(result: Result<(), CloseError>) -> Option<Asked> {
    let error = result.err()?;
    let asked = error.asked();
    discard(error);
    asked
}

/// Reports a failure, if there is one.
pub(crate) fn report_if(error: Option<HandlerError>) {
    if let Some(error) = error {
        report(&error);
    }
}
