//! Drains that are watched: what each thread runs now, and how a handler that does not return is given up.
//!
//! Nothing of this costs a drain anything in a process that has not called [`turn_on`]. In one that has:
//!
//! 1. A thread that drains has a *frame* for each of its teardowns, the innermost last, and the frame says which handler
//!    runs. A frame is in the list from the moment its drain is acquired until it is over.
//! 2. To *give up* a handler is to give up its frame, with the frames further in, which that thread will come back to only
//!    when the handler returns. Their drains get an owner that has left (see [`wait_graph`](super::wait_graph)), so
//!    whichever thread comes to them next resumes them, as it does after C's `exit`.
//! 3. Whether a handler has ended or was given up is decided under the lock of the list. A thread that finds its frame given
//!    up is *late*: it takes no further handler, tells the report hook of a failure, and ends nothing.
//! 4. A handler that was given up counts as nested in its stack until it returns, so the stack is not settled, but nobody
//!    waits for it.
//! 5. The innermost of the drains that were given up is resumed first. So those further out are not let go before, or what is
//!    further in is left [`Behind`] for whichever thread comes first to one that is.
//! 6. The thread that watches calls no foreign code, not even the report hook: that is left for the thread that goes on.
//! 7. Lock order: the list of frames, then a stack's lock or the wait graph's. A [`Watch`]'s lock is taken alone.

use std::cell::Cell;
use std::mem::{self, ManuallyDrop};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::lifecycle::Purpose;
use super::record::{Fate, Record, Running};
use super::teardown::{Late, Teardown};
use super::wait_graph::{ThreadKey, Waited, Waiters, awaited_by, note_left};
use super::{Node, OutOfTurn, Place, SharedExitStack};
use crate::chain::{Chain, Link};
use crate::drain::{HandlerOutcome, Source, drain};
use crate::error::{CloseError, Failures, HandlerError, HandlerErrorKind, Site};
use crate::handler::SharedEntry;
use crate::list::HandlerId;
use crate::panics::discard;
use crate::raw::{self, Bound};
use crate::report::report;
use crate::sync::{Condvar, Lock, PerProcess, global, per_thread};

global! {
    /// The epoch of the process in which drains are watched.
    static ON_IN: AtomicUsize = AtomicUsize::new(0);
}

/// Watches all drains of the tree that begin from now on in this process.
pub(crate) fn turn_on() {
    ON_IN.store(raw::epoch(), Ordering::Release);
}

global! {
    /// The epoch of the process in which its end has given up a handler.
    static END_GAVE_UP_IN: AtomicUsize = AtomicUsize::new(0);
}

/// Whether the end of this process has given up a handler, so that the process has to be ended without C.
pub(crate) fn end_gave_up() -> bool {
    END_GAVE_UP_IN.load(Ordering::Acquire) == raw::epoch()
}

#[inline]
pub(super) fn is_on(epoch: usize) -> bool {
    ON_IN.load(Ordering::Acquire) == epoch
}

/// A stack of a tree.
#[derive(Clone)]
pub(crate) enum Spot {
    Root(fn() -> &'static SharedExitStack),
    Node(Arc<Node>),
}

impl Spot {
    pub(crate) fn stack(&self) -> &SharedExitStack {
        match self {
            Self::Root(stack) => stack(),
            Self::Node(node) => &node.stack,
        }
    }
}

impl SharedExitStack {
    /// Where in a tree it is; none if it is a value.
    pub(super) fn spot(&self) -> Option<Spot> {
        match &self.place {
            Place::Value => None,
            Place::Root(root) => Some(Spot::Root(root.stack)),
            Place::Nested(node) => node.upgrade().map(Spot::Node),
        }
    }

    /// The number of handlers in it and in what is nested in it.
    pub(crate) fn count_all(&self) -> usize {
        let mut count = self.count();
        self.visit_descendants(|node| count += node.stack.count());
        count
    }
}

/// A handler that runs.
pub(crate) struct Run {
    site: Site,
    thread: Option<String>,
    since: Instant,
    limit: Option<Duration>,
    /// The stack that it is from. Its path is as long as that is deep, and told only where it is asked for.
    top: Spot,
    pub(crate) is_slow: AtomicBool,
}

impl Run {
    fn new(entry: &SharedEntry, top: Spot) -> Self {
        let label = entry.closure.label();
        let site = Site { name: label.and_then(|label| label.name.clone()), location: entry.location };
        Self {
            site,
            thread: raw::thread_name(),
            since: Instant::now(),
            limit: label.and_then(|label| label.limit),
            top,
            is_slow: AtomicBool::new(false),
        }
    }

    fn path(&self) -> Option<String> {
        self.top.stack().path()
    }

    pub(crate) fn since(&self) -> Instant {
        self.since
    }

    pub(crate) fn limit(&self) -> Option<Duration> {
        self.limit
    }

    pub(crate) fn running(&self, waiting: usize) -> Running {
        let Self { site, thread, since, .. } = self;
        Running { site: site.clone(), path: self.path(), thread: thread.clone(), since: *since, waiting }
    }

    fn record(&self, fate: Fate) -> Record {
        let Self { site, thread, since, .. } = self;
        let took = if matches!(fate, Fate::NotRun) { Duration::ZERO } else { since.elapsed() };
        Record { site: site.clone(), path: self.path(), thread: thread.clone(), took, fate }
    }

    fn error(&self, kind: HandlerErrorKind) -> HandlerError {
        HandlerError::new(self.path(), self.site.clone(), kind)
    }
}

pub(crate) struct Frame {
    teardown: usize,
    thread: ThreadKey,
    root: Spot,
    /// Why it drains; none if a handler just runs out of turn.
    purpose: Option<Purpose>,
    watch: Option<Arc<Watch>>,
    run: Option<Arc<Run>>,
    is_given_up: bool,
    /// It was given up by the end of the process, which is no longer this thread's affair.
    is_lost: bool,
}

global! {
    /// The frames of all threads, the newest first.
    static FRAMES: PerProcess<Chain<Frame>> = PerProcess::new(Chain::new());
}

/// When a handler is to be given up that a drain has waited for since an instant.
pub(crate) type Due = Box<dyn Fn(&Run, Instant) -> Option<Instant> + Send + Sync>;

/// What is told of each handler that has ended.
pub(crate) type Tell = Box<dyn Fn(&Record) + Send + Sync>;

/// A drain that is watched, by whichever threads it is continued.
pub(crate) struct Watch {
    /// The process that it belongs to.
    epoch: usize,
    /// Whether the process ends with it.
    ends_process: bool,
    /// When its time is over: no further handler begins then.
    pub(crate) ends: Option<Instant>,
    /// When a handler is to be given up that the drain has waited for since then.
    due: Due,
    told: Option<Tell>,
    progress: Lock<Progress>,
    changed: Condvar,
}

struct Progress {
    /// The thread that runs it, or is the last one that did.
    driver: ThreadKey,
    records: Chain<Record>,
    /// When the last handler began or ended.
    moved: Instant,
    /// No further handler begins.
    is_stopped: bool,
    is_over: bool,
    /// Its thread was given up for the sake of another drain that is watched, and nobody has gone on with it yet.
    needs_relief: bool,
    /// The drains that nobody runs any more, the innermost last.
    left: Vec<Left>,
}

/// A drain whose thread was given up.
pub(crate) struct Left {
    root: Spot,
    purpose: Purpose,
    teardown: usize,
    /// The owner that it has until it is resumed.
    key: ThreadKey,
}

/// What has to be done first by the thread that goes on with a drain whose owner has left.
pub(crate) struct Behind {
    key: ThreadKey,
    /// A failure that is still to be reported.
    error: Option<HandlerError>,
    /// The drains further in, the innermost last.
    inner: Vec<Left>,
}

global! {
    static BEHIND: PerProcess<Chain<Behind>> = PerProcess::new(Chain::new());
}

/// Does what was left behind by the thread that had this key.
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
        // One at a time: if this thread is given up in turn, the next one finds the others.
        let Some(left) = behind.inner.pop() else {
            let done = all.take_if(|behind| behind.key == key);
            drop(all);
            drop(done);
            return Ok(());
        };
        drop(all);
        left.root.stack().report_all(); // nobody will be told what this drain comes to
        discard(left.root.stack().resume(left.purpose)?);
    }
}

per_thread! {
    /// The drain that this thread runs.
    static HERE: Cell<ManuallyDrop<Option<Arc<Watch>>>> = Cell::new(ManuallyDrop::new(None));
}

fn set_here(watch: Option<Arc<Watch>>) -> Option<Arc<Watch>> {
    HERE.with(|here| ManuallyDrop::into_inner(here.replace(ManuallyDrop::new(watch))))
}

/// The drain that is watched and that this thread is in; none in a child that was forked in it.
pub(crate) fn here() -> Option<Arc<Watch>> {
    let watch = set_here(None);
    set_here(watch.clone());
    watch.filter(|watch| watch.is_ours())
}

impl Watch {
    /// Begins to watch a drain, which this thread is about to run. `told` is told of each handler that has ended.
    pub(crate) fn begin(
        began: Instant,
        ends: Option<Instant>,
        ends_process: bool,
        due: Due,
        told: Option<Tell>,
    ) -> Arc<Self> {
        turn_on();
        let progress = Progress {
            driver: ThreadKey::current(),
            records: Chain::new(),
            moved: began,
            is_stopped: false,
            is_over: false,
            needs_relief: false,
            left: Vec::new(),
        };
        let (progress, changed) = (Lock::new(progress), Condvar::new());
        Arc::new(Self { epoch: raw::epoch(), ends_process, ends, due, told, progress, changed })
    }

    /// Runs `drain` as the drain that is watched.
    pub(crate) fn drive<R>(self: &Arc<Self>, drain: impl FnOnce() -> R) -> R {
        self.progress.lock().driver = ThreadKey::current();
        let before = scopeguard::guard(set_here(Some(Arc::clone(self))), |before| drop(set_here(before)));
        let result = drain();
        drop(before);
        result
    }

    /// Notes that nothing of it is left to run.
    pub(crate) fn end(&self) {
        self.progress.lock().is_over = true;
        self.changed.notify_all();
    }

    pub(crate) fn is_over(&self) -> bool {
        self.progress.lock().is_over
    }

    /// Whether it belongs to this process, and not to one that was forked since: a lock of it may be held there for ever.
    pub(crate) fn is_ours(&self) -> bool {
        self.epoch == raw::epoch()
    }

    /// Lets no further handler begin.
    pub(crate) fn stop(&self) {
        self.progress.lock().is_stopped = true;
    }

    /// Since when no handler may begin any more, or the last one to do so or to end did; none if they may.
    pub(crate) fn stopped_since(&self) -> Option<Instant> {
        let progress = self.progress.lock();
        let ends = self.ends.filter(|ends| Instant::now() >= *ends);
        let stopped = if progress.is_stopped { Some(progress.moved) } else { None };
        [ends, stopped].into_iter().flatten().min().map(|at| at.max(progress.moved))
    }

    /// Waits until a handler begins or ends, or the drain is over, but no longer than this.
    pub(crate) fn wait(&self, timeout: Duration) {
        let progress = self.progress.lock();
        if !progress.is_over {
            let _ = self.changed.wait_timeout(progress, timeout);
        }
    }

    /// Returns when a handler is to be given up that the drain has waited for since `since`.
    pub(crate) fn due(&self, run: &Run, since: Instant) -> Option<Instant> {
        (self.due)(run, since)
    }

    fn add(&self, record: Record) {
        if let Some(told) = &self.told {
            told(&record);
        }
        let link = Link::new(record);
        let mut progress = self.progress.lock();
        progress.records.push(link);
        progress.moved = Instant::now();
        drop(progress);
        self.changed.notify_all();
    }

    /// Returns what became of its handlers, those that run now last.
    pub(crate) fn records(self: &Arc<Self>) -> Vec<Record> {
        let mut records = Vec::new();
        loop {
            let progress = self.progress.lock();
            let count = progress.records.len();
            if count <= records.capacity() {
                // The texts in a record are allocated again, which happens to be done under this lock. No other lock is
                // held, and an allocator that drains a stack which is watched is not supported.
                records.extend(progress.records.iter().cloned());
                break;
            }
            drop(progress);
            records.reserve(count);
        }
        records.reverse();
        records.extend(runs(|frame| frame.is_of(self)).iter().rev().map(|run| run.record(Fate::Running)));
        records
    }
}

impl Frame {
    fn is_of(&self, watch: &Arc<Watch>) -> bool {
        !self.is_given_up && self.watch.as_ref().is_some_and(|own| Arc::ptr_eq(own, watch))
    }
}

/// The handlers that run in the frames that `pick` picks, the last begun first.
fn runs(pick: impl Fn(&Frame) -> bool) -> Vec<Arc<Run>> {
    let mut found = Vec::new();
    loop {
        let frames = FRAMES.lock();
        if frames.len() <= found.capacity() {
            found.extend(frames.iter().filter(|frame| pick(frame)).filter_map(|frame| frame.run.clone()));
            return found;
        }
        let count = frames.len();
        drop(frames);
        found.reserve(count);
    }
}

/// Every handler that runs now in a drain of the tree, also those that were given up.
pub(crate) fn running() -> Vec<Running> {
    runs(|_| true).iter().rev().map(|run| run.running(run.top.stack().count_all())).collect()
}

/// The handler that this thread is in.
pub(crate) fn run_here() -> Option<Arc<Run>> {
    let me = ThreadKey::current();
    let frames = FRAMES.lock();
    frames.iter().find(|frame| frame.thread == me)?.run.clone()
}

/// Whether this thread is in a handler that was given up.
pub(crate) fn is_given_up_here() -> bool {
    let me = ThreadKey::current();
    FRAMES.lock().iter().any(|frame| frame.thread == me && frame.is_given_up)
}

/// Whether this thread is in a handler that the end of the process has given up: it may not end the process.
pub(crate) fn is_lost_here() -> bool {
    let me = ThreadKey::current();
    end_gave_up() && FRAMES.lock().iter().any(|frame| frame.thread == me && frame.is_lost)
}

/// Runs a drain that was acquired, and notes what it runs.
#[cold]
#[inline(never)]
pub(super) fn drain_watched(teardown: &mut Teardown<'_>, root: Spot, first: impl FnOnce()) {
    let number = teardown.number();
    push_frame(number, root, Some(teardown.purpose()));
    first();
    drain(&mut Watched { teardown, watch: here(), run: None });
    drop_frame(number);
}

/// Runs a handler out of turn as `run` does, and notes that it runs.
#[cold]
#[inline(never)]
pub(super) fn run_watched<R>(number: usize, entry: SharedEntry, root: Spot, run: impl FnOnce(SharedEntry) -> R) -> R {
    push_frame(number, root.clone(), None);
    let _ = set_run(number, Some(Arc::new(Run::new(&entry, root))));
    let result = run(entry);
    drop_frame(number);
    result
}

fn push_frame(teardown: usize, root: Spot, purpose: Option<Purpose>) {
    let thread = ThreadKey::current();
    let (is_given_up, is_lost) = (false, false);
    let frame = Frame { teardown, thread, root, purpose, watch: here(), run: None, is_given_up, is_lost };
    let link = Link::new(frame);
    FRAMES.lock().push(link);
}

fn drop_frame(teardown: usize) {
    let frame = FRAMES.lock().take_if(|frame| frame.teardown == teardown);
    drop(frame);
}

/// Forgets the frames of a thread that never comes back to them.
pub(super) fn forget_frames(thread: ThreadKey) {
    if is_on(raw::epoch()) {
        let frames = FRAMES.lock().take_if(|frame| frame.thread == thread);
        drop(frames);
    }
}

/// Notes which handler a frame runs now. Returns the one that it ran before, or an error if that one was given up.
fn set_run(teardown: usize, run: Option<Arc<Run>>) -> Result<Option<Arc<Run>>, Late> {
    let mut frames = FRAMES.lock();
    match frames.iter_mut().find(|frame| frame.teardown == teardown) {
        Some(frame) if frame.is_given_up => Err(Late),
        Some(frame) => Ok(mem::replace(&mut frame.run, run)),
        None => Ok(None), // this process was forked in the handler
    }
}

/// A teardown that is watched.
struct Watched<'t, 's> {
    teardown: &'t mut Teardown<'s>,
    watch: Option<Arc<Watch>>,
    run: Option<Arc<Run>>,
}

impl Watched<'_, '_> {
    fn watch(&self) -> Option<&Arc<Watch>> {
        self.watch.as_ref().filter(|watch| watch.is_ours())
    }

    /// The handler, if one ran, has ended. Says whether the drain is still this thread's.
    fn end_run(&mut self, failure: Option<&HandlerError>) -> bool {
        let run = self.run.take();
        if set_run(self.teardown.number(), None).is_err() {
            self.teardown.set_late();
            failure.into_iter().for_each(report); // nobody else is told
            if let Some(run) = run {
                run.top.stack().come_back(self.teardown.number());
            }
            return false;
        }
        if let Some((watch, run)) = self.watch().zip(run) {
            watch.add(run.record(failure.map_or(Fate::Done, |error| Fate::Failed(error.clone()))));
        }
        true
    }
}

impl Source<dyn Bound + Send> for Watched<'_, '_> {
    type Work = SharedExitStack;

    fn next(&mut self) -> Option<(&mut SharedEntry, &SharedExitStack)> {
        if !self.end_run(None) {
            return None;
        }
        loop {
            self.teardown.next()?; // none as well if this thread was given up where it waited
            let (entry, top) = self.teardown.lent()?;
            let run = Arc::new(Run::new(entry, top.spot()?));
            if self.watch().is_some_and(|watch| watch.stopped_since().is_some()) {
                // Neither run nor dropped: its drop may take as long.
                mem::forget(self.teardown.take_lent());
                let error = run.error(HandlerErrorKind::NotRun);
                self.teardown.keep(Failures::failure(error.clone()), Some(&error));
                self.watch().into_iter().for_each(|watch| watch.add(run.record(Fate::NotRun)));
                continue;
            }
            self.run = Some(Arc::clone(&run));
            let _ = set_run(self.teardown.number(), Some(run));
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
        } else {
            discard((failures, error)); // an exit status that it asks for does not count
        }
    }
}

impl SharedExitStack {
    /// A handler of it that was given up has returned.
    fn come_back(&self, teardown: usize) {
        let mut state = self.lock();
        let ended = state.out_of_turn.take_if(|handler| handler.teardown == teardown);
        let settled = state.is_settled();
        drop(state);
        drop(ended);
        if settled {
            self.unlink_settled();
        }
    }

    /// Lets the drains of this stack and of those nested in it that a teardown has begun have an owner that no thread is.
    fn disown(&self, teardown: usize, thread: ThreadKey, key: ThreadKey) {
        let disown = |stack: &Self| {
            if let Some(drain) = &mut stack.lock().drain {
                drain.disown(teardown, thread, key);
            }
        };
        disown(self);
        self.visit_descendants(|node| disown(&node.stack));
    }

    /// Wakes the threads that wait for drains of this stack and of those nested in it which have that owner.
    fn wake_waiters(&self, key: ThreadKey) {
        let wake = |stack: &Self| {
            let waiters = stack.lock().drain.as_mut().and_then(|drain| drain.waiters_of(key));
            if let Some(waiters) = waiters {
                waiters.wake(&Waited::OwnerLeft(key));
            }
        };
        wake(self);
        self.visit_descendants(|node| wake(&node.stack));
    }
}

/// The handler that a drain cannot go on without.
pub(crate) struct Blocking {
    pub(crate) run: Arc<Run>,
    thread: ThreadKey,
    /// The outermost of its thread's teardowns that the drain needs.
    from: usize,
    /// Whether that thread runs the drain itself.
    is_driver: bool,
    /// Since when the drain has waited for it.
    pub(crate) since: Instant,
}

impl Watch {
    /// Finds the handler that this drain cannot go on without: the innermost that its thread is in, or, if that waits for
    /// another thread's drain, the innermost of that one.
    pub(crate) fn blocking(self: &Arc<Self>) -> Option<Blocking> {
        let (driver, moved) = {
            let progress = self.progress.lock();
            (progress.driver, progress.moved)
        };
        let frames = FRAMES.lock();
        let awaited = |thread| {
            awaited_by(thread).filter(|&(owner, teardown)| {
                let is_it = |frame: &Frame| frame.teardown == teardown && frame.thread == owner && !frame.is_given_up;
                frames.iter().any(is_it)
            })
        };
        let own = frames.iter().filter(|frame| frame.thread == driver && frame.is_of(self));
        let (mut thread, mut from) = match own.map(|frame| frame.teardown).min() {
            Some(outermost) => (driver, outermost),
            None => awaited(driver)?, // it has not begun: another thread still drains the same stack
        };
        let mut steps = 0..=frames.len(); // an end, whatever happens to the graph in between
        while steps.next().is_some() {
            let Some(next) = awaited(thread) else { break };
            (thread, from) = next;
        }
        let innermost = frames.iter().find(|frame| frame.thread == thread && !frame.is_given_up)?;
        let run = Arc::clone(innermost.run.as_ref()?);
        let since = run.since.max(moved);
        Some(Blocking { run, thread, from, is_driver: thread == driver, since })
    }

    /// Gives up a handler that blocks this drain, unless it has returned by now. Returns whether it did, and whether another
    /// thread has to [resume](Self::resume) the drain.
    pub(crate) fn give_up(self: &Arc<Self>, blocking: &Blocking) -> Option<bool> {
        let GivenUp { mut left, waiting, key, others } = self.give_up_frames(blocking)?;
        let run = &blocking.run;
        let error = run.error(HandlerErrorKind::TimedOut(run.since.elapsed()));
        // Before the drains are resumed, so that it is among the failures of the one that it was in.
        let reports = run.top.stack().gather(Failures::failure(error.clone()));
        self.add(run.record(Fate::GivenUp));
        for drain in &left {
            drain.root.stack().disown(drain.teardown, blocking.thread, drain.key);
        }
        for (watch, drain) in others {
            // It goes on as well: with nothing but a wait for this one, perhaps.
            watch.let_go(vec![drain]);
            watch.progress.lock().needs_relief = true;
            watch.changed.notify_all();
        }
        let mut behind = Link::new(Behind { key, error: reports.then_some(error), inner: Vec::new() });
        if blocking.is_driver {
            BEHIND.lock().push(behind);
            self.let_go(left);
            return Some(true);
        }
        // A thread that waits for the outermost is woken. That one resumes what is further in, and then this.
        let is_awaited = left.first().is_some_and(|drain| drain.teardown == blocking.from); // else a handler out of turn is
        let outermost = is_awaited.then(|| left.remove(0));
        let inner: Vec<Spot> = left.iter().map(|drain| drain.root.clone()).collect();
        behind.value_mut().inner = left;
        BEHIND.lock().push(behind);
        note_left(key);
        for root in outermost.iter().map(|drain| &drain.root).chain(&inner) {
            root.stack().wake_waiters(key);
        }
        for waiters in waiting {
            Waiters::wake(waiters, &Waited::OwnerLeft(key));
        }
        Some(false)
    }

    /// Nobody drives it until it is [resumed](Self::resume). `left` is what that begins with, the innermost last.
    fn let_go(&self, left: Vec<Left>) {
        let mut all = Vec::new();
        loop {
            let mut progress = self.progress.lock();
            let count = progress.left.len() + left.len();
            if count <= all.capacity() {
                all.append(&mut progress.left);
                all.extend(left);
                mem::swap(&mut progress.left, &mut all);
                progress.driver = ThreadKey::fresh();
                return drop(progress); // before what held the others
            }
            drop(progress);
            all.reserve(count);
        }
    }

    /// Resumes the drains whose thread was given up, the innermost first, on this thread. Returns the result of the outermost,
    /// or none if this thread is given up in turn.
    pub(crate) fn resume(self: &Arc<Self>) -> Result<Result<(), CloseError>, Late> {
        self.drive(|| {
            let mut result = Ok(());
            loop {
                let next = {
                    let mut progress = self.progress.lock();
                    if progress.driver != ThreadKey::current() {
                        return Err(Late);
                    }
                    progress.left.pop().map(|left| (left, progress.left.is_empty()))
                };
                let Some((Left { root, purpose, key, .. }, is_outermost)) = next else { return Ok(result) };
                note_left(key);
                go_on_for(key)?;
                if !is_outermost {
                    root.stack().report_all(); // nobody will be told what this drain comes to
                }
                let resumed = root.stack().resume(purpose)?;
                if is_outermost {
                    result = resumed;
                } else {
                    discard(resumed);
                }
            }
        })
    }

    /// Whether another thread has to [resume](Self::resume) it because its own was given up for another drain; once.
    pub(crate) fn takes_relief(&self) -> bool {
        mem::take(&mut self.progress.lock().needs_relief)
    }

    /// There is no thread to resume it: whichever thread comes to one of its drains does that.
    pub(crate) fn abandon(&self) {
        let left = mem::take(&mut self.progress.lock().left);
        for drain in &left {
            note_left(drain.key);
        }
        for drain in &left {
            drain.root.stack().wake_waiters(drain.key);
        }
        self.end();
    }

    /// Gives up the frames of a handler, unless it has returned.
    fn give_up_frames(self: &Arc<Self>, blocking: &Blocking) -> Option<GivenUp> {
        let (mut left, mut waiting) = (Vec::new(), Vec::new());
        let mut others: Vec<(Arc<Self>, Left)> = Vec::new();
        let mut links = Vec::new();
        let key = ThreadKey::fresh();
        loop {
            let mut frames = FRAMES.lock();
            let own = |frame: &Frame| frame.thread == blocking.thread && !frame.is_given_up;
            let innermost = frames.iter().find(|frame| own(frame))?;
            if !innermost.run.as_ref().is_some_and(|run| Arc::ptr_eq(run, &blocking.run)) {
                return None; // it has returned
            }
            let count = frames.iter().filter(|frame| own(frame) && frame.teardown >= blocking.from).count();
            if count > left.capacity() || count > links.len() {
                drop(frames);
                left.reserve(count);
                waiting.reserve(count);
                others.reserve(count);
                while links.len() < count {
                    links.push(Link::new(OutOfTurn::given_up(blocking.thread)));
                }
                continue;
            }
            for frame in frames.iter_mut().filter(|frame| own(frame) && frame.teardown >= blocking.from) {
                (frame.is_given_up, frame.is_lost) = (true, self.ends_process);
                if let Some(run) = &frame.run {
                    let mut link = links.pop();
                    waiting.extend(run.top.stack().lock().note_given_up(frame.teardown, &mut link));
                    links.extend(link); // freed where no lock is held
                }
                if let Some(purpose) = frame.purpose {
                    // What another thread waits for has one key, and what is resumed one by one has one each.
                    let own = if blocking.is_driver && !left.is_empty() { ThreadKey::fresh() } else { key };
                    left.push(Left { root: frame.root.clone(), purpose, teardown: frame.teardown, key: own });
                    if let Some(watch) = frame.watch.as_ref().filter(|watch| !Arc::ptr_eq(watch, self)) {
                        // The outermost is what it goes on with.
                        let drain = Left { root: frame.root.clone(), purpose, teardown: frame.teardown, key: own };
                        match others.iter_mut().find(|(other, _)| Arc::ptr_eq(other, watch)) {
                            Some((_, inner)) => *inner = drain,
                            None => others.push((Arc::clone(watch), drain)),
                        }
                    }
                }
            }
            if self.ends_process {
                END_GAVE_UP_IN.store(self.epoch, Ordering::Release);
            }
            drop(frames);
            // A drain of which that thread goes on with a part is not among them.
            others.retain(|(watch, _)| {
                let frames = FRAMES.lock();
                !frames.iter().any(|frame| frame.thread == blocking.thread && frame.is_of(watch))
            });
            left.reverse();
            return Some(GivenUp { left, waiting, key, others });
        }
    }
}

/// What became of the frames of a handler that was given up.
struct GivenUp {
    /// Their drains, the innermost last.
    left: Vec<Left>,
    /// Who waits for handlers that ran out of turn.
    waiting: Vec<Waiters>,
    /// The owner of the innermost drain.
    key: ThreadKey,
    /// Other drains that are watched and that this thread drove, with the outermost of each.
    others: Vec<(Arc<Watch>, Left)>,
}

impl OutOfTurn {
    fn given_up(thread: ThreadKey) -> Self {
        let (id, waiters) = (HandlerId::unknown(), Waiters::default());
        Self { id, thread, waiters, skipped_by: None, teardown: 0, is_given_up: true }
    }
}

impl super::State {
    /// A handler of this stack was given up: it is nested in it from now on.
    /// Returns who waits for it, if it ran out of turn and so is nested already.
    fn note_given_up(&mut self, teardown: usize, link: &mut Option<Link<OutOfTurn>>) -> Option<Waiters> {
        if let Some(handler) = self.out_of_turn.iter_mut().find(|handler| handler.teardown == teardown) {
            handler.is_given_up = true;
            return Some(mem::take(&mut handler.waiters));
        }
        let mut link = link.take()?;
        link.value_mut().teardown = teardown;
        self.out_of_turn.push(link);
        None
    }
}
