//! How handlers run: the one drain loop.

use alloc::boxed::Box;
use alloc::string::String;
use core::error::Error;
use core::mem;
use core::panic::Location;

use scopeguard::guard;

use crate::error::{CloseError, Exit, ExitRequest, Failures, HandlerError, HandlerErrorKind, Name, Outcome, Site};
use crate::handler::Entry;
use crate::panics::{Payload, arm, catch, discard, panic_message, uncaught};
use crate::raw::BoxError;

/// What a drain takes its handlers from.
pub(crate) trait Source<B: ?Sized> {
    /// The work that the handlers clean up after.
    type Work: Work + ?Sized;

    /// Lends the next handler, which nothing else can reach any more, so it runs at most once whatever it does. The
    /// previous entry is empty by now.
    fn next(&mut self) -> Option<(&mut Entry<B>, &Self::Work)>;

    /// Keeps, or reports, the outcome of a handler that did not simply return.
    fn note(&mut self, outcome: HandlerOutcome);

    /// Reports what was kept, and from now on everything: a panic that cannot be caught goes on through the drain, so that
    /// nothing can be returned.
    fn unwinds(&mut self) {}
}

/// Work that is being cleaned up after.
pub(crate) trait Work {
    /// Returns how it ended. Called only for a handler that may look at the outcome.
    fn outcome(&self) -> Outcome;
}

impl Work for Outcome {
    #[inline]
    fn outcome(&self) -> Outcome {
        *self
    }
}

/// The outcome of a handler that did not simply return.
pub(crate) struct HandlerOutcome {
    site: Site,
    failure: Option<HandlerErrorKind>,
    exit_code: Option<i32>,
}

impl HandlerOutcome {
    fn failed(site: Site, error: BoxError) -> Self {
        if let Some(exit) = downcast::<Exit>(&error) {
            return Self { site, failure: None, exit_code: Some(exit.0) };
        }
        #[cfg(feature = "async")]
        if error.is::<NotRun>() {
            return Self { site, failure: Some(HandlerErrorKind::NotRun), exit_code: None };
        }
        // What another stack's `close()` returned may be an exit request rather than a failure.
        let close = downcast::<CloseError>(&error);
        let exit_code = close.and_then(CloseError::exit_code);
        let is_request = close.is_some_and(|close| close.errors().is_empty());
        let failure = if is_request { None } else { Some(HandlerErrorKind::Failed(error.into())) };
        Self { site, failure, exit_code }
    }

    fn panicked(site: Site, payload: Payload) -> Self {
        // `exitstack::exit` leaves a handler by unwinding with an `Exit`.
        let exit_code = payload.downcast_ref().map(|exit: &Exit| exit.0);
        let failure = exit_code.is_none().then(|| HandlerErrorKind::Panicked(panic_message(&*payload)));
        discard(payload);
        Self { site, failure, exit_code }
    }

    /// Attributes the outcome to another place, for a future that was polled on behalf of the handler that returned it.
    #[cfg(feature = "async")]
    pub(crate) fn at(self, site: Site) -> Self {
        Self { site, ..self }
    }

    /// Returns what the drain gathers, and the failure itself, for the report.
    pub(crate) fn into_failures(self, path: Option<String>) -> (Failures, Option<HandlerError>) {
        let mut failures = self.exit_code.map_or_else(Failures::default, |code| Failures::exit(ExitRequest::now(code)));
        let error = self.failure.map(|kind| HandlerError::new(path, self.site, kind));
        if let Some(error) = &error {
            drop(failures.merge(Failures::failure(error.clone())));
        }
        (failures, error)
    }
}

/// What an async handler returns to the drain if it was dropped instead of being run.
#[cfg(feature = "async")]
#[derive(Debug, thiserror::Error)]
#[error("not run")]
pub(crate) struct NotRun;

/// Returns the error as an `E`, whether it is one or a box of one.
fn downcast<E: Error + 'static>(error: &BoxError) -> Option<&E> {
    error.downcast_ref::<E>().or_else(|| error.downcast_ref::<Box<E>>().map(|boxed| &**boxed))
}

/// Runs every handler that `source` lends. The outcome of one that fails or panics is noted, and the next one runs.
///
/// Nothing unwinds out of here, unless a panic cannot be caught: then it goes on after the last handler.
#[inline]
pub(crate) fn drain<B: ?Sized, S: Source<B>>(source: &mut S) {
    loop {
        // For the report, if the handler panics.
        let (mut name, mut location) = (None, None);
        // Entered again only after a panic, so that handlers that return do not pay for a landing pad each. Nor for a
        // call: as a function of its own, the loop would keep all this in memory.
        let drained = catch(|| {
            let state = (&mut *source, &mut name, &mut location);
            let mut armed = arm(state, |(source, name, location)| drain_unwinding(source, name.take(), *location));
            let (source, name, location) = armed.state();
            while let Some((entry, work)) = source.next() {
                **location = Some(entry.location);
                let plain = entry.closure.is_plain();
                let result = if plain { entry.closure.run(ANY) } else { run_dressed(entry, work.outcome(), name) };
                if let Err(error) = result {
                    let site = Site { name: name.take(), location: entry.location };
                    **location = None; // a panic of the report, or of the error's drop, is not the handler's
                    source.note(HandlerOutcome::failed(site, error));
                }
            }
            armed.disarm();
        });
        match (drained, location) {
            (Ok(()), _) => return,
            (Err(payload), Some(location)) => source.note(HandlerOutcome::panicked(Site { name, location }, payload)),
            // Not a handler's panic. A source never panics; if one did, asking it again might never end.
            (Err(payload), None) => return discard(payload),
        }
    }
}

/// Runs the rest of the handlers while a panic unwinds that cannot be caught.
fn drain_unwinding<B: ?Sized>(
    source: &mut impl Source<B>,
    name: Option<Name>,
    location: Option<&'static Location<'static>>,
) {
    let mut source = guard(source, |source| drain(source)); // also if a report panics
    source.unwinds();
    if let Some(location) = location {
        source.note(HandlerOutcome::panicked(Site { name, location }, uncaught()));
    }
}

/// The outcome that is passed to a handler which does not look at it.
const ANY: Outcome = Outcome::Failure;

/// Runs a handler that may have a name or look at the outcome; drops it if it is for another outcome. `name` is its name
/// while it runs, and afterwards if it failed.
#[inline(never)]
fn run_dressed<B: ?Sized>(entry: &mut Entry<B>, outcome: Outcome, name: &mut Option<Name>) -> Result<(), BoxError> {
    *name = entry.closure.name().cloned();
    if entry.closure.only().is_none_or(|only| only == outcome) {
        entry.closure.run(outcome)?;
    } else {
        entry.closure.discard();
    }
    *name = None;
    Ok(())
}

/// Runs one handler out of turn, for the outcome it is registered for. If that is both, the outcome is failure, because
/// nothing says that the work was done.
pub(crate) fn run_one<B: ?Sized>(entry: Entry<B>, path: impl Fn() -> Option<String>) -> Result<(), CloseError> {
    struct One<B: ?Sized, P> {
        entry: Entry<B>,
        outcome: Outcome,
        lent: bool,
        failures: Failures,
        path: P,
    }
    impl<B: ?Sized, P: Fn() -> Option<String>> Source<B> for One<B, P> {
        type Work = Outcome;

        fn next(&mut self) -> Option<(&mut Entry<B>, &Outcome)> {
            (!mem::replace(&mut self.lent, true)).then_some((&mut self.entry, &self.outcome))
        }

        fn note(&mut self, outcome: HandlerOutcome) {
            drop(self.failures.merge(outcome.into_failures((self.path)()).0));
        }
    }
    let outcome = entry.closure.only().unwrap_or(Outcome::Failure);
    let mut one = One { entry, outcome, lent: false, failures: Failures::default(), path };
    drain(&mut one);
    one.failures.into_result()
}
