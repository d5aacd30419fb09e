//! How a handler that does not return is given up, and how its drain is continued without it.
//!
//! 1. To *give up* a handler is to give up its frame and those around it, as far out as the watched drain needs them:
//!    the thread comes back to these only when the handler returns. Their drains get an owner that has left (see
//!    [`wait_graph`](super::wait_graph)), so whichever thread reaches them next resumes them, as after C's `exit`.
//! 2. A handler that was given up counts as nested in its stack until it returns, so the stack does not settle before;
//!    but nothing waits for it.
//! 3. Of the drains that were given up, the innermost is resumed first. So either the outer ones cannot be resumed
//!    before it is over, or the inner ones are left [`Behind`], for the first thread that reaches an outer one.
//! 4. The thread that goes on owns all of them at once, as the one that was given up did: what it runs further in may
//!    reach one further out, by `close()` or as a part of what it drains, and must not wait for itself.
//! 5. A handler is given up for the sake of one watch. The frames of other drains that this reaches, because one teardown
//!    drains a stack with all that is nested in it, are given up too, but not replaced: their thread resumes what is left
//!    of them when the handler returns ([`Late::ForAnother`]), unless their own watch gives it up before.
//! 6. The thread that watches runs no handler, no drop and no hook, not even the report hook: that is left to the thread
//!    that goes on.

use std::mem;
use std::sync::Arc;
use std::time::Instant;

use super::frames::{FRAMES, Frame, Late, note_end_gave_up};
use super::lifecycle::Purpose;
use super::record::Fate;
use super::run::{Run, Spot};
use super::wait_graph::{ThreadKey, Waited, Waiters, awaited_by, note_left};
use super::watch::{Left, Watch};
use super::{OutOfTurn, SharedExitStack, State};
use crate::chain::{Chain, Link};
use crate::error::{CloseError, Failures, HandlerError, HandlerErrorKind, Outcome};
use crate::list::HandlerId;
use crate::report::report;
use crate::sync::{PerProcess, global};

/// What a thread has to do before it resumes a drain whose owner has left.
pub(crate) struct Behind {
    /// The owner that has left.
    pub(super) key: ThreadKey,
    /// A failure that is still to be reported.
    pub(super) error: Option<HandlerError>,
    /// The drains further in, the innermost last.
    pub(super) inner: Vec<Left>,
}

global! {
    static BEHIND: PerProcess<Chain<Behind>> = PerProcess::new(Chain::new());
}

/// Does what was left behind for the drains of this owner, one of which is this thread's by now: `exit` in the report hook
/// counts as in one of its handlers, and what is resumed further in may come to it.
#[cold]
pub(super) fn go_on_for(key: ThreadKey) -> Result<(), Late> {
    loop {
        let mut all = BEHIND.lock();
        let Some(behind) = all.iter_mut().find(|behind| behind.key == key) else { return Ok(()) };
        if let Some(error) = behind.error.take() {
            drop(all);
            report(&error);
            continue;
        }
        // One at a time: if this thread is given up in turn, the next one finds the rest.
        let Some(left) = behind.inner.pop() else {
            let done = all.take_if(|behind| behind.key == key);
            drop(all);
            drop(done);
            return Ok(());
        };
        drop(all);
        // A key of its own: whoever reaches a drain of the old one goes on with what is left behind for that first.
        let own = ThreadKey::fresh();
        left.root.stack().disown(left.teardown, left.key, own);
        note_left(own);
        left.root.stack().report_all(); // this drain's result is returned to nobody
        drop(left.root.stack().resume(left.purpose, own)?);
    }
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
        let run = Arc::clone(innermost.run.as_ref()?);
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
        let GivenUp { mut left, waiting, key, links: _ } = self.give_up_frames(blocking)?;
        let run = &blocking.run;
        let error = run.error(HandlerErrorKind::TimedOut(run.since.elapsed()));
        // Added before any drain is resumed, so that it is among the failures of the handler's own. Told once, however
        // many drains go on without it.
        let reports = !blocking.is_given_up && run.top.stack().gather(Failures::failure(error.clone()));
        self.add(run.record(Fate::GivenUp));
        for drain in &left {
            drain.root.stack().disown(drain.teardown, blocking.thread, drain.key);
        }
        let mut behind = Link::new(Behind { key, error: reports.then_some(error), inner: Vec::new() });
        if blocking.is_driver {
            BEHIND.lock().push(behind);
            self.let_go(blocking.thread, left);
            for waiters in waiting {
                waiters.wake(&Waited::OwnerLeft(key));
            }
            return Some(true);
        }
        // The thread that waits for the outermost drain is woken. It resumes those further in, then the outermost.
        let is_awaited = left.first().is_some_and(|drain| drain.teardown == blocking.from); // else one out of turn is
        let outermost = is_awaited.then(|| left.remove(0));
        let inner: Vec<Spot> = left.iter().map(|drain| drain.root.clone()).collect();
        behind.value_mut().inner = left;
        BEHIND.lock().push(behind);
        note_left(key);
        for root in outermost.iter().map(|drain| &drain.root).chain(&inner) {
            root.stack().wake_waiters(key, &Waited::OwnerLeft(key));
        }
        for waiters in waiting {
            waiters.wake(&Waited::OwnerLeft(key));
        }
        Some(false)
    }

    /// Leaves the drain, which `thread` drove, without a driver until it is [resumed](Self::resume). That begins with
    /// `left`, whose last is the innermost; what the thread held for later is nobody's again.
    fn let_go(&self, thread: ThreadKey, left: Vec<Left>) {
        let mut all = mem::take(&mut self.progress.lock().left); // the thread, which is late by now, takes none
        for drain in &all {
            drain.root.stack().disown(drain.teardown, thread, drain.key);
        }
        all.extend(left);
        let mut progress = self.progress.lock();
        progress.left = all;
        progress.driver = ThreadKey::fresh();
    }

    /// Resumes, on this thread, the drains whose thread was given up, the innermost first. Returns the result of the
    /// outermost, or an error if this thread is given up in turn.
    pub(crate) fn resume(self: &Arc<Self>) -> Result<Result<(), CloseError>, Late> {
        self.drive(|| {
            let mut outer = self.hold_outer();
            // In a child that a handler has forked, the lock may be held forever.
            while self.is_ours() {
                let next = {
                    let mut progress = self.progress.lock();
                    if progress.driver != ThreadKey::current() {
                        return Err(self.late());
                    }
                    progress.left.pop().map(|left| (left, progress.left.is_empty()))
                };
                let Some((Left { root, purpose, teardown, key }, is_outermost)) = next else { return Ok(Ok(())) };
                outer.pop();
                root.stack().disown(teardown, ThreadKey::current(), key);
                note_left(key);
                if !is_outermost {
                    root.stack().report_all(); // this drain's result is returned to nobody
                }
                let resumed = root.stack().resume(purpose, key)?;
                if is_outermost {
                    return Ok(resumed);
                }
                drop(resumed);
            }
            // The child goes on with what it has registered itself.
            let mut result = Ok(());
            while let Some((root, purpose)) = outer.pop() {
                result = root.stack().drain_watched(purpose, Outcome::Failure)?;
            }
            Ok(result)
        })
    }

    /// Makes this thread the owner of all drains that are to be resumed after the innermost. Returns all that are to be
    /// resumed, the innermost last.
    fn hold_outer(&self) -> Vec<(Spot, Purpose)> {
        let left = mem::take(&mut self.progress.lock().left);
        if let Some((_, outer)) = left.split_last() {
            for drain in outer {
                drain.root.stack().disown(drain.teardown, drain.key, ThreadKey::current());
                drain.root.stack().wake_waiters(ThreadKey::current(), &Waited::OwnerChanged);
            }
        }
        let all = left.iter().map(|drain| (drain.root.clone(), drain.purpose)).collect();
        self.progress.lock().left = left; // nothing was added: this thread is in no handler that could be given up
        all
    }

    /// Leaves it to whichever thread reaches one of the drains to resume that, as no thread can be started for it.
    pub(crate) fn abandon(&self) {
        let left = mem::take(&mut self.progress.lock().left);
        for drain in &left {
            note_left(drain.key);
        }
        for drain in &left {
            drain.root.stack().wake_waiters(drain.key, &Waited::OwnerLeft(drain.key));
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
            if !innermost.run.as_ref().is_some_and(|run| Arc::ptr_eq(run, &blocking.run)) {
                return None; // it has returned
            }
            let count = frames.iter().filter(|frame| is_needed(frame)).count();
            if !given_up.has_room(count) {
                drop(frames);
                given_up.reserve(count);
                continue;
            }
            for frame in frames.iter_mut().filter(|frame| is_needed(frame)) {
                let key = given_up.add(frame, blocking.is_driver);
                frame.given_up.get_or_insert(key);
                frame.is_replaced = frame.is_of(self);
                frame.is_lost |= self.ends_process;
            }
            if self.ends_process {
                note_end_gave_up();
            }
            break;
        }
        given_up.left.reverse();
        Some(given_up)
    }
}

/// What became of the frames of a handler that was given up.
struct GivenUp {
    /// Their drains, the innermost last.
    left: Vec<Left>,
    /// The threads that wait for handlers that ran out of turn.
    waiting: Vec<Waiters>,
    /// The key that owns the innermost drain, or all of them.
    key: ThreadKey,
    /// Entries with which the handlers' stacks note that these were given up.
    links: Vec<Link<OutOfTurn>>,
}

impl GivenUp {
    fn new() -> Self {
        let (left, waiting, links) = (Vec::new(), Vec::new(), Vec::new());
        Self { left, waiting, key: ThreadKey::fresh(), links }
    }

    /// Returns whether this many frames can be added without allocating.
    fn has_room(&self, count: usize) -> bool {
        count <= self.left.capacity() && count <= self.links.len()
    }

    fn reserve(&mut self, count: usize) {
        self.left.reserve(count);
        self.waiting.reserve(count);
        self.links.resize_with(count, || Link::new(OutOfTurn::given_up()));
    }

    /// Adds a frame, the innermost first, and returns the key that owns its drain from now on. Neither allocates nor frees:
    /// the list of frames is locked.
    fn add(&mut self, frame: &Frame, is_driver: bool) -> ThreadKey {
        if let Some(run) = &frame.run {
            let mut state = run.top.stack().lock();
            self.waiting.extend(state.note_given_up(frame.teardown, frame.thread, &mut self.links));
        }
        let Some(purpose) = frame.purpose else { return self.key };
        // Drains that another thread waits for share one key; drains that are resumed one by one have one each.
        let key = if is_driver && !self.left.is_empty() { ThreadKey::fresh() } else { self.key };
        self.left.push(Left { root: frame.root.clone(), purpose, teardown: frame.teardown, key });
        key
    }
}

impl SharedExitStack {
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

    /// Makes `key` the owner of the drains that a teardown of `thread` has begun in this stack and in those nested in
    /// it. The threads that wait for these do not notice unless they are [woken](Self::wake_waiters).
    pub(super) fn disown(&self, teardown: usize, thread: ThreadKey, key: ThreadKey) {
        let disown = |stack: &Self| {
            if let Some(drain) = &mut stack.lock().drain {
                drain.disown(teardown, thread, key);
            }
        };
        disown(self);
        self.visit_descendants(|node| disown(&node.stack));
    }

    /// Wakes the threads that wait for drains of this stack, or of those nested in it, whose owner is `key` by now.
    fn wake_waiters(&self, key: ThreadKey, waited: &Waited) {
        let wake = |stack: &Self| {
            let waiters = stack.lock().drain.as_mut().and_then(|drain| drain.waiters_of(key));
            if let Some(waiters) = waiters {
                waiters.wake(waited);
            }
        };
        wake(self);
        self.visit_descendants(|node| wake(&node.stack));
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
    /// Returns the threads that wait for it, if it ran out of turn and so was nested already.
    fn note_given_up(
        &mut self,
        teardown: usize,
        thread: ThreadKey,
        links: &mut Vec<Link<OutOfTurn>>,
    ) -> Option<Waiters> {
        if let Some(handler) = self.out_of_turn.iter_mut().find(|handler| handler.teardown == teardown) {
            handler.is_given_up = true;
            return Some(mem::take(&mut handler.waiters));
        }
        let mut link = links.pop()?;
        (link.value_mut().teardown, link.value_mut().thread) = (teardown, thread);
        self.out_of_turn.push(link);
        None
    }
}
