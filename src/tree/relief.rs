//! How a handler that does not return is given up, and how its drain is continued without it.
//!
//! 1. To *give up* a handler is to give up its frame and those around it, as far out as the watched drain needs them:
//!    the thread comes back to these only when the handler returns. Their drains get a *key* as their owner, by which the
//!    thread that goes on resumes them. If the watch waits for another one's drains, it publishes these: they are nobody's,
//!    and whichever thread reaches them next resumes them.
//! 2. A handler that was given up counts as nested in its stack until it returns, so the stack does not settle before;
//!    but nothing waits for it.
//! 3. Of the drains that were given up, the innermost is resumed first, whichever of them a thread reaches: each has the
//!    next one further in [behind](super::behind) it, and whoever resumes it resumes that one first, or waits for the
//!    thread that does. Where another thread has resumed that one already, for another watch, those further in are behind
//!    this one, too.
//! 4. A thread that resumes a drain owns it before it resumes those further in, and publishes what is nested in it: what it
//!    runs there may reach one further out, by `close()` or as a part of what it drains, and must not wait for itself.
//! 5. Each handler that is given up is a failure of its own drain. The thread that was given up, or the one that goes on for
//!    it, is told what became of its drain if another thread has ended that.
//! 6. A handler is given up for the sake of one watch. The frames of other drains that this reaches, because one teardown
//!    drains a stack with all that is nested in it, are given up too, but not replaced: their thread resumes what is left
//!    of them when the handler returns ([`Late::ForAnother`]), unless their own watch gives it up before.
//! 7. The thread that watches runs no handler, no drop and no hook, not even the report hook: that is left to the thread
//!    that goes on.
//! 8. Watches give up one after the other: two may give up the same frame, and its drains, the stack's and those of what is
//!    nested in that, must not get two owners. A thread that was given up waits until the watch is done. No other takes
//!    that lock, so memory is allocated under it. It comes before all others.

#[cfg(all(test, not(all(loom, feature = "loom"))))]
mod tests;

use std::mem;
use std::sync::Arc;
use std::time::Instant;

use super::behind::{Left, What, leave_behind, leave_first};
use super::frames::{FRAMES, Frame, Late, note_end_gave_up};
use super::record::Fate;
use super::run::Run;
use super::wait_graph::{Slot, ThreadKey, Waited, Waiters, awaited_by};
use super::watch::Watch;
use super::{OutOfTurn, SharedExitStack, State};
use crate::chain::{Chain, Link};
use crate::error::{CloseError, Failures, HandlerError, HandlerErrorKind};
use crate::list::HandlerId;
use crate::sync::{PerProcess, global};

global! {
    /// Held while a watch gives up a handler.
    static GIVING_UP: PerProcess<()> = PerProcess::new(());
}

/// Waits until the watch that has given up a handler of this thread is done with that.
pub(super) fn await_give_up() {
    drop(GIVING_UP.lock());
}

/// The handler that keeps a watched drain from going on.
pub(crate) struct Blocking {
    pub(crate) run: Arc<Run>,
    pub(super) thread: ThreadKey,
    /// The outermost of its thread's teardowns that the drain needs.
    pub(super) from: usize,
    /// Whether that thread runs the drain itself.
    pub(super) is_driver: bool,
    /// When the drain began to wait for it.
    pub(crate) since: Instant,
    /// Whether another watched drain goes on without it.
    pub(crate) is_given_up: bool,
    /// Whether it waits for one further in that was given up, and so does not end by itself, however much time it has.
    pub(crate) is_stuck: bool,
}

impl Watch {
    /// Returns the handler that keeps this drain from going on: the innermost that its thread is in or, if that thread
    /// waits for another one's drain, the innermost that the other thread is in.
    pub(crate) fn blocking(self: &Arc<Self>) -> Option<Blocking> {
        let (driver, moved) = {
            let progress = self.progress.lock();
            (progress.driver, progress.moved)
        };
        let frames = FRAMES.lock();
        let awaited = |thread| {
            awaited_by(thread).filter(|&(owner, teardown)| {
                let is_it =
                    |frame: &Frame| frame.teardown == teardown && frame.thread == owner && frame.given_up.is_none();
                frames.iter().any(is_it)
            })
        };
        let own = frames.iter().filter(|frame| frame.thread == driver && frame.is_of(self));
        let (mut thread, mut from) = match own.map(|frame| frame.teardown).min() {
            // What has to be given up begins with the outermost of its frames.
            Some(outermost) => (driver, outermost),
            None => awaited(driver)?, // it has not begun: another thread still drains the stack
        };
        let mut steps = 0..=frames.len(); // bounded, as the graph may change in between
        while steps.next().is_some() {
            let Some(next) = awaited(thread) else { break };
            (thread, from) = next;
        }
        let innermost = frames.iter().find(|frame| frame.thread == thread && frame.may_block(self))?;
        let run = run_of(&frames, innermost)?;
        let is_driver = thread == driver;
        // It may have run for long when the drain came to wait for it.
        let since = if is_driver { run.since } else { run.since.max(moved) };
        // The process's end keeps to its own limits: what another watch has given up may still return.
        let is_over = |frame: &Frame| if self.ends_process { frame.is_lost } else { frame.given_up.is_some() };
        let is_further_in = |frame: &Frame| frame.thread == thread && frame.teardown > innermost.teardown;
        let is_stuck = frames.iter().any(|frame| is_further_in(frame) && is_over(frame));
        Some(Blocking { run, thread, from, is_driver, since, is_given_up: innermost.given_up.is_some(), is_stuck })
    }

    /// Gives up a handler that blocks this drain. Returns `None` if the handler has returned by now, otherwise whether
    /// another thread has to [resume](Self::resume) the drain.
    pub(crate) fn give_up(self: &Arc<Self>, blocking: &Blocking) -> Option<bool> {
        let _alone = GIVING_UP.lock();
        let mut given_up = self.give_up_frames(blocking)?;
        let mut untold = Vec::new();
        for (run, is_first) in mem::take(&mut given_up.runs) {
            let error = run.error(HandlerErrorKind::TimedOut(run.since.elapsed()));
            // Added before any drain is resumed, so that it is among the failures of the handler's own. Told once, however
            // many drains go on without it.
            if is_first && run.top.stack().gather(Failures::failure(error.clone())) {
                untold.push(error);
            }
            self.add(run.record(Fate::GivenUp));
        }
        let slot = given_up.slot.take();
        let first = given_up.disown(blocking.thread, untold);
        if blocking.is_driver {
            self.leave(&first, slot);
        } else {
            given_up.left.iter().rev().for_each(Left::publish);
        }
        for handler in given_up.waiting {
            handler.waiters.wake(&Waited::OwnerLeft(given_up.key));
        }
        Some(blocking.is_driver)
    }

    /// Leaves its drains to the thread that goes on: the outermost, with where to wait for it if another thread has resumed
    /// it, and in that case what comes before it.
    fn leave(&self, first: &[&Left], mut slot: Option<Slot>) {
        let left = |&left: &&Left| Link::new((left.clone(), slot.take()));
        let mut outermost_first = first.iter().rev().map(left).collect::<Vec<_>>().into_iter();
        let mut progress = self.progress.lock();
        outermost_first.by_ref().for_each(|left| progress.left.push(left));
        progress.driver = ThreadKey::fresh();
        drop(progress); // before what was allocated for the list
    }

    /// Resumes, on this thread, the drains whose thread was given up, the innermost first. Returns the result of the
    /// outermost, or an error if this thread is given up in turn.
    pub(crate) fn resume(self: &Arc<Self>) -> Result<Result<(), CloseError>, Late> {
        self.drive(|| {
            loop {
                let mut progress = self.progress.lock();
                let left = progress.left.pop();
                let is_outermost = progress.left.is_empty();
                drop(progress);
                let Some((left, slot)) = left.map(Link::into_value) else { return Ok(Ok(())) };
                if is_outermost {
                    return left.resume(slot);
                }
                left.resume_first(slot)?;
            }
        })
    }

    /// Leaves it to whichever thread reaches one of the drains to resume that, as no thread can be started for it.
    pub(crate) fn abandon(&self) {
        let all = mem::take(&mut self.progress.lock().left);
        for (left, slot) in all {
            left.publish_all();
            mem::forget(slot); // the drop of a user's error may take forever
        }
        self.end();
    }

    /// Gives up the frames of a handler. Returns `None` if it has returned.
    fn give_up_frames(self: &Arc<Self>, blocking: &Blocking) -> Option<GivenUp> {
        let mut given_up = GivenUp::new();
        let own = |frame: &Frame| frame.thread == blocking.thread && frame.may_block(self);
        let is_needed = |frame: &Frame| own(frame) && frame.teardown >= blocking.from;
        loop {
            let mut frames = FRAMES.lock();
            let innermost = frames.iter().find(|frame| own(frame))?;
            if !run_of(&frames, innermost).is_some_and(|run| Arc::ptr_eq(&run, &blocking.run)) {
                return None; // it has returned
            }
            let count = frames.iter().filter(|frame| is_needed(frame)).count();
            if !given_up.has_room(count) {
                drop(frames);
                given_up.reserve(count);
                continue;
            }
            given_up.further_in = further_in(&frames, blocking.thread, innermost.teardown);
            for frame in frames.iter_mut().filter(|frame| is_needed(frame)) {
                frame.is_replaced = frame.is_of(self);
                given_up.add(frame);
                frame.is_lost |= self.ends_process;
            }
            if blocking.is_driver {
                let outermost = frames.iter_mut().find(|frame| frame.teardown == blocking.from);
                given_up.slot = outermost.and_then(|frame| frame.slot.take());
            }
            if self.ends_process {
                note_end_gave_up();
            }
            break;
        }
        Some(given_up)
    }
}

/// Returns the handler that a frame is in or, if it resumes drains further in before it goes on, the outermost of theirs.
fn run_of(frames: &Chain<Frame>, frame: &Frame) -> Option<Arc<Run>> {
    let further_in = |other: &&Frame| other.thread == frame.thread && other.teardown > frame.teardown;
    let resumed = || frames.iter().filter(further_in).filter_map(|other| other.run.as_ref()).last();
    frame.run.as_ref().or_else(resumed).cloned()
}

/// Returns the outermost of a thread's drains further in than this teardown, which all were given up before.
fn further_in(frames: &Chain<Frame>, thread: ThreadKey, teardown: usize) -> Option<Left> {
    let all = frames.iter().filter(|frame| frame.thread == thread && frame.teardown > teardown);
    let outermost = all.filter(|frame| frame.purpose.is_some()).last()?;
    let Frame { root, purpose, teardown, given_up, .. } = outermost;
    Some(Left { root: root.clone(), purpose: (*purpose)?, teardown: *teardown, key: (*given_up)? })
}

/// What became of the frames of a handler that was given up.
struct GivenUp {
    /// Their handlers, and whether no other watch has given them up before; the innermost first.
    runs: Vec<(Arc<Run>, bool)>,
    /// Their drains, the innermost first.
    left: Vec<Left>,
    /// The handlers among them that ran out of turn and that a drain waits for.
    waiting: Vec<Awaited>,
    /// A drain further in than all of them, which another watch has given up before.
    further_in: Option<Left>,
    /// The key that owns the drains.
    key: ThreadKey,
    /// Entries with which the handlers' stacks note that these were given up.
    links: Vec<Link<OutOfTurn>>,
    /// Slots at which their thread waits for the drains once it comes back.
    slots: Vec<Slot>,
    /// Where another thread waits for the outermost drain, if that was given up before.
    slot: Option<Slot>,
}

/// A handler that ran out of turn when it was given up.
struct Awaited {
    run: Arc<Run>,
    waiters: Waiters,
    /// The number of drains that are inside it.
    inside: usize,
}

impl GivenUp {
    fn new() -> Self {
        let (runs, left, waiting) = (Vec::new(), Vec::new(), Vec::new());
        let (key, links, slots) = (ThreadKey::fresh(), Vec::new(), Vec::new());
        Self { runs, left, waiting, further_in: None, key, links, slots, slot: None }
    }

    /// Returns whether this many frames can be added without allocating.
    fn has_room(&self, count: usize) -> bool {
        count <= self.links.len() // and there is as much room for everything else
    }

    fn reserve(&mut self, count: usize) {
        self.runs.reserve(count);
        self.left.reserve(count);
        self.waiting.reserve(count);
        self.links.resize_with(count, || Link::new(OutOfTurn::given_up()));
        self.slots.resize_with(count, Slot::new);
    }

    /// Takes the drains from their thread, and leaves behind each what comes first. Returns what comes before a drain further
    /// out than all of them: the outermost and, if another thread has resumed that, because another watch had given it up
    /// before, those further in.
    fn disown(&self, thread: ThreadKey, untold: Vec<HandlerError>) -> Vec<&Left> {
        let mut first: Vec<&Left> = self.further_in.iter().collect();
        let mut inside = vec![first.clone()];
        for drain in &self.left {
            if drain.disown(&first) {
                first.clear();
            }
            first.push(drain);
            inside.push(first.clone());
        }
        let is_drained = |handler: &&Awaited| handler.run.top.stack().is_drained_by_other(thread, self.key);
        let awaited: Vec<_> = self.waiting.iter().filter(is_drained).collect();
        for handler in &awaited {
            leave_first(&handler.run.top, &inside[handler.inside]);
        }
        let drain = self.left.iter().find(|drain| drain.is_left()).or(self.left.last()).map(|drain| &drain.root);
        if let Some(stack) = drain.or(awaited.first().map(|handler| &handler.run.top)) {
            untold.into_iter().rev().for_each(|error| leave_behind(stack, What::Untold(error)));
        }
        first
    }

    /// Adds a frame, the innermost first. Neither allocates nor frees: the list of frames is locked.
    fn add(&mut self, frame: &mut Frame) {
        let is_first = frame.given_up.is_none();
        frame.given_up = Some(self.key);
        if let Some(run) = &frame.run {
            self.runs.push((Arc::clone(run), is_first));
            let mut state = run.top.stack().lock();
            if let Some(waiters) = state.note_given_up(frame.teardown, frame.thread, &mut self.links) {
                self.waiting.push(Awaited { run: Arc::clone(run), waiters, inside: self.left.len() });
            }
        }
        if let Some(purpose) = frame.purpose {
            if !frame.is_replaced {
                if let Some(drain) = &mut frame.root.stack().lock().drain {
                    frame.slot = self.slots.pop();
                    frame.slot.iter_mut().for_each(|slot| drain.waiters.push(slot));
                }
            }
            self.left.push(Left { root: frame.root.clone(), purpose, teardown: frame.teardown, key: self.key });
        }
    }
}

impl SharedExitStack {
    /// Returns whether this stack is drained by a thread other than the one that was given up, whose drains `key` owns.
    fn is_drained_by_other(&self, given_up: ThreadKey, key: ThreadKey) -> bool {
        self.lock().drain.as_ref().is_some_and(|drain| drain.owner != given_up && drain.owner != key)
    }

    /// Notes that a handler of this stack that was given up has returned.
    pub(super) fn come_back(&self, teardown: usize) {
        let mut state = self.lock();
        let ended = state.out_of_turn.take_if(|handler| handler.teardown == teardown);
        let settled = state.is_settled();
        drop(state);
        drop(ended);
        if settled {
            self.unlink_settled();
        }
    }
}

impl OutOfTurn {
    fn given_up() -> Self {
        let (id, thread, waiters) = (HandlerId::unknown(), ThreadKey::fresh(), Waiters::default());
        Self { id, thread, waiters, skipped_by: None, teardown: 0, is_given_up: true }
    }
}

impl State {
    /// Notes that a handler of this stack was given up, and counts as nested in it from now on, by one of the `links`.
    /// Returns the threads that wait for it, if it ran out of turn and so was nested already. Nothing waits for one that was
    /// given up before.
    fn note_given_up(
        &mut self,
        teardown: usize,
        thread: ThreadKey,
        links: &mut Vec<Link<OutOfTurn>>,
    ) -> Option<Waiters> {
        if let Some(handler) = self.out_of_turn.iter_mut().find(|handler| handler.teardown == teardown) {
            let is_first = !mem::replace(&mut handler.is_given_up, true);
            return is_first.then(|| mem::take(&mut handler.waiters));
        }
        let mut link = links.pop()?;
        (link.value_mut().teardown, link.value_mut().thread) = (teardown, thread);
        self.out_of_turn.push(link);
        None
    }
}
