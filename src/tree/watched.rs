//! A teardown that is watched: a source for the one drain loop that notes which handler is running.
//!
//! A thread that finds its frame given up is *late*: it passes the handler's failure to the report hook, and takes no
//! further handler in this teardown. If its own watch has given it up, another thread goes on, and ends the drain, or the
//! process. If another watch has, the thread begins a new teardown: it resumes what is left, or waits for it.

use std::mem;
use std::sync::Arc;
use std::time::Instant;

use super::SharedExitStack;
use super::frames::{Late, drop_frame, push_frame, set_run};
use super::record::Fate;
use super::relief::await_give_up;
use super::run::{Run, Spot};
use super::teardown::Teardown;
use super::wait_graph::Slot;
use super::watch::{Watch, here};
use crate::drain::{HandlerOutcome, Source, drain};
use crate::error::{Failures, HandlerError, HandlerErrorKind};
use crate::handler::SharedEntry;
use crate::raw::Bound;
use crate::report::report;

/// Runs a drain that was acquired, and notes which handler is running. If this thread is given up, returns where to wait
/// for the drain, unless that is this thread's.
#[cold]
#[inline(never)]
pub(super) fn drain_watched(teardown: &mut Teardown<'_>, root: Spot, first: impl FnOnce()) -> Option<Slot> {
    let number = teardown.number;
    push_frame(number, root, Some(teardown.purpose));
    first();
    drain(&mut Watched { teardown, watch: here(), run: None, is_run: false });
    let Some((late, slot)) = drop_frame(number) else {
        // If it was an inner drain that this thread was given up in, the rest of this one is still to be done.
        teardown.late = teardown.late.map(|_| Late::ForAnother);
        return None;
    };
    await_give_up(); // before that, it may still find itself the owner
    teardown.late = Some(late);
    slot
}

/// Runs a handler out of turn by calling `run`, and notes that it is running.
#[cold]
#[inline(never)]
pub(super) fn run_watched<R>(number: usize, entry: SharedEntry, root: Spot, run: impl FnOnce(SharedEntry) -> R) -> R {
    push_frame(number, root.clone(), None);
    let _ = set_run(number, Some(Arc::new(Run::new(&entry, root))));
    let result = run(entry);
    drop_frame(number);
    result
}

/// A teardown that is watched.
struct Watched<'t, 's> {
    teardown: &'t mut Teardown<'s>,
    watch: Option<Arc<Watch>>,
    run: Option<Arc<Run>>,
    /// Whether that handler is run. One for the other outcome is dropped, of which there is nothing to record, unless it
    /// is given up or its drop panics.
    is_run: bool,
}

impl Watched<'_, '_> {
    fn watch(&self) -> Option<&Arc<Watch>> {
        self.watch.as_ref().filter(|watch| watch.is_ours())
    }

    /// Notes that the handler, if one was running, has ended. Returns whether the drain is still this thread's.
    fn end_run(&mut self, failure: Option<&HandlerError>) -> bool {
        let run = self.run.take();
        self.teardown.late = set_run(self.teardown.number, None).err();
        let late = self.teardown.late;
        if let (Some(_), Some(run)) = (late, &run) {
            failure.into_iter().for_each(report); // no drain returns it
            run.top.stack().come_back(self.teardown.number);
        }
        // A watch that has given the handler up has recorded that.
        if let (None | Some(Late::ForAnother), Some((watch, run))) = (late, self.watch().zip(run)) {
            let failed = failure.map(|error| Fate::Failed(error.clone()));
            if let Some(fate) = failed.or(self.is_run.then_some(Fate::Done)) {
                watch.add(run.record(fate));
            }
        }
        late.is_none()
    }
}

impl Source<dyn Bound + Send> for Watched<'_, '_> {
    type Work = SharedExitStack;

    fn next(&mut self) -> Option<(&mut SharedEntry, &SharedExitStack)> {
        if !self.end_run(None) {
            return None;
        }
        loop {
            self.teardown.catch_up(); // a handler that runs out of turn may have been given up meanwhile
            self.teardown.next()?; // `None` too if this thread was given up while it waited
            let (entry, top) = self.teardown.lent()?;
            let run = Arc::new(Run::new(entry, top.spot()?));
            self.is_run = entry.closure.only().is_none_or(|only| only == top.outcome());
            if self.watch().is_some_and(|watch| watch.stopped_since().is_some()) {
                // Neither run nor dropped: its drop might take as long.
                mem::forget(self.teardown.take_lent());
                if !self.is_run {
                    continue;
                }
                let error = run.error(HandlerErrorKind::NotRun);
                self.teardown.keep(Failures::failure(error.clone()), Some(&error));
                self.watch().into_iter().for_each(|watch| watch.add(run.record(Fate::NotRun)));
                continue;
            }
            self.run = Some(Arc::clone(&run));
            let _ = set_run(self.teardown.number, Some(run));
            if let Some(watch) = self.watch() {
                watch.progress.lock().moved = Instant::now();
                watch.changed.notify_all();
            }
            return self.teardown.lent();
        }
    }

    fn note(&mut self, outcome: HandlerOutcome) {
        let path = self.run.as_ref().and_then(|run| run.path());
        let (failures, error) = outcome.into_failures(path);
        if self.end_run(error.as_ref()) {
            self.teardown.keep(failures, error.as_ref());
        } // otherwise, an exit status that it requests does not count
    }
}
