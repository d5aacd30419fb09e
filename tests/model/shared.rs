//! A `SharedExitStack` and a tree of interpreters, whose handlers do to them everything that a user could; and a model,
//! which is the same tree as vectors, drained recursively.
//!
//! Some runs fork. The child goes on until what was done from outside is done, compares that with its copy of the model, in which
//! nothing waits that its parent registered, uses each stack once, and leaves with a status that its parent looks at.
#![allow(unsafe_code, reason = "fork")]

use std::cell::RefCell;
use std::collections::HashSet;
use std::io::{ErrorKind, Write as _};
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::sync::Mutex;

use exitstack::{Handler, HandlerId, Interpreter, Outcome, SharedExitStack};

use super::{
    Aligned, Bomb, Bytes, Ended, Event, FUNCTIONS, Fate, Large, ScopeEnd, Shape, Verdict, When, Zero, begin,
    check_consumed, described, expected_result, function_0, function_1, log, observe, result, take_log,
};

/// The maximum number of handlers in a run, since handlers register handlers.
const MOST: u32 = 200;
/// The maximum number of interpreters in a run.
const MOST_SLOTS: usize = 10;

/// Forks of one run at most.
const MOST_FORKS: u32 = 2;

/// A handler to be registered: its shape, when it runs and what it then does, and what happens when its captured values
/// are dropped.
#[derive(Clone, Debug)]
pub struct Spec {
    pub shape: Shape,
    pub fate: Fate,
    pub when: When,
    pub runs: Option<Box<Deed>>,
    pub dropped: Option<Box<Deed>>,
}

/// An operation on a stack, from outside or from a handler. A slot is a handle: slot 0 is the `SharedExitStack`, the
/// others are interpreters.
#[derive(Clone, Debug)]
pub enum Deed {
    Register(u8, Spec),
    /// Registers with the current interpreter.
    RegisterCurrent(Spec),
    /// Any id that ever existed, of any stack.
    Unregister(u8, u8),
    UnregisterFunction(u8, usize),
    UnregisterKey(u8, u8, Compared),
    RunNow(u8, u8),
    PopAll(u8, Then),
    Clear(u8),
    Close(u8, Outcome),
    Finalize(u8),
    /// Creates an interpreter; for slot 0, a child of the process stack.
    Nest(u8),
    /// Drops a handle. Slot 0 gets a new stack.
    Drop(u8),
    /// Clones a handle into a slot of its own.
    Clone(u8),
    /// Performs the operation while this interpreter is current.
    Within(u8, Box<Deed>),
    /// Runs a transaction in this interpreter; for slot 0, in the current one.
    Scope(u8, Box<Scope>),
    Fork,
}

/// The body of a transaction: registers a handler, performs an operation, and ends this way.
#[derive(Clone, Debug)]
pub struct Scope {
    pub spec: Spec,
    pub deed: Deed,
    pub end: ScopeEnd,
    /// Whether a handle to the transaction gets a slot of its own.
    pub kept: bool,
}

/// What the first comparison with a key does.
#[derive(Clone, Debug, Default)]
pub struct Compared {
    pub deed: Option<Box<Deed>>,
    pub panics: bool,
}

/// What happens to the stack that `pop_all` returned.
#[derive(Clone, Copy, Debug)]
pub enum Then {
    Drop,
    Close,
    Clear,
}

pub fn decode(bytes: &[u8]) -> Vec<Deed> {
    let mut bytes = Bytes(bytes);
    let mut deeds = Vec::new();
    while !bytes.is_empty() {
        deeds.push(deed(&mut bytes, 0));
    }
    deeds
}

/// The one byte that may mean a fork: seldom, because each takes some milliseconds.
const FORKS: u8 = 254;

fn deed(bytes: &mut Bytes<'_>, depth: u32) -> Deed {
    let code = bytes.next();
    let slot = bytes.next();
    match code % 32 {
        0..=9 => Deed::Register(slot, spec(bytes, depth)),
        10 | 11 => Deed::RegisterCurrent(spec(bytes, depth)),
        12..=14 => Deed::Unregister(slot, bytes.next()),
        15 => Deed::UnregisterFunction(slot, usize::from(bytes.next() % 2)),
        16 => {
            let byte = bytes.next();
            let deed = (byte >= 128 && depth < 6).then(|| Box::new(deed(bytes, depth + 1)));
            Deed::UnregisterKey(slot, byte % 3, Compared { deed, panics: byte >= 192 })
        }
        17 | 18 => Deed::RunNow(slot, bytes.next()),
        19 => Deed::PopAll(slot, [Then::Drop, Then::Close, Then::Clear][usize::from(bytes.next() % 3)]),
        20 => Deed::Clear(slot),
        21 | 22 => Deed::Close(slot, Outcome::Success),
        23 => Deed::Close(slot, Outcome::Failure),
        24 => Deed::Finalize(slot),
        25..=27 => Deed::Nest(slot),
        28 => Deed::Drop(slot),
        29 => Deed::Clone(slot),
        31 if depth < 6 && code >= 128 => {
            let (spec, kept, end) = (spec(bytes, depth), code >= 192, bytes.end());
            Deed::Scope(slot, Box::new(Scope { spec, deed: deed(bytes, depth + 1), end, kept }))
        }
        _ if code == FORKS && slot < 64 => Deed::Fork,
        _ if depth < 6 => Deed::Within(slot, Box::new(deed(bytes, depth + 1))),
        _ => Deed::Close(slot, Outcome::Success),
    }
}

fn spec(bytes: &mut Bytes<'_>, depth: u32) -> Spec {
    let shape = bytes.shape();
    let fate = shape.fate(bytes.fate());
    let more = bytes.next();
    let when = [When::Always, When::Always, When::Success, When::Failure][usize::from(more / 64)];
    let plain = depth >= 6 || shape.serial().is_some();
    let mut one = |wanted| (wanted && !plain).then(|| Box::new(deed(bytes, depth + 1)));
    let runs = one(more % 4 >= 2);
    let dropped = one(more % 16 >= 13);
    Spec { shape, fate, when, runs, dropped }
}

fn index(pick: u8, of: usize) -> usize {
    usize::from(pick) % of.max(1)
}

// ---------------------------------------------------------------------------------------------------------------------
// The real tree

#[derive(Clone)]
enum Handle {
    Stack(Rc<SharedExitStack>),
    Interpreter(Interpreter),
}

impl Handle {
    fn new_stack() -> Self {
        Self::Stack(Rc::new(SharedExitStack::new()))
    }

    fn stack(&self) -> &SharedExitStack {
        match self {
            Self::Stack(stack) => stack,
            Self::Interpreter(interpreter) => interpreter.stack(),
        }
    }
}

#[derive(Default)]
struct Real {
    slots: Vec<Option<Handle>>,
    ids: Vec<HandlerId>,
    made: u32,
    forks: u32,
    /// Which of the forks has made this process.
    child_of: Option<u32>,
}

thread_local! {
    static REAL: RefCell<Real> = RefCell::default();
}

/// Accesses the real tree. `look` must not call the library.
fn real<R>(look: impl FnOnce(&mut Real) -> R) -> R {
    REAL.with(|real| look(&mut real.borrow_mut()))
}

fn handle(slot: u8) -> Option<Handle> {
    real(|real| real.slots[index(slot, real.slots.len())].clone())
}

fn add(new: impl FnOnce() -> Handle) {
    if real(|real| real.slots.len()) < MOST_SLOTS {
        let new = new();
        real(|real| real.slots.push(Some(new)));
    }
}

/// Performs the operation, and logs its result.
fn perform(deed: &Deed) {
    match deed {
        Deed::Register(slot, spec) => {
            if let Some(handle) = handle(*slot) {
                observe(|| register(handle.stack(), spec).to_string());
            }
        }
        Deed::RegisterCurrent(spec) => {
            if let Some(current) = Interpreter::current() {
                observe(|| register(current.stack(), spec).to_string());
            }
        }
        Deed::Unregister(slot, pick) => {
            let id = real(|real| real.ids.get(index(*pick, real.ids.len())).copied());
            if let (Some(handle), Some(id)) = (handle(*slot), id) {
                observe(|| handle.stack().unregister(id).to_string());
            }
        }
        Deed::RunNow(slot, pick) => {
            let id = real(|real| real.ids.get(index(*pick, real.ids.len())).copied());
            if let (Some(handle), Some(id)) = (handle(*slot), id) {
                observe(|| handle.stack().run_now(id).map_or_else(|| "none".into(), |ran| result(&ran)));
            }
        }
        Deed::Drop(slot) => {
            let taken = real(|real| {
                let at = index(*slot, real.slots.len());
                let new = (at == 0).then(Handle::new_stack);
                mem::replace(&mut real.slots[at], new)
            });
            drop(taken);
        }
        Deed::Fork => fork(),
        Deed::UnregisterFunction(slot, _)
        | Deed::UnregisterKey(slot, ..)
        | Deed::PopAll(slot, _)
        | Deed::Clear(slot)
        | Deed::Close(slot, _)
        | Deed::Finalize(slot)
        | Deed::Nest(slot)
        | Deed::Clone(slot)
        | Deed::Within(slot, _)
        | Deed::Scope(slot, _) => {
            if let Some(handle) = handle(*slot) {
                perform_on(&handle, deed);
            }
        }
    }
}

fn perform_on(handle: &Handle, deed: &Deed) {
    let stack = handle.stack();
    match (deed, handle) {
        (Deed::UnregisterFunction(_, 0), _) => observe(|| stack.unregister_fn(function_0).to_string()),
        (Deed::UnregisterFunction(..), _) => observe(|| stack.unregister_fn(function_1).to_string()),
        (Deed::UnregisterKey(_, number, compared), _) => {
            let wanted = Key { number: *number, compared: Mutex::new(Some(compared.clone())) };
            observe(|| stack.unregister_key(&wanted).to_string());
        }
        (Deed::PopAll(_, then), _) => {
            let popped = stack.pop_all();
            match then {
                Then::Drop => {}
                Then::Close => observe(|| result(&popped.close())),
                Then::Clear => observe(|| {
                    popped.clear();
                    String::new()
                }),
            }
        }
        (Deed::Clear(_), _) => observe(|| {
            stack.clear();
            String::new()
        }),
        (Deed::Finalize(_), Handle::Interpreter(interpreter)) => observe(|| result(&interpreter.finalize())),
        (Deed::Close(_, Outcome::Failure), _) => observe(|| result(&stack.close_with(Outcome::Failure))),
        (Deed::Close(..) | Deed::Finalize(_), _) => observe(|| result(&stack.close())),
        (Deed::Nest(_), Handle::Interpreter(parent)) => add(|| Handle::Interpreter(parent.subinterpreter("nested"))),
        (Deed::Nest(_), _) => add(|| Handle::Interpreter(Interpreter::new("outer"))),
        (Deed::Clone(_), _) => add(|| handle.clone()),
        (Deed::Within(_, deed), Handle::Interpreter(interpreter)) => interpreter.enter(|| perform(deed)),
        (Deed::Within(_, deed), _) => perform(deed),
        (Deed::Scope(_, scope), Handle::Interpreter(interpreter)) => interpreter.enter(|| transact(scope)),
        (Deed::Scope(_, scope), _) => transact(scope),
        (other, _) => unreachable!("{other:?} is not done to a handle"),
    }
}

fn transact(scope: &Scope) {
    observe(|| {
        let ended = Interpreter::scope("tx", |own| {
            observe(|| register(own.stack(), &scope.spec).to_string());
            if scope.kept {
                add(|| Handle::Interpreter(own.clone()));
            }
            perform(&scope.deed);
            match scope.end {
                ScopeEnd::Ok => Ok(()),
                ScopeEnd::Err => Err(Ended::Body),
                ScopeEnd::Panic => resume_unwind(Box::new("the body")),
            }
        });
        match ended {
            Ok(()) => result(&Ok(())),
            Err(Ended::Body) => "the body's".into(),
            Err(Ended::Close(error)) => result(&Err(error)),
        }
    });
}

fn fork() {
    let number = real(|real| {
        real.forks += 1;
        (real.forks <= MOST_FORKS && real.child_of.is_none()).then_some(real.forks)
    });
    let Some(number) = number else { return };
    // SAFETY: the child uses the library, which is what is tested, and the allocator, which C makes usable in a child.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: the child dies of it, if it hangs.
        unsafe { libc::alarm(20) };
        real(|real| real.child_of = Some(number));
        return log(Event::Returned("forked".into()));
    }
    let mut status = 0;
    // SAFETY: `status` is a live `c_int`. A fuzzer's timer may interrupt the wait.
    while unsafe { libc::waitpid(child, &raw mut status, 0) } != child {
        assert_eq!(std::io::Error::last_os_error().kind(), ErrorKind::Interrupted, "waited for");
    }
    log(Event::Returned(format!("a child: {status}")));
}

/// Leaves a child: with 0 if `end` does not panic.
fn leave(end: impl FnOnce()) -> ! {
    let ended = catch_unwind(AssertUnwindSafe(end));
    if let Err(payload) = &ended {
        let text = payload.downcast_ref::<String>().map_or("no text", String::as_str);
        let _ = writeln!(std::io::stderr(), "in a child: {text}"); // it is not captured, and there is nobody else to be told
    }
    // SAFETY: the way out that runs nothing.
    unsafe { libc::_exit(i32::from(ended.is_err())) }
}

/// A key. Its first comparison does what the key that is searched for says.
struct Key {
    number: u8,
    compared: Mutex<Option<Compared>>,
}

impl Key {
    fn new(number: u8) -> Self {
        Self { number, compared: Mutex::new(None) }
    }
}

impl PartialEq for Key {
    fn eq(&self, wanted: &Self) -> bool {
        let compared = wanted.compared.lock().expect("no panic under it").take().unwrap_or_default();
        if let Some(deed) = &compared.deed {
            perform(deed);
        }
        if compared.panics {
            resume_unwind(Box::new("compared"));
        }
        self.number == wanted.number
    }
}

/// Performs an operation when the handler that captured it is dropped.
struct Last(Option<Box<Deed>>);

impl Drop for Last {
    fn drop(&mut self) {
        if let Some(deed) = &self.0 {
            perform(deed);
        }
    }
}

type Ran = Result<(), Box<dyn std::error::Error + Send + Sync>>;

/// What a handler captures, dropped from top to bottom.
struct Load<B> {
    body: B,
    runs: Option<Box<Deed>>,
    _last: Last,
}

impl<B> Load<B> {
    fn new(body: B, spec: &Spec) -> Self {
        Self { body, runs: spec.runs.clone(), _last: Last(spec.dropped.clone()) }
    }

    fn run(&self, body: impl Fn(&B) -> Ran) -> Ran {
        if let Some(deed) = &self.runs {
            perform(deed);
        }
        body(&self.body)
    }
}

/// Registers with `$stack` for the outcomes of `$spec`; returns the id if the handler is accepted.
macro_rules! admit {
    ($stack:expr, $spec:expr, $handler:expr) => {
        match $spec.when {
            When::Always => $stack.try_register($handler).ok(),
            When::Success => takes($stack).then(|| $stack.on_success($handler)),
            When::Failure => takes($stack).then(|| $stack.on_failure($handler)),
        }
    };
}

/// Whether the stack accepts handlers. If it does not, `on_success` would report a refusal.
fn takes(stack: &SharedExitStack) -> bool {
    stack.try_register(|| ()).is_ok_and(|id| stack.unregister(id))
}

/// Returns whether the handler was accepted.
fn register(stack: &SharedExitStack, spec: &Spec) -> bool {
    let id = match spec.shape {
        Shape::Function(0) => admit!(stack, spec, function_0),
        Shape::Function(_) => admit!(stack, spec, function_1),
        Shape::ZeroSized(0) => {
            let zero = Zero::<false>::new();
            admit!(stack, spec, move || Zero::run(&zero))
        }
        Shape::ZeroSized(_) => {
            let zero = Zero::<true>::new();
            admit!(stack, spec, move || Zero::run(&zero))
        }
        _ => {
            let serial = real(|real| {
                real.made += u32::from(real.made <= MOST);
                real.made
            });
            if serial > MOST {
                return false;
            }
            register_bomb(stack, spec, Bomb::new(serial - 1, spec.fate))
        }
    };
    real(|real| real.ids.extend(id));
    id.is_some()
}

fn register_bomb(stack: &SharedExitStack, spec: &Spec, bomb: Bomb) -> Option<HandlerId> {
    match spec.shape {
        Shape::Small if spec.runs.is_none() && spec.dropped.is_none() => admit!(stack, spec, move || bomb.run()),
        Shape::Aligned if spec.runs.is_none() && spec.dropped.is_none() => {
            let aligned = Aligned(bomb);
            admit!(stack, spec, move || aligned.run())
        }
        Shape::Large => {
            let load = Load::new(Large::new(bomb), spec);
            admit!(stack, spec, move || load.run(Large::run))
        }
        Shape::Aligned => {
            let load = Load::new(Aligned(bomb), spec);
            admit!(stack, spec, move || load.run(Aligned::run))
        }
        shape => {
            let load = Load::new(bomb, spec);
            let handler = Handler::new(move || load.run(Bomb::run));
            match (shape.name(), shape.key()) {
                (None, None) => admit!(stack, spec, handler),
                (Some(name), None) => admit!(stack, spec, handler.named(name)),
                (None, Some(key)) => admit!(stack, spec, handler.keyed(Key::new(key))),
                (Some(name), Some(key)) => admit!(stack, spec, handler.keyed(Key::new(key)).named(name.to_owned())),
            }
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// The model

/// Whether a panic propagates.
type Panics = bool;

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

impl Item {
    fn nested(&self) -> Option<usize> {
        match self {
            Self::Handler(_) => None,
            Self::Nested(nested) => Some(*nested),
        }
    }

    fn handler(&self) -> Option<&Pending> {
        match self {
            Self::Handler(pending) => Some(pending),
            Self::Nested(_) => None,
        }
    }
}

#[derive(Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
struct Stack {
    /// The path of an interpreter; `None` for a stack that is a plain value.
    path: Option<String>,
    parent: Option<usize>,
    items: Vec<Item>,
    handles: u32,
    drain: Option<Drain>,
    /// Whether the current or next drain is the last one.
    last: bool,
    over: bool,
    /// Whether the current drain reports failures.
    reports: bool,
    /// Whether the parent's drain skipped this stack because a handler was still running here.
    passed: bool,
    /// It is not in its parent's list, although it is not over: its parent's list was the list of another process.
    unlinked: bool,
    /// The outcome of the current or latest drain.
    outcome: Option<Outcome>,
}

impl Stack {
    fn is_settled(&self) -> bool {
        self.over && self.drain.is_none() && self.items.is_empty()
    }
}

/// Failures and the requested exit status, each with the moment at which it happened.
#[derive(Clone, Default)]
struct Gathered {
    errors: Vec<(Moment, String)>,
    exit: Option<(Moment, i32)>,
}

type Moment = u32;

impl Gathered {
    /// Keeps failures in the order in which they happened, each once, and the exit status requested last.
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

#[derive(Default)]
struct Drain {
    /// What a closer receives.
    whole: Gathered,
    /// What the outer drain has not received yet.
    new: Gathered,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Occasion {
    Close(Outcome),
    Finalize,
    DropValue,
    Abandon,
}

impl Occasion {
    fn reports(self) -> bool {
        matches!(self, Self::DropValue | Self::Abandon)
    }

    fn outcome(self) -> Outcome {
        match self {
            Self::Close(outcome) => outcome,
            Self::Finalize => Outcome::Success,
            Self::DropValue | Self::Abandon => Outcome::Failure,
        }
    }
}

#[derive(Default)]
struct Model {
    stacks: Vec<Stack>,
    slots: Vec<Option<usize>>,
    current: Option<usize>,
    ids: usize,
    made: u32,
    now: Moment,
    /// The failures that were reported.
    reported: HashSet<Moment>,
    events: Vec<Event>,
    forks: u32,
    /// Which of the forks is to make this process, and has.
    child_of: Option<u32>,
    is_child: bool,
}

/// In the handler of a drain the process was forked: what came of that handler.
struct Forked(Gathered);

impl Model {
    fn new_stack(&mut self, path: Option<String>, parent: Option<usize>) -> usize {
        self.stacks.push(Stack { path, parent, handles: 1, ..Stack::default() });
        self.stacks.len() - 1
    }

    fn at(&self, slot: u8) -> Option<usize> {
        self.slots[index(slot, self.slots.len())]
    }

    fn release(&mut self, stack: usize) {
        self.stacks[stack].handles -= 1;
        if self.stacks[stack].handles == 0 {
            let is_value = self.stacks[stack].path.is_none();
            self.drain(stack, if is_value { Occasion::DropValue } else { Occasion::Abandon });
        }
    }

    fn returned(&mut self, text: &str) {
        self.events.push(Event::Returned(text.to_owned()));
    }

    fn perform(&mut self, deed: &Deed) {
        match deed {
            Deed::Fork => self.fork(),
            Deed::RegisterCurrent(spec) => {
                if let Some(current) = self.current {
                    self.stacks[current].handles += 1;
                    self.register(current, spec);
                    self.release(current);
                }
            }
            Deed::Drop(slot) => {
                let at = index(*slot, self.slots.len());
                let new = (at == 0).then(|| self.new_stack(None, None));
                if let Some(stack) = mem::replace(&mut self.slots[at], new) {
                    self.release(stack);
                }
            }
            Deed::Register(slot, _)
            | Deed::Unregister(slot, _)
            | Deed::UnregisterFunction(slot, _)
            | Deed::UnregisterKey(slot, ..)
            | Deed::RunNow(slot, _)
            | Deed::PopAll(slot, _)
            | Deed::Clear(slot)
            | Deed::Close(slot, _)
            | Deed::Finalize(slot)
            | Deed::Nest(slot)
            | Deed::Clone(slot)
            | Deed::Within(slot, _)
            | Deed::Scope(slot, _) => {
                if let Some(stack) = self.at(*slot) {
                    self.stacks[stack].handles += 1;
                    self.perform_on(stack, deed);
                    self.release(stack);
                }
            }
        }
    }

    fn perform_on(&mut self, stack: usize, deed: &Deed) {
        let is_value = self.stacks[stack].path.is_none();
        match deed {
            Deed::Register(_, spec) => self.register(stack, spec),
            Deed::Unregister(_, pick) if self.ids > 0 => {
                let found = self.take(stack, index(*pick, self.ids));
                let returned = found.is_some().to_string();
                self.drop_all(&Vec::from_iter(found), &returned);
            }
            Deed::UnregisterFunction(_, which) => {
                let found = self.take_if(stack, |pending| pending.spec.shape == Shape::Function(*which));
                let returned = found.len().to_string();
                self.drop_all(&found, &returned);
            }
            Deed::UnregisterKey(_, key, compared) => {
                let handlers = self.stacks[stack].items.iter().filter_map(Item::handler);
                let keyed: Vec<_> = handlers.filter_map(|own| Some((own.id, own.spec.shape.key()?))).collect();
                if !keyed.is_empty() {
                    if let Some(deed) = &compared.deed {
                        self.perform(deed);
                    }
                    if compared.panics {
                        return self.events.push(Event::Panicked("compared".into()));
                    }
                }
                let found = self.take_if(stack, |pending| keyed.contains(&(pending.id, *key)));
                let returned = found.len().to_string();
                self.drop_all(&found, &returned);
            }
            Deed::RunNow(_, pick) if self.ids > 0 => match self.take(stack, index(*pick, self.ids)) {
                None => self.returned("none"),
                Some(handler) => {
                    let before = self.current;
                    if !is_value {
                        self.current = Some(stack);
                    }
                    let verdict = self.run(&handler); // for any outcome, because none is known
                    self.current = before;
                    let returned = self.gathered(stack, &handler, verdict).result();
                    self.returned(&returned);
                }
            },
            Deed::PopAll(_, then) => {
                let popped = self.new_stack(None, None);
                let items = mem::take(&mut self.stacks[stack].items);
                let (handlers, nested) = items.into_iter().partition(|item| matches!(item, Item::Handler(_)));
                self.stacks[popped].items = handlers;
                self.stacks[stack].items = nested;
                match then {
                    Then::Drop => {}
                    Then::Close => {
                        let returned = self.drain(popped, Occasion::Close(Outcome::Success));
                        self.returned(&returned);
                    }
                    Then::Clear => self.clear(popped),
                }
                self.release(popped);
            }
            Deed::Clear(_) => self.clear(stack),
            Deed::Close(_, outcome) => {
                let returned = self.drain(stack, Occasion::Close(*outcome));
                self.returned(&returned);
            }
            Deed::Finalize(_) => {
                let close = Occasion::Close(Outcome::Success);
                let returned = self.drain(stack, if is_value { close } else { Occasion::Finalize });
                self.returned(&returned);
            }
            Deed::Nest(_) => {
                if self.slots.len() < MOST_SLOTS {
                    let parent = (!is_value).then_some(stack);
                    let new = self.nest(parent, if is_value { "outer" } else { "nested" });
                    self.slots.push(Some(new));
                }
            }
            Deed::Clone(_) => {
                if self.slots.len() < MOST_SLOTS {
                    self.stacks[stack].handles += 1;
                    self.slots.push(Some(stack));
                }
            }
            Deed::Within(_, deed) => {
                let before = self.current;
                if !is_value {
                    self.current = Some(stack);
                }
                self.perform(deed);
                self.current = before;
            }
            Deed::Scope(_, scope) => {
                let before = self.current;
                if !is_value {
                    self.current = Some(stack);
                }
                self.transact(scope);
                self.current = before;
            }
            Deed::Unregister(..) | Deed::RunNow(..) => {} // there was no id yet
            Deed::RegisterCurrent(_) | Deed::Drop(_) | Deed::Fork => unreachable!("{deed:?} is not done to a stack"),
        }
    }

    fn fork(&mut self) {
        self.forks += 1;
        if self.forks > MOST_FORKS || self.is_child {
            return;
        }
        if self.child_of != Some(self.forks) {
            return self.returned("a child: 0");
        }
        self.is_child = true;
        for stack in &mut self.stacks {
            // What was finalized stays so, and nothing that this process does can still succeed then.
            let outcome = stack.over.then_some(Outcome::Failure);
            let (path, parent, handles, over) = (stack.path.take(), stack.parent, stack.handles, stack.over);
            *stack = Stack { path, parent, handles, over, last: over, outcome, unlinked: !over, ..Stack::default() };
        }
        self.returned("forked");
    }

    /// Puts it into its parent's list, if it is not there in this process and will still take something; and that one
    /// likewise, which is first.
    fn link(&mut self, stack: usize) {
        if self.stacks[stack].over || !mem::take(&mut self.stacks[stack].unlinked) {
            return;
        }
        let Some(parent) = self.stacks[stack].parent else { return };
        self.link(parent);
        if self.stacks[parent].over {
            self.stacks[stack].over = true;
        } else {
            self.stacks[parent].items.push(Item::Nested(stack));
        }
    }

    /// Creates an interpreter in this one, or in the process stack.
    fn nest(&mut self, parent: Option<usize>, name: &str) -> usize {
        let around = parent.map_or(Some("process"), |parent| self.stacks[parent].path.as_deref());
        let path = format!("{} > {name}", around.expect("an interpreter has a path"));
        if let Some(parent) = parent {
            self.link(parent);
        }
        let refused = parent.is_some_and(|parent| self.stacks[parent].over);
        let new = self.new_stack(Some(path), parent);
        self.stacks[new].over = refused;
        if let Some(parent) = parent.filter(|_| !refused) {
            self.stacks[parent].items.push(Item::Nested(new));
        }
        new
    }

    /// Runs a transaction in the current interpreter.
    fn transact(&mut self, scope: &Scope) {
        let around = self.current;
        if let Some(around) = around {
            self.stacks[around].handles += 1;
        }
        let own = self.nest(around, "tx");
        if let Some(around) = around {
            self.release(around);
        }
        let path = self.stacks[own].path.clone();
        let told = |what| described(path.as_deref(), Some("tx"), what);
        if self.stacks[own].over {
            self.release(own);
            return self.returned(&expected_result(&[told("Refused")], None));
        }
        self.current = Some(own);
        self.register(own, &scope.spec);
        if scope.kept && self.slots.len() < MOST_SLOTS {
            self.stacks[own].handles += 1;
            self.slots.push(Some(own));
        }
        self.perform(&scope.deed);
        self.current = around;
        let occasion = if scope.end == ScopeEnd::Ok { Occasion::Finalize } else { Occasion::Abandon };
        let mut gathered = self.drain_for(own, occasion).unwrap_or_default();
        if self.stacks[own].outcome == Some(Outcome::Failure) {
            self.now += 1;
            gathered.errors.push((self.now, told("RolledBack")));
        }
        self.release(own);
        self.events.push(match scope.end {
            ScopeEnd::Ok => Event::Returned(gathered.result()),
            ScopeEnd::Err => Event::Returned("the body's".into()),
            ScopeEnd::Panic => Event::Panicked("the body".into()),
        });
    }

    fn register(&mut self, stack: usize, spec: &Spec) {
        let serial = if let Some(serial) = spec.shape.serial() {
            serial
        } else {
            self.made += u32::from(self.made <= MOST);
            if self.made > MOST {
                return self.returned("false");
            }
            self.made - 1
        };
        let pending = Pending { serial, id: self.ids, spec: spec.clone() };
        self.link(stack);
        if self.stacks[stack].over {
            self.drop_all(&[pending], "false");
        } else {
            self.ids += 1;
            self.stacks[stack].items.push(Item::Handler(pending));
            self.returned("true");
        }
    }

    fn take(&mut self, stack: usize, id: usize) -> Option<Pending> {
        self.take_if(stack, |pending| pending.id == id).pop()
    }

    fn take_if(&mut self, stack: usize, matches: impl Fn(&Pending) -> bool) -> Vec<Pending> {
        let mut found = Vec::new();
        let mut kept = Vec::new();
        for item in mem::take(&mut self.stacks[stack].items) {
            match item {
                Item::Handler(pending) if matches(&pending) => found.push(pending),
                other => kept.push(other),
            }
        }
        self.stacks[stack].items = kept;
        found
    }

    fn clear(&mut self, stack: usize) {
        let mut found = self.take_if(stack, |_| true);
        found.reverse();
        self.drop_all(&found, "");
    }

    fn drop_all(&mut self, removed: &[Pending], returned: &str) {
        let mut panics = false;
        for handler in removed {
            panics |= self.drop(handler);
        }
        self.events.push(if panics { Event::Panicked("dropped".into()) } else { Event::Returned(returned.to_owned()) });
    }

    fn drop(&mut self, handler: &Pending) -> Panics {
        if FUNCTIONS.contains(&handler.serial) {
            return false;
        }
        self.events.push(Event::Dropped(handler.serial));
        if let Some(deed) = &handler.spec.dropped {
            self.perform(deed);
        }
        handler.spec.fate == Fate::DropPanics
    }

    fn run(&mut self, handler: &Pending) -> Verdict {
        if let Some(deed) = &handler.spec.runs {
            self.perform(deed);
        }
        self.events.push(Event::Ran(handler.serial));
        self.drop(handler);
        handler.spec.fate.verdict()
    }

    fn described(&self, stack: usize, handler: &Pending, what: &str) -> String {
        described(self.stacks[stack].path.as_deref(), handler.spec.shape.name(), what)
    }

    /// Returns the result of a drain, or of a call that need not drain.
    fn drain(&mut self, stack: usize, occasion: Occasion) -> String {
        self.drain_for(stack, occasion).unwrap_or_default().result()
    }

    /// Nothing if there is nothing to drain, or a handler of the drain asks for it.
    fn drain_for(&mut self, stack: usize, occasion: Occasion) -> Option<Gathered> {
        let before = self.current;
        match self.drain_as(stack, occasion, occasion.outcome(), false) {
            Ok(gathered) => gathered,
            // The drain is the parent's. This process drains what is its own, which no handler forks again.
            Err(Forked(mut gathered)) => {
                self.current = before;
                if occasion.reports() {
                    self.report(&gathered);
                }
                let own = self.drain_for(stack, occasion).unwrap_or_default();
                gathered.merge(&own);
                Some(gathered)
            }
        }
    }

    /// As [`drain_for`](Self::drain_for). But a drain of what the stack is nested in runs what is left, `around`, and is told
    /// what is new.
    fn drain_as(
        &mut self,
        stack: usize,
        occasion: Occasion,
        outcome: Outcome,
        around: bool,
    ) -> Result<Option<Gathered>, Forked> {
        let reports = occasion.reports();
        let this = &mut self.stacks[stack];
        if this.is_settled() {
            return Ok(None);
        }
        this.last |= matches!(occasion, Occasion::Finalize | Occasion::Abandon);
        let begins = this.drain.is_none();
        if !begins && !around {
            return Ok(None);
        }
        if begins {
            this.drain = Some(Drain::default());
            this.reports = reports;
            if !this.over {
                this.outcome = Some(outcome);
            }
            let nested = this.items.iter().filter_map(Item::nested).collect::<Vec<_>>();
            for nested in nested {
                self.stacks[nested].passed = false;
            }
        }
        let before = self.current;
        if self.stacks[stack].path.is_some() {
            self.current = Some(stack);
        }
        while let Some(at) = self.newest(stack) {
            if let Some(nested) = self.stacks[stack].items[at].nested() {
                // Only its own end means that its work was done.
                let inner = if reports { Occasion::Abandon } else { Occasion::Finalize };
                // It stays in its place until it is drained: what registers here before that goes above it.
                if let Some(gathered) = self.drain_as(nested, inner, Outcome::Failure, true)? {
                    self.gather(stack, &gathered);
                }
                self.stacks[nested].passed = true;
            } else if let Item::Handler(handler) = self.stacks[stack].items.remove(at) {
                let runs = self.stacks[stack].outcome.is_some_and(|outcome| handler.spec.when.includes(outcome));
                let is_child = self.is_child;
                let verdict = if runs {
                    self.run(&handler)
                } else if self.drop(&handler) {
                    Fate::DropPanics.verdict()
                } else {
                    Verdict::default()
                };
                let gathered = self.gathered(stack, &handler, verdict);
                if self.is_child != is_child {
                    return Err(Forked(gathered));
                }
                self.gather(stack, &gathered);
            }
        }
        self.current = before;
        let this = &mut self.stacks[stack];
        this.over |= this.last;
        let Some(drain) = &mut this.drain else { return Ok(None) };
        let new = mem::take(&mut drain.new);
        let gathered = if around { new } else { drain.whole.clone() };
        if begins {
            this.drain = None;
        }
        self.detach(stack);
        Ok(Some(gathered))
    }

    /// The newest item that has not been skipped.
    fn newest(&self, stack: usize) -> Option<usize> {
        let passed = |item: &Item| item.nested().is_some_and(|nested| self.stacks[nested].passed);
        self.stacks[stack].items.iter().rposition(|item| !passed(item))
    }

    /// Unlinks the stack from its parent if it is settled, and the parent in turn.
    fn detach(&mut self, mut stack: usize) {
        while self.stacks[stack].is_settled() {
            let Some(parent) = self.stacks[stack].parent else { return };
            self.stacks[parent].items.retain(|item| item.nested() != Some(stack));
            stack = parent;
        }
    }

    /// What a handler that has just run contributes.
    fn gathered(&mut self, stack: usize, handler: &Pending, verdict: Verdict) -> Gathered {
        self.now += 1;
        let error = verdict.failure.map(|what| (self.now, self.described(stack, handler, &what)));
        Gathered { errors: Vec::from_iter(error), exit: verdict.exit_code.map(|code| (self.now, code)) }
    }

    /// Adds this to what the stack's drain has received, and reports what has not been reported.
    fn gather(&mut self, stack: usize, gathered: &Gathered) {
        let this = &mut self.stacks[stack];
        if let Some(drain) = &mut this.drain {
            drain.whole.merge(gathered);
            drain.new.merge(gathered);
        }
        if this.reports {
            self.report(gathered);
        }
    }

    /// Reports what nobody reported.
    fn report(&mut self, gathered: &Gathered) {
        let unreported = gathered.errors.iter().filter(|(at, _)| self.reported.insert(*at));
        self.events.extend(unreported.map(|(_, error)| Event::Reported(error.clone())));
    }

    fn check(&self) {
        for (at, stack) in self.slots.iter().enumerate() {
            let handle = real(|real| real.slots[at].clone());
            let Some(stack) = *stack else {
                assert!(handle.is_none(), "slot {at}");
                continue;
            };
            let handle = handle.expect("the slot has a handle");
            let handlers = self.stacks[stack].items.iter().rev().filter_map(Item::handler);
            let expected: Vec<_> =
                handlers.map(|p| (real(|real| real.ids[p.id]), p.spec.shape.name().map(str::to_owned))).collect();
            let pending = handle.stack().pending();
            let waiting: Vec<_> = pending.iter().map(|p| (p.id(), p.name().map(str::to_owned))).collect();
            assert_eq!(waiting, expected, "who waits in slot {at}");
            assert_eq!(handle.stack().len(), expected.len());
            assert_eq!(handle.stack().is_empty(), expected.is_empty());
        }
        assert!(Interpreter::current().is_none(), "an interpreter stayed current");
    }
}

/// Performs the operations that `bytes` encode, and compares each step with the model.
pub fn run(bytes: &[u8]) {
    let deeds = decode(bytes);
    begin();
    real(|real| *real = Real { slots: vec![Some(Handle::new_stack())], ..Real::default() });
    let mut model = Model::default();
    let first = model.new_stack(None, None);
    model.slots.push(Some(first));
    let mut all = Vec::new();
    for (at, deed) in deeds.iter().enumerate() {
        all.extend(step(&mut model, deed, &|| format!("step {at} of {deeds:#?}")));
    }
    finish(model, all);
}

/// Does this, and returns what happened, if it is what the model says.
fn step(model: &mut Model, deed: &Deed, why: &dyn Fn() -> String) -> Vec<Event> {
    perform(deed);
    let child_of = real(|real| real.child_of);
    if child_of.is_some() && !model.is_child {
        leave(|| {
            model.child_of = child_of;
            compare(model, deed, why);
            use_all(model, why);
        });
    }
    compare(model, deed, why)
}

fn compare(model: &mut Model, deed: &Deed, why: &dyn Fn() -> String) -> Vec<Event> {
    let happened = take_log();
    model.perform(deed);
    let expected = mem::take(&mut model.events);
    assert_eq!(happened, expected, "{deed:?}, {}", why());
    model.check();
    happened
}

/// Registers with each stack, and then closes each.
fn use_all(model: &mut Model, why: &dyn Fn() -> String) {
    let spec = |fate| Spec { shape: Shape::Named, fate, when: When::Always, runs: None, dropped: None };
    let slots = 0..u8::try_from(model.slots.len()).expect("few slots");
    let registers =
        slots.clone().flat_map(|slot| [Fate::Return, Fate::Fail].map(|fate| Deed::Register(slot, spec(fate))));
    for deed in registers.chain(slots.map(|slot| Deed::Close(slot, Outcome::Success))) {
        step(model, &deed, why);
    }
}

/// Drops handles until none is left. Handlers that run because of this may create new ones.
fn finish(mut model: Model, mut all: Vec<Event>) {
    for round in 0.. {
        let held = model.slots.iter().skip(1).any(Option::is_some)
            || !model.stacks[model.slots[0].unwrap_or(0)].items.is_empty();
        if !held {
            break;
        }
        assert!(round < 100, "handles are made for ever");
        for slot in (0..model.slots.len()).rev() {
            let deed = Deed::Drop(u8::try_from(slot).expect("few slots"));
            all.extend(step(&mut model, &deed, &|| "at the end".into()));
        }
    }
    let made = model.made.min(MOST);
    check_consumed(&all, made);
}
