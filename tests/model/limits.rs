//! Interpreters whose drain is watched, with handlers that get stuck in it; and a model of what the others do then.
//!
//! There is no clock and no thread that watches: a handler that is stuck gives itself up, lets another thread go on with the
//! drain, waits until that is done, and then returns, late. So one thread at a time does something, and the model knows which.

use std::cell::RefCell;
use std::collections::HashSet;
use std::mem;
use std::thread;

use exitstack::shutdown::{Closed, Fate as RecordFate, Modelled};
use exitstack::{CloseError, Handler, HandlerId, Interpreter, Outcome, PendingHandler, SharedExitStack};

use super::{
    Bomb, Bytes, Event, Fate, Verdict, When, begin, check_consumed, described, expected_result, log, observe, result,
    set_log, take_log,
};

/// Handlers of one run at most: handlers register handlers.
const MOST: u32 = 100;
/// Interpreters of one run at most. The first is in the tree of the process, the second is detached.
const MOST_SLOTS: usize = 8;
const ROOTS: usize = 2;
/// Threads of one run at most that go on for another one.
const MOST_RELIEFS: u32 = 6;

/// A handler to be. Its name is its number.
#[derive(Clone, Debug)]
pub struct Spec {
    pub fate: Fate,
    pub when: When,
    pub runs: Option<Box<Deed>>,
    pub dropped: Option<Box<Deed>>,
}

/// What is done, from outside or by a handler. A slot is a handle to an interpreter.
#[derive(Clone, Debug)]
pub enum Deed {
    Register(u8, Spec),
    /// Of all ids there ever were, of whichever stack.
    Unregister(u8, u8),
    RunNow(u8, u8),
    Close(u8, Outcome),
    Finalize(u8),
    /// Finalizes it, and that is watched. Only from outside: a handler further out would wait for what goes on elsewhere.
    Watch(u8),
    Nest(u8),
    /// Drops a handle, but not that to a root.
    Drop(u8),
    /// A stack that is in no tree: registers these, and closes it.
    Value(Vec<Spec>),
    /// If this thread runs the drain that is watched: it is given up in the handler that it is in. Then another thread goes on,
    /// until that is over or is given up in turn. And then this is done.
    GetStuck(Option<Box<Deed>>),
    Both(Box<[Deed; 2]>),
}

pub fn decode(bytes: &[u8]) -> Vec<Deed> {
    let mut bytes = Bytes(bytes);
    let mut deeds = Vec::new();
    while !bytes.is_empty() {
        deeds.push(deed(&mut bytes, 0));
    }
    deeds
}

fn deed(bytes: &mut Bytes<'_>, depth: u32) -> Deed {
    let code = bytes.next();
    let nests = depth < 6;
    match code % 32 {
        0..=8 => Deed::Register(bytes.next(), spec(bytes, depth)),
        9 => Deed::Unregister(bytes.next(), bytes.next()),
        10 | 11 => Deed::RunNow(bytes.next(), bytes.next()),
        12 => Deed::Close(bytes.next(), Outcome::Success),
        13 => Deed::Close(bytes.next(), Outcome::Failure),
        14 | 15 => Deed::Finalize(bytes.next()),
        16..=18 if depth == 0 => Deed::Watch(bytes.next()),
        19 | 20 => Deed::Nest(bytes.next()),
        21 => Deed::Drop(bytes.next()),
        22 if nests => Deed::Value((0..=code / 64).map(|_| spec(bytes, depth + 1)).collect()),
        16..=18 | 23..=29 => Deed::GetStuck((code >= 128 && nests).then(|| Box::new(deed(bytes, depth + 1)))),
        _ if nests => Deed::Both(Box::new([deed(bytes, depth + 1), deed(bytes, depth + 1)])),
        _ => Deed::GetStuck(None),
    }
}

fn spec(bytes: &mut Bytes<'_>, depth: u32) -> Spec {
    let (fate, more) = (bytes.fate(), bytes.next());
    let when = [When::Always, When::Always, When::Success, When::Failure][usize::from(more / 64)];
    let mut one = |wanted| (wanted && depth < 6).then(|| Box::new(deed(bytes, depth + 1)));
    let runs = one(more % 4 >= 2);
    let dropped = one(more % 16 >= 14);
    Spec { fate, when, runs, dropped }
}

fn index(pick: u8, of: usize) -> usize {
    usize::from(pick) % of.max(1)
}

// ---------------------------------------------------------------------------------------------------------------------
// The real interpreters

#[derive(Default)]
struct Real {
    slots: Vec<Option<Interpreter>>,
    ids: Vec<HandlerId>,
    made: u32,
    reliefs: u32,
    watch: Option<Modelled>,
}

thread_local! {
    /// On the one thread that does something now.
    static REAL: RefCell<Real> = RefCell::default();
}

/// Looks at what is real; nothing of the library is called while it does.
fn real<R>(look: impl FnOnce(&mut Real) -> R) -> R {
    REAL.with(|real| look(&mut real.borrow_mut()))
}

/// Does it on another thread, as if it were this one.
fn elsewhere(act: impl FnOnce() + Send + 'static) {
    let before = (real(mem::take), take_log());
    let there = move || {
        real(|real| *real = before.0);
        set_log(before.1);
        act();
        (real(mem::take), take_log())
    };
    let after = thread::spawn(there).join().expect("nothing panics there");
    real(|real| *real = after.0);
    set_log(after.1);
}

fn interpreter(slot: u8) -> Option<Interpreter> {
    real(|real| real.slots[index(slot, real.slots.len())].clone())
}

fn id(pick: u8) -> Option<HandlerId> {
    real(|real| real.ids.get(index(pick, real.ids.len())).copied())
}

fn drained(result_of: Option<Result<(), CloseError>>) -> String {
    result_of.map_or_else(|| "late".to_owned(), |of| result(&of))
}

/// Does it, and writes to the log what came of it.
fn perform(deed: &Deed) {
    match deed {
        Deed::Register(slot, spec) => {
            if let Some(interpreter) = interpreter(*slot) {
                observe(|| register(interpreter.stack(), spec).to_string());
            }
        }
        Deed::Unregister(slot, pick) => {
            if let Some((interpreter, id)) = interpreter(*slot).zip(id(*pick)) {
                observe(|| interpreter.stack().unregister(id).to_string());
            }
        }
        Deed::RunNow(slot, pick) => {
            if let Some((interpreter, id)) = interpreter(*slot).zip(id(*pick)) {
                observe(|| interpreter.stack().run_now(id).map_or_else(|| "none".into(), |ran| result(&ran)));
            }
        }
        Deed::Close(slot, outcome) => {
            if let Some(interpreter) = interpreter(*slot) {
                observe(|| result(&interpreter.stack().close_with(*outcome)));
            }
        }
        Deed::Finalize(slot) => {
            if let Some(interpreter) = interpreter(*slot) {
                observe(|| result(&interpreter.finalize()));
            }
        }
        Deed::Watch(slot) => {
            let Some(interpreter) = interpreter(*slot) else { return };
            let watch = interpreter.modelled();
            real(|real| real.watch = Some(watch.clone()));
            observe(|| drained(watch.drain()));
            real(|real| real.watch = None);
            tell(&watch.closed());
        }
        Deed::Nest(slot) => {
            let count = real(|real| real.slots.len());
            if let Some(interpreter) = interpreter(*slot).filter(|_| count < MOST_SLOTS) {
                let new = interpreter.subinterpreter(count.to_string());
                real(|real| real.slots.push(Some(new)));
            }
        }
        Deed::Drop(slot) => {
            let taken = real(|real| {
                let at = index(*slot, real.slots.len());
                if at < ROOTS { None } else { real.slots[at].take() }
            });
            drop(taken);
        }
        Deed::Value(specs) => {
            let stack = SharedExitStack::new();
            for spec in specs {
                observe(|| register(&stack, spec).to_string());
            }
            observe(|| result(&stack.close()));
        }
        Deed::GetStuck(then) => get_stuck(then.as_deref()),
        Deed::Both(deeds) => deeds.iter().for_each(perform),
    }
}

fn get_stuck(then: Option<&Deed>) {
    let Some(watch) = real(|real| real.watch.clone().filter(|_| real.reliefs < MOST_RELIEFS)) else { return };
    let gave_up = watch.give_up();
    log(Event::Returned(format!("gave up: {gave_up}")));
    if gave_up {
        real(|real| real.reliefs += 1);
        let resumed = watch.clone();
        elsewhere(move || log(Event::Returned(drained(resumed.resume()))));
        log(Event::Returned(format!("is over: {}", watch.closed().is_over())));
        then.into_iter().for_each(perform);
    }
}

/// What there is to say of a drain that was watched.
fn tell(closed: &Closed) {
    let told = closed.records().iter().map(|record| {
        let fate = match record.fate() {
            RecordFate::Done => "done",
            RecordFate::Failed(_) => "failed",
            RecordFate::GivenUp => "given up",
            RecordFate::NotRun => "not run",
            _ => "running",
        };
        format!("{} {fate}", record.name().unwrap_or_default())
    });
    log(Event::Returned(format!("is over: {}, {:?}", closed.is_over(), told.collect::<Vec<_>>())));
}

/// What is done when the handler that captured it is dropped.
struct Last(Option<Box<Deed>>);

impl Drop for Last {
    fn drop(&mut self) {
        if let Some(deed) = &self.0 {
            perform(deed);
        }
    }
}

/// Whether it was taken.
fn register(stack: &SharedExitStack, spec: &Spec) -> bool {
    let serial = real(|real| {
        real.made += u32::from(real.made <= MOST);
        real.made
    });
    if serial > MOST {
        return false;
    }
    let bomb = Bomb::new(serial - 1, spec.fate);
    // Dropped in this order.
    let (runs, captured) = (spec.runs.clone(), (bomb, Last(spec.dropped.clone())));
    let handler = Handler::new(move || {
        let (bomb, _last) = &captured;
        log(Event::Returned(format!("in {:?}", Interpreter::current().as_ref().map(Interpreter::name))));
        runs.as_deref().into_iter().for_each(perform);
        bomb.run()
    });
    let handler = handler.named((serial - 1).to_string());
    let id = match spec.when {
        When::Always => stack.try_register(handler).ok(),
        When::Success => takes(stack).then(|| stack.on_success(handler)),
        When::Failure => takes(stack).then(|| stack.on_failure(handler)),
    };
    real(|real| real.ids.extend(id));
    id.is_some()
}

/// Whether the stack takes handlers. Where it refuses one, `on_success` reports that.
fn takes(stack: &SharedExitStack) -> bool {
    stack.try_register(|| ()).is_ok_and(|id| stack.unregister(id))
}

// ---------------------------------------------------------------------------------------------------------------------
// The model

#[derive(Clone)]
struct Pending {
    serial: u32,
    /// Its index among all ids.
    id: usize,
    spec: Spec,
}

enum Item {
    Handler(Pending),
    Nested(usize),
}

type Thread = u32;
type Moment = u32;

/// Failures and the exit status asked for, each with its place in the order in which they happened.
#[derive(Clone, Default)]
struct Gathered {
    errors: Vec<(Moment, String)>,
    exit: Option<(Moment, i32)>,
}

impl Gathered {
    /// Failures stand in the order in which they happened, each once; the exit status that was asked for last wins.
    fn merge(&mut self, other: &Self) {
        self.errors.extend_from_slice(&other.errors);
        self.errors.sort();
        self.errors.dedup();
        self.exit = self.exit.max(other.exit);
    }

    fn result(&self) -> String {
        let errors: Vec<String> = self.errors.iter().map(|(_, error)| error.clone()).collect();
        expected_result(&errors, self.exit.map(|(_, code)| code))
    }
}

struct Drain {
    owner: Owner,
    teardown: u32,
    /// What a closer is told.
    whole: Gathered,
    /// What the drain around it was not told before.
    new: Gathered,
    reports: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Owner {
    Thread(Thread),
    /// Nobody: it was given up.
    None,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Close(Outcome),
    Finalize,
    Unattended,
}

impl Purpose {
    fn outcome(self) -> Outcome {
        match self {
            Self::Close(outcome) => outcome,
            Self::Finalize => Outcome::Success,
            Self::Unattended => Outcome::Failure,
        }
    }

    fn reports(self) -> bool {
        self == Self::Unattended
    }

    fn of_nested(self) -> Self {
        if self.reports() { Self::Unattended } else { Self::Finalize }
    }
}

#[derive(Default)]
struct Stack {
    path: String,
    is_detached: bool,
    parent: Option<usize>,
    items: Vec<Item>,
    handles: u32,
    drain: Option<Drain>,
    /// The drain that runs, or is to come, is the last one.
    last: bool,
    over: bool,
    outcome: Option<Outcome>,
    /// Handlers that run out of turn, or were given up, by their teardowns.
    others: Vec<u32>,
    /// The thread whose drain of the parent went on, although something still runs here.
    passed_by: Option<Thread>,
}

impl Stack {
    fn is_quiet(&self) -> bool {
        self.items.is_empty() && self.drain.is_none() && self.others.is_empty()
    }

    fn is_settled(&self) -> bool {
        self.over && self.is_quiet()
    }
}

/// A thread is in this, further up its call stack.
struct Frame {
    teardown: u32,
    thread: Thread,
    root: usize,
    /// None for a handler that runs out of turn.
    purpose: Option<Purpose>,
    /// The handler that runs, and the stack that it is from.
    run: Option<(usize, String)>,
    given_up: bool,
}

/// A drain that nobody runs any more.
struct Left {
    root: usize,
    purpose: Purpose,
    teardown: u32,
}

/// The drain that is watched.
struct Watch {
    root: usize,
    driver: Thread,
    records: Vec<String>,
}

/// The thread was given up in the handler that has just returned.
struct Late;

#[derive(Default)]
struct Model {
    stacks: Vec<Stack>,
    slots: Vec<Option<usize>>,
    frames: Vec<Frame>,
    watch: Option<Watch>,
    thread: Thread,
    threads: Thread,
    teardowns: u32,
    reliefs: u32,
    current: Option<usize>,
    ids: usize,
    made: u32,
    now: Moment,
    /// The failures that went to the report hook.
    reported: HashSet<Moment>,
    events: Vec<Event>,
}

impl Model {
    fn new_stack(&mut self, path: String, parent: Option<usize>, is_detached: bool) -> usize {
        self.stacks.push(Stack { path, parent, is_detached, handles: 1, ..Stack::default() });
        self.stacks.len() - 1
    }

    fn returned(&mut self, text: &str) {
        self.events.push(Event::Returned(text.to_owned()));
    }

    fn next_teardown(&mut self) -> u32 {
        self.teardowns += 1;
        self.teardowns
    }

    fn is_late(&self) -> bool {
        self.frames.iter().any(|frame| frame.thread == self.thread && frame.given_up)
    }

    /// Whether this thread leaves that stack to the thread that goes on.
    fn is_refused(&self, stack: usize) -> bool {
        self.is_late() && !self.stacks[stack].is_detached
    }

    fn perform(&mut self, deed: &Deed) {
        match deed {
            Deed::Value(specs) => self.close_value(specs),
            Deed::GetStuck(then) => self.get_stuck(then.as_deref()),
            Deed::Both(deeds) => deeds.iter().for_each(|deed| self.perform(deed)),
            Deed::Drop(slot) => {
                let at = index(*slot, self.slots.len());
                if let Some(stack) = if at < ROOTS { None } else { self.slots[at].take() } {
                    self.release(stack);
                }
            }
            Deed::Register(slot, _)
            | Deed::Unregister(slot, _)
            | Deed::RunNow(slot, _)
            | Deed::Close(slot, _)
            | Deed::Finalize(slot)
            | Deed::Watch(slot)
            | Deed::Nest(slot) => {
                if let Some(stack) = self.slots[index(*slot, self.slots.len())] {
                    self.stacks[stack].handles += 1;
                    self.perform_on(stack, deed);
                    self.release(stack);
                }
            }
        }
    }

    fn perform_on(&mut self, stack: usize, deed: &Deed) {
        match deed {
            Deed::Register(_, spec) => self.register(stack, spec),
            Deed::Unregister(_, pick) if self.ids > 0 => {
                let found = self.take(stack, index(*pick, self.ids));
                let returned = found.is_some().to_string();
                self.drop_all(found.as_ref(), &returned);
            }
            Deed::RunNow(_, pick) if self.ids > 0 => {
                let returned = self.run_now(stack, index(*pick, self.ids));
                self.returned(&returned);
            }
            Deed::Close(_, outcome) => {
                let returned = self.drain(stack, Purpose::Close(*outcome)).unwrap_or_default().result();
                self.returned(&returned);
            }
            Deed::Finalize(_) => {
                let returned = self.drain(stack, Purpose::Finalize).unwrap_or_default().result();
                self.returned(&returned);
            }
            Deed::Watch(_) => {
                self.watch = Some(Watch { root: stack, driver: self.thread, records: Vec::new() });
                let drained = self.drain(stack, Purpose::Finalize);
                self.returned(&drained.map_or_else(|_| "late".into(), |gathered| gathered.result()));
                let Watch { root, records, .. } = self.watch.take().expect("it is watched until here");
                let told = format!("is over: {}, {records:?}", self.stacks[root].is_quiet());
                self.returned(&told);
            }
            Deed::Nest(_) if self.slots.len() < MOST_SLOTS => {
                let path = format!("{} > {}", self.stacks[stack].path, self.slots.len());
                let new = self.new_stack(path, Some(stack), self.stacks[stack].is_detached);
                self.stacks[new].over = self.stacks[stack].over;
                if !self.stacks[stack].over {
                    self.stacks[stack].items.push(Item::Nested(new));
                }
                self.slots.push(Some(new));
            }
            _ => {}
        }
    }

    fn release(&mut self, stack: usize) {
        self.stacks[stack].handles -= 1;
        if self.stacks[stack].handles == 0 {
            let _ = self.drain(stack, Purpose::Unattended);
        }
    }

    fn next_serial(&mut self) -> Option<u32> {
        self.made += u32::from(self.made <= MOST);
        (self.made <= MOST).then(|| self.made - 1)
    }

    fn register(&mut self, stack: usize, spec: &Spec) {
        let Some(serial) = self.next_serial() else { return self.returned("false") };
        let pending = Pending { serial, id: self.ids, spec: spec.clone() };
        if self.stacks[stack].over {
            self.drop_all(Some(&pending), "false");
        } else {
            self.ids += 1;
            self.stacks[stack].items.push(Item::Handler(pending));
            self.returned("true");
        }
    }

    fn close_value(&mut self, specs: &[Spec]) {
        let mut pending = Vec::new();
        for spec in specs {
            let Some(serial) = self.next_serial() else {
                self.returned("false");
                continue;
            };
            pending.push(Pending { serial, id: self.ids, spec: spec.clone() });
            self.ids += 1;
            self.returned("true");
        }
        let mut gathered = Gathered::default();
        while let Some(handler) = pending.pop() {
            let verdict = self.run_for(&handler, Outcome::Success);
            gathered.merge(&self.gathered(None, &handler, verdict));
        }
        self.returned(&gathered.result());
    }

    fn take(&mut self, stack: usize, id: usize) -> Option<Pending> {
        let items = &mut self.stacks[stack].items;
        let at = items.iter().position(|item| matches!(item, Item::Handler(own) if own.id == id))?;
        if let Item::Handler(found) = items.remove(at) { Some(found) } else { None }
    }

    fn drop_all(&mut self, removed: Option<&Pending>, returned: &str) {
        let panics = removed.is_some_and(|handler| self.drop(handler));
        self.events.push(if panics { Event::Panicked("dropped".into()) } else { Event::Returned(returned.to_owned()) });
    }

    /// Whether that panics.
    fn drop(&mut self, handler: &Pending) -> bool {
        self.events.push(Event::Dropped(handler.serial));
        if let Some(deed) = &handler.spec.dropped {
            self.perform(deed);
        }
        handler.spec.fate == Fate::DropPanics
    }

    fn run(&mut self, handler: &Pending) -> Verdict {
        let name = self.current.map(|current| self.stacks[current].path.rsplit(" > ").next().unwrap_or_default());
        let told = format!("in {name:?}");
        self.returned(&told);
        if let Some(deed) = &handler.spec.runs {
            self.perform(deed);
        }
        self.events.push(Event::Ran(handler.serial));
        self.drop(handler);
        handler.spec.fate.verdict()
    }

    /// Runs it, or drops it if it is for another outcome.
    fn run_for(&mut self, handler: &Pending, outcome: Outcome) -> Verdict {
        if handler.spec.when.includes(outcome) {
            self.run(handler)
        } else if self.drop(handler) {
            Fate::DropPanics.verdict()
        } else {
            Verdict::default()
        }
    }

    fn run_now(&mut self, stack: usize, id: usize) -> String {
        if self.is_refused(stack) {
            return "none".into();
        }
        let Some(handler) = self.take(stack, id) else { return "none".into() };
        let teardown = self.next_teardown();
        let before = self.current.replace(stack);
        self.stacks[stack].others.push(teardown);
        let run = Some((stack, handler.serial.to_string()));
        self.frames.push(Frame { teardown, thread: self.thread, root: stack, purpose: None, run, given_up: false });
        let verdict = self.run(&handler); // whatever the outcome, of which nobody knows
        self.frames.pop();
        self.current = before;
        self.come_back(stack, teardown);
        self.gathered(Some(stack), &handler, verdict).result()
    }

    /// A handler that ran out of turn, or was given up, has returned.
    fn come_back(&mut self, stack: usize, teardown: u32) {
        self.stacks[stack].others.retain(|other| *other != teardown);
        self.unlink_settled(stack);
    }

    /// Takes it out of its parent's list if it is settled, and that one likewise.
    fn unlink_settled(&mut self, mut stack: usize) {
        while self.stacks[stack].is_settled() {
            let Some(parent) = self.stacks[stack].parent else { return };
            self.stacks[parent].items.retain(|item| !matches!(item, Item::Nested(own) if *own == stack));
            stack = parent;
        }
    }

    /// A drain by this thread.
    fn drain(&mut self, stack: usize, purpose: Purpose) -> Result<Gathered, Late> {
        if self.is_refused(stack) {
            return Err(Late);
        }
        let teardown = self.next_teardown();
        if self.acquire(stack, purpose, purpose.outcome(), teardown) == Some(true) {
            return self.run_teardown(stack, purpose, teardown);
        }
        Ok(Gathered::default())
    }

    fn run_teardown(&mut self, stack: usize, purpose: Purpose, teardown: u32) -> Result<Gathered, Late> {
        let (thread, purpose_of) = (self.thread, Some(purpose));
        self.frames.push(Frame { teardown, thread, root: stack, purpose: purpose_of, run: None, given_up: false });
        let before = self.current.replace(stack);
        let drained = self.drain_here(stack, purpose, teardown);
        self.current = before;
        self.frames.pop();
        drained.map(|(whole, _)| whole)
    }

    /// Whether there is something to drain, and whether it is for this teardown to begin, or resume; if not, this thread is in
    /// the drain, or is to come to it later.
    fn acquire(&mut self, stack: usize, purpose: Purpose, outcome: Outcome, teardown: u32) -> Option<bool> {
        let owner = Owner::Thread(self.thread);
        let this = &mut self.stacks[stack];
        if this.is_settled() {
            return None;
        }
        this.last |= purpose.of_nested() == purpose;
        match &mut this.drain {
            None => {
                let (whole, new, reports) = (Gathered::default(), Gathered::default(), purpose.reports());
                this.drain = Some(Drain { owner, teardown, whole, new, reports });
                if !this.over {
                    this.outcome = Some(outcome);
                }
                self.pass_nothing(stack);
                Some(true)
            }
            Some(drain) if drain.owner == Owner::None => {
                (drain.owner, drain.teardown) = (owner, teardown);
                self.pass_nothing(stack);
                Some(true)
            }
            Some(drain) => {
                assert!(drain.owner == owner, "one thread does something at a time");
                Some(false)
            }
        }
    }

    fn pass_nothing(&mut self, stack: usize) {
        let nested: Vec<_> = self.stacks[stack].items.iter().filter_map(nested).collect();
        for nested in nested {
            self.stacks[nested].passed_by = None;
        }
    }

    /// What this thread has passed further in is not passed any more.
    fn pass_nothing_below(&mut self, stack: usize) {
        let nested: Vec<_> = self.stacks[stack].items.iter().filter_map(nested).collect();
        for nested in nested {
            self.stacks[nested].passed_by = self.stacks[nested].passed_by.filter(|by| *by != self.thread);
            self.pass_nothing_below(nested);
        }
    }

    /// Runs what there is. Returns what the drain comes to, and what of it the drain around it was not told before.
    fn drain_here(&mut self, stack: usize, purpose: Purpose, teardown: u32) -> Result<(Gathered, Gathered), Late> {
        while let Some(at) = self.newest(stack) {
            if let Some(inner) = nested(&self.stacks[stack].items[at]) {
                // Only its own end says that its work was done.
                if self.acquire(inner, purpose.of_nested(), Outcome::Failure, teardown).is_none() {
                    self.unlink_settled(inner);
                    continue;
                }
                self.current = Some(inner);
                let (_, new) = self.drain_here(inner, purpose.of_nested(), teardown)?;
                self.current = Some(stack);
                self.stacks[inner].passed_by = Some(self.thread);
                self.gather(stack, &new);
            } else if let Item::Handler(handler) = self.stacks[stack].items.remove(at) {
                self.run_in_turn(stack, &handler, teardown)?;
            }
        }
        let this = &mut self.stacks[stack];
        this.over |= this.last;
        let Some(drain) = &mut this.drain else { return Ok(Default::default()) };
        let new = mem::take(&mut drain.new);
        let mut whole = new.clone();
        if drain.teardown == teardown {
            whole = mem::take(&mut drain.whole);
            this.drain = None;
        }
        self.unlink_settled(stack);
        Ok((whole, new))
    }

    fn run_in_turn(&mut self, stack: usize, handler: &Pending, teardown: u32) -> Result<(), Late> {
        let name = handler.serial.to_string();
        let this_frame = self.frames.len() - 1;
        self.frames[this_frame].run = Some((stack, name.clone()));
        let outcome = self.stacks[stack].outcome.expect("it drains");
        let verdict = self.run_for(handler, outcome);
        let gathered = self.gathered(Some(stack), handler, verdict);
        if self.frames[this_frame].given_up {
            self.report(&gathered); // and whatever exit it asks for does not count
            self.come_back(stack, teardown);
            return Err(Late);
        }
        self.frames[this_frame].run = None;
        self.gather(stack, &gathered);
        let fate = match gathered.errors[..] {
            [] if !handler.spec.when.includes(outcome) => return Ok(()), // it was dropped
            [] => "done",
            _ => "failed",
        };
        if let Some(watch) = &mut self.watch {
            watch.records.push(format!("{name} {fate}"));
        }
        Ok(())
    }

    /// The newest that this thread has not passed.
    fn newest(&self, stack: usize) -> Option<usize> {
        let is_passed =
            |item: &Item| nested(item).is_some_and(|nested| self.stacks[nested].passed_by == Some(self.thread));
        self.stacks[stack].items.iter().rposition(|item| !is_passed(item))
    }

    /// What came of a handler, now.
    fn gathered(&mut self, stack: Option<usize>, handler: &Pending, verdict: Verdict) -> Gathered {
        self.now += 1;
        let path = stack.map(|stack| self.stacks[stack].path.as_str());
        let told = |what: String| (self.now, described(path, Some(&handler.serial.to_string()), &what));
        Gathered {
            errors: verdict.failure.map(told).into_iter().collect(),
            exit: verdict.exit_code.map(|code| (self.now, code)),
        }
    }

    /// Adds it to what the drain of this stack was told, and reports it if nobody else will.
    fn gather(&mut self, stack: usize, gathered: &Gathered) {
        if let Some(drain) = &mut self.stacks[stack].drain {
            drain.whole.merge(gathered);
            drain.new.merge(gathered);
        }
        if self.reports(stack) {
            self.report(gathered);
        }
    }

    fn reports(&self, stack: usize) -> bool {
        self.stacks[stack].drain.as_ref().is_none_or(|drain| drain.reports)
    }

    /// Reports what nobody reported.
    fn report(&mut self, gathered: &Gathered) {
        let unreported = gathered.errors.iter().filter(|(at, _)| self.reported.insert(*at));
        self.events.extend(unreported.map(|(_, error)| Event::Reported(error.clone())));
    }

    fn get_stuck(&mut self, then: Option<&Deed>) {
        if self.watch.is_none() || self.reliefs >= MOST_RELIEFS {
            return;
        }
        let me = self.thread;
        let watch = self.watch.as_mut().expect("it is watched");
        if watch.driver != me {
            return self.returned("gave up: false"); // the drain is over, or another thread's
        }
        self.returned("gave up: true");
        self.reliefs += 1;
        let mut untold = Gathered::default();
        let frames = self.frames.iter().rev().filter(|frame| frame.thread == me);
        let runs: Vec<_> = frames.filter_map(|frame| frame.run.clone()).collect(); // not of one that catches up
        for (top, name) in runs {
            self.now += 1;
            let path = self.stacks[top].path.clone();
            let error = described(Some(&path), Some(&name), "timed out");
            let timed_out = Gathered { errors: vec![(self.now, error)], exit: None };
            if self.reports(top) {
                untold.merge(&timed_out);
            }
            if let Some(drain) = &mut self.stacks[top].drain {
                drain.whole.merge(&timed_out);
                drain.new.merge(&timed_out);
            }
            let watch = self.watch.as_mut().expect("it is watched");
            watch.records.push(format!("{name} given up"));
        }
        let mut left = Vec::new();
        for frame in self.frames.iter_mut().filter(|frame| frame.thread == me) {
            frame.given_up = true;
            let Some(purpose) = frame.purpose else { continue };
            if let Some((top, _)) = &frame.run {
                self.stacks[*top].others.push(frame.teardown);
            }
            left.push(Left { root: frame.root, purpose, teardown: frame.teardown });
        }
        let watch = self.watch.as_mut().expect("it is watched");
        self.threads += 1;
        self.thread = self.threads;
        watch.driver = self.thread;
        let current = self.current.take();
        let resumed = self.resume(&left, &untold);
        self.returned(&resumed.map_or_else(|_| "late".into(), |gathered| gathered.result()));
        self.thread = me;
        self.current = current;
        let root = self.watch.as_ref().expect("it is watched").root;
        let over = format!("is over: {}", self.stacks[root].is_quiet());
        self.returned(&over);
        if let Some(deed) = then {
            self.perform(deed);
        }
    }

    /// Another thread goes on: with the innermost drain first, before which it reports what is untold.
    fn resume(&mut self, left: &[Left], untold: &Gathered) -> Result<Gathered, Late> {
        let Some((outer, inner)) = left.split_first() else {
            self.report(untold);
            return Ok(Gathered::default());
        };
        let drains = self.stacks.iter_mut().filter_map(|stack| stack.drain.as_mut());
        drains.filter(|drain| drain.teardown == outer.teardown).for_each(|drain| drain.owner = Owner::None);
        let teardown = self.next_teardown();
        assert!(self.acquire(outer.root, outer.purpose, Outcome::Failure, teardown) == Some(true), "it was nobody's");
        let (thread, purpose) = (self.thread, Some(outer.purpose));
        self.frames.push(Frame { teardown, thread, root: outer.root, purpose, run: None, given_up: false });
        let before = self.current.replace(outer.root);
        if let Some(next) = inner.first() {
            // What was drained together is nobody's: what is further in may come to it.
            let gathered = self.stacks[next.root].drain.as_mut().map(|drain| {
                drain.reports = true;
                drain.new.clone()
            });
            self.report(&gathered.unwrap_or_default());
        }
        let drained = self.resume(inner, untold).and_then(|_| {
            self.pass_nothing_below(outer.root);
            self.drain_here(outer.root, outer.purpose, teardown)
        });
        self.current = before;
        self.frames.pop();
        drained.map(|(whole, _)| whole)
    }

    fn check(&self) {
        for (at, stack) in self.slots.iter().enumerate() {
            let interpreter = real(|real| real.slots[at].clone());
            assert_eq!(interpreter.is_some(), stack.is_some(), "slot {at}");
            let Some((interpreter, stack)) = interpreter.zip(*stack) else { continue };
            let handlers = self.stacks[stack].items.iter().rev().filter_map(|item| match item {
                Item::Handler(pending) => Some(real(|real| real.ids[pending.id])),
                Item::Nested(_) => None,
            });
            let waiting: Vec<HandlerId> = interpreter.stack().pending().iter().map(PendingHandler::id).collect();
            assert_eq!(waiting, handlers.collect::<Vec<_>>(), "who waits in slot {at}");
        }
        assert!(Interpreter::current().is_none(), "an interpreter stayed current");
    }
}

fn nested(item: &Item) -> Option<usize> {
    match item {
        Item::Handler(_) => None,
        Item::Nested(nested) => Some(*nested),
    }
}

/// Does all that `bytes` say and compares each step with the model.
pub fn run(bytes: &[u8]) {
    let deeds = decode(bytes);
    begin();
    let roots = [Interpreter::new("0"), Interpreter::detached("1")];
    real(|real| *real = Real { slots: roots.map(Some).into(), ..Real::default() });
    let mut model = Model::default();
    for (path, is_detached) in [("process > 0", false), ("1", true)] {
        let root = model.new_stack(path.to_owned(), None, is_detached);
        model.slots.push(Some(root));
    }
    let mut all = Vec::new();
    let rest = (0..MOST_SLOTS).rev().filter_map(|slot| u8::try_from(slot).ok());
    let rest: Vec<Deed> = rest.map(Deed::Drop).chain([Deed::Finalize(0), Deed::Finalize(1)]).collect();
    for (at, deed) in deeds.iter().chain(&rest).enumerate() {
        // A slot that does not exist is another one's.
        if at >= deeds.len() && matches!(deed, Deed::Drop(slot) if usize::from(*slot) >= model.slots.len()) {
            continue;
        }
        perform(deed);
        let happened = take_log();
        model.perform(deed);
        assert_eq!(happened, mem::take(&mut model.events), "step {at}, {deed:?}, of {deeds:#?}");
        model.check();
        all.extend(happened);
    }
    drop(real(mem::take));
    check_consumed(&all, model.made.min(MOST));
}
