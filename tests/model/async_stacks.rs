//! `AsyncExitStack`s and the futures of `scope_async`, polled by hand, whose handlers do to them what the API allows; and a
//! model: vectors of what is pending, and what is in flight.
//!
//! A stack or a scope is out of its place while something is done to it, so that what handlers do to it then is nothing. Only
//! the handles of a scope can be used from its own handlers.

use std::cell::RefCell;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use exitstack::{AsyncExitStack, AsyncScope, Handler, HandlerId, IntoAsyncHandler, IntoHandler, Outcome, scope_async};

use crate::model::{
    Aligned, Bomb, Bytes, Ended, Event, FUNCTIONS, Fate, Large, NAME, NO_TEXT, OWNED_NAME, SILENT, ScopeEnd, Shape,
    Verdict, When, Zero, begin, check_consumed, described, expected_result, function_0, function_1, log, observe,
    result, take_log, text,
};

/// Handlers and bodies of one run at most: handlers register handlers.
const MOST: u32 = 200;
const MOST_SCOPES: usize = 4;
const MOST_HANDLES: usize = 6;

/// A handler to be.
#[derive(Clone, Debug)]
pub struct Spec {
    pub shape: Shape,
    pub fate: Fate,
    pub when: When,
    /// In how many polls its future is pending, if it is async.
    pub yields: Option<u8>,
    /// It does what it does, and panics if that is its fate, before there is a future.
    pub early: bool,
    /// A scope may hand it back.
    pub tried: bool,
    pub runs: Option<Box<Deed>>,
    pub dropped: Option<Box<Deed>>,
}

impl Spec {
    /// Whether it is a closure that captures nothing more than it has to, so that it is stored in place if that is small.
    fn is_plain(&self) -> bool {
        matches!(self.shape, Shape::Small | Shape::Large | Shape::Aligned)
            && self.runs.is_none()
            && self.dropped.is_none()
            && !self.early
            && self.yields.is_none_or(|yields| yields == 0)
    }

    fn panics_early(&self) -> bool {
        self.early && matches!(self.fate, Fate::Panic | Fate::PanicTwice)
    }

    /// Whether its function says that it was called.
    fn tells_begin(&self) -> bool {
        self.yields.is_some() && !self.is_plain()
    }
}

/// What is done, from outside or by a handler. There are two stacks, and then the handles of scopes.
#[derive(Clone, Debug)]
pub enum Deed {
    /// With a stack, or a handle.
    Register(u8, Spec),
    /// Enters a value, registers so many handlers while it is lent out, and writes to it then.
    Enter(u8, Spec, u8),
    Unregister(u8, u8),
    /// The last two are async.
    UnregisterFunction(u8, usize),
    /// Its first comparison may panic.
    UnregisterKey(u8, u8, bool),
    /// The other stack becomes what this one was.
    PopAll(u8),
    Clear(u8),
    Reserve(u8, u8),
    /// The future is dropped after so many polls.
    Close(u8, Outcome, u8),
    Cancel(u8),
    /// There is a new stack in its place then.
    Drop(u8),
    /// Likewise, by a panic.
    Unwind(u8),
    /// Makes a scope, which nobody has polled yet.
    Begin(Box<Body>),
    /// Polls a scope up to so often.
    Poll(u8, u8),
    /// Drops the future of a scope.
    Abort(u8),
    /// Clones a handle.
    Clone(u8),
    /// Drops a handle.
    Release(u8),
}

/// The body of a scope: it registers a handler, is pending, does something, and ends so.
#[derive(Clone, Debug)]
pub struct Body {
    pub spec: Spec,
    pub yields: u8,
    pub deed: Option<Deed>,
    pub end: ScopeEnd,
    /// If it panics, then before there is a future.
    pub early: bool,
    /// A handle to the scope is kept.
    pub kept: bool,
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
    let (code, at) = (bytes.next(), bytes.next());
    let outcome = if code < 128 { Outcome::Success } else { Outcome::Failure };
    match code % 32 {
        0..=6 => Deed::Register(at, spec(bytes, depth)),
        7 | 8 => Deed::Enter(at, spec(bytes, depth), code / 32),
        9 | 10 => Deed::Unregister(at, bytes.next()),
        11 => Deed::UnregisterFunction(at, usize::from(bytes.next() % 4)),
        12 => Deed::UnregisterKey(at, bytes.next() % 3, code >= 128),
        13 => Deed::PopAll(at),
        14 => Deed::Clear(at),
        15 => Deed::Cancel(at),
        16..=20 => Deed::Close(at, outcome, bytes.next() % 8),
        21 if code < 128 => Deed::Drop(at),
        21 => Deed::Unwind(at),
        22 => Deed::Reserve(at, bytes.next()),
        23 | 24 => {
            let (spec, more) = (spec(bytes, depth), bytes.next());
            let deed = (more % 2 == 1 && depth < 6).then(|| deed(bytes, depth + 1));
            let (end, early, kept) = (bytes.end(), code >= 128, more % 4 >= 2);
            Deed::Begin(Box::new(Body { spec, yields: more / 4 % 3, deed, end, early, kept }))
        }
        25..=28 => Deed::Poll(at, bytes.next() % 8),
        29 => Deed::Abort(at),
        30 if code >= 128 => Deed::Clone(at),
        _ => Deed::Release(at),
    }
}

fn spec(bytes: &mut Bytes<'_>, depth: u32) -> Spec {
    let shape = bytes.shape();
    let fate = shape.fate(bytes.fate());
    let (kind, more) = (bytes.next(), bytes.next());
    let when = [When::Always, When::Always, When::Success, When::Failure][usize::from(kind / 64)];
    let is_function = shape.serial().is_some();
    let yields = [None, Some(0), Some(1), Some(2)][usize::from(kind % 4)];
    let yields = if is_function { yields.map(|_| 0) } else { yields };
    let mut one = |wanted| (wanted && !is_function && depth < 6).then(|| Box::new(deed(bytes, depth + 1)));
    let runs = one(more % 4 >= 2);
    let dropped = one(more % 16 >= 13);
    Spec { shape, fate, when, yields, early: kind & 4 != 0 && !is_function, tried: kind & 8 != 0, runs, dropped }
}

fn index(pick: u8, of: usize) -> usize {
    usize::from(pick) % of.max(1)
}

// ---------------------------------------------------------------------------------------------------------------------
// The real stacks

type Stack = AsyncExitStack<'static>;
type Handle = AsyncScope<'static>;
type Scope = Pin<Box<dyn Future<Output = Result<(), Ended>>>>;

#[derive(Default)]
struct Real {
    stacks: [Option<Stack>; 2],
    /// None if it is being polled, or over.
    scopes: Vec<Option<Scope>>,
    handles: Vec<Option<Handle>>,
    ids: Vec<HandlerId>,
    made: u32,
    polls: u32,
}

thread_local! {
    static REAL: RefCell<Real> = RefCell::default();
}

/// Looks at what is real; nothing of the library is called while it does.
fn real<R>(look: impl FnOnce(&mut Real) -> R) -> R {
    REAL.with(|real| look(&mut real.borrow_mut()))
}

/// Takes a stack out of its place, does this to it, and puts it back.
fn with_stack(at: u8, act: impl FnOnce(&mut Stack)) {
    let at = index(at, 2);
    let Some(mut stack) = real(|real| real.stacks[at].take()) else { return };
    act(&mut stack);
    real(|real| real.stacks[at] = Some(stack));
}

/// Puts another stack in its place.
fn replace(at: usize, new: Stack) -> Stack {
    real(|real| real.stacks[at].replace(new)).expect("it is in its place")
}

fn keep(handle: impl FnOnce() -> Handle) {
    if real(|real| real.handles.len()) < MOST_HANDLES {
        let handle = handle();
        real(|real| real.handles.push(Some(handle)));
    }
}

/// Says that it was woken: the waker of the poll with this number.
struct Wakes(u32);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        log(Event::Woken(self.0));
    }
}

/// Polls up to so often, and writes to the log what came of each poll; returns whether it is over.
fn poll<T>(mut future: Pin<&mut dyn Future<Output = T>>, times: u8, text_of: impl Fn(T) -> String) -> bool {
    for _ in 0..times {
        let number = real(|real| {
            real.polls += 1;
            real.polls
        });
        let waker = Waker::from(Arc::new(Wakes(number)));
        let polled = catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(&mut Context::from_waker(&waker))));
        log(match polled {
            Ok(Poll::Pending) => {
                log(Event::Returned("pending".into()));
                continue;
            }
            Ok(Poll::Ready(value)) => Event::Returned(text_of(value)),
            Err(payload) => Event::Panicked(text(&*payload)),
        });
        return true;
    }
    false
}

fn text_of_scope(ended: Result<(), Ended>) -> String {
    match ended {
        Ok(()) => result(&Ok(())),
        Err(Ended::Body) => "the body's".into(),
        Err(Ended::Close(error)) => result(&Err(error)),
    }
}

/// Does it, and writes to the log what came of it.
fn perform(deed: &Deed) {
    match deed {
        Deed::Register(at, spec) => register_at(*at, spec),
        Deed::Enter(at, spec, more) => with_stack(*at, |stack| enter(stack, spec, *more)),
        Deed::Unregister(at, pick) => {
            let id = real(|real| real.ids.get(index(*pick, real.ids.len())).copied());
            let Some(id) = id else { return };
            with_stack(*at, |stack| observe(|| stack.unregister(id).to_string()));
        }
        Deed::UnregisterFunction(at, which) => with_stack(*at, |stack| {
            observe(|| {
                let count = match which {
                    0 => stack.unregister_fn(function_0),
                    1 => stack.unregister_fn(function_1),
                    2 => stack.unregister_fn(async_function_0),
                    _ => stack.unregister_fn(async_function_1),
                };
                count.to_string()
            });
        }),
        Deed::UnregisterKey(at, number, panics) => with_stack(*at, |stack| {
            let wanted = Key { number: *number, panics: AtomicBool::new(*panics) };
            observe(|| stack.unregister_key(&wanted).to_string());
        }),
        Deed::PopAll(at) => {
            let at = index(*at, 2);
            if real(|real| real.stacks.iter().all(Option::is_some)) {
                let mut stack = replace(at, Stack::new());
                let popped = stack.pop_all();
                drop(replace(at, stack));
                drop(replace(1 - at, popped));
            }
        }
        Deed::Clear(at) => with_stack(*at, |stack| {
            observe(|| {
                stack.clear();
                String::new()
            });
        }),
        Deed::Reserve(at, count) => with_stack(*at, |stack| stack.reserve((*count).into())),
        Deed::Close(at, outcome, polls) => with_stack(*at, |stack| {
            let mut close: Pin<Box<dyn Future<Output = _>>> = match outcome {
                Outcome::Success => Box::pin(stack.close()),
                Outcome::Failure => Box::pin(stack.close_with(*outcome)),
            };
            poll(close.as_mut(), *polls, |closed| result(&closed));
        }),
        Deed::Cancel(at) => with_stack(*at, |stack| observe(|| stack.cancel_in_flight().to_string())),
        Deed::Drop(at) | Deed::Unwind(at) => {
            let at = index(*at, 2);
            if real(|real| real.stacks[at].is_none()) {
                return;
            }
            let stack = replace(at, Stack::new());
            if matches!(deed, Deed::Drop(_)) {
                return drop(stack);
            }
            let unwound = catch_unwind(AssertUnwindSafe(|| {
                let _stack = stack;
                resume_unwind(Box::new(()));
            }));
            assert!(unwound.is_err(), "the panic did not go on");
        }
        Deed::Begin(body) => begin_scope(body),
        Deed::Poll(at, times) => {
            let (at, scope) = take_scope(*at);
            let Some(mut scope) = scope else { return };
            if !poll(scope.as_mut(), *times, text_of_scope) {
                real(|real| real.scopes[at] = Some(scope));
            }
        }
        Deed::Abort(at) => drop(take_scope(*at)),
        Deed::Clone(at) => {
            if let Some(handle) = handle(*at) {
                keep(|| handle);
            }
        }
        Deed::Release(at) => {
            let handle = real(|real| {
                let at = index(*at, real.handles.len());
                real.handles.get_mut(at).and_then(Option::take)
            });
            drop(handle);
        }
    }
}

fn take_scope(at: u8) -> (usize, Option<Scope>) {
    real(|real| {
        let at = index(at, real.scopes.len());
        (at, real.scopes.get_mut(at).and_then(Option::take))
    })
}

fn handle(at: u8) -> Option<Handle> {
    real(|real| real.handles.get(index(at, real.handles.len())).cloned().flatten())
}

fn register_at(at: u8, spec: &Spec) {
    let at = index(at, 2 + real(|real| real.handles.len()));
    if at < 2 {
        let at = u8::try_from(at).expect("there are two");
        return with_stack(at, |stack| observe(|| register(stack, spec).to_string()));
    }
    if let Some(handle) = real(|real| real.handles[at - 2].clone()) {
        observe(|| register(&handle, spec).to_string());
    }
}

/// The number of the next handler, or none if there are enough.
fn next_serial() -> Option<u32> {
    real(|real| {
        real.made += u32::from(real.made <= MOST);
        (real.made <= MOST).then(|| real.made - 1)
    })
}

fn begin_scope(body: &Body) {
    if real(|real| real.scopes.len()) >= MOST_SCOPES {
        return;
    }
    let Some(serial) = next_serial() else { return };
    let (bomb, Body { spec, yields, deed, end, early, kept }) = (Bomb::new(serial, Fate::Return), body.clone());
    let scope: Scope = Box::pin(scope_async(move |scope: Handle| {
        if early && end == ScopeEnd::Panic {
            resume_unwind(Box::new("the body"));
        }
        async move {
            let _bomb = bomb;
            observe(|| register(&scope, &spec).to_string());
            if kept {
                keep(|| scope.clone());
            }
            Yields(yields).await;
            deed.iter().for_each(perform);
            match end {
                ScopeEnd::Ok => Ok(()),
                ScopeEnd::Err => Err(Ended::Body),
                ScopeEnd::Panic => resume_unwind(Box::new("the body")),
            }
        }
    }));
    real(|real| real.scopes.push(Some(scope)));
}

/// A key. The first comparison with the one that is looked for may panic.
struct Key {
    number: u8,
    panics: AtomicBool,
}

impl PartialEq for Key {
    fn eq(&self, wanted: &Self) -> bool {
        if wanted.panics.load(Ordering::Relaxed) {
            resume_unwind(Box::new("compared"));
        }
        self.number == wanted.number
    }
}

async fn async_function_0() {
    function_0();
}

async fn async_function_1() -> Result<(), &'static str> {
    function_1()
}

/// A future that is pending in so many polls.
struct Yields(u8);

impl Future for Yields {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let Some(left) = self.0.checked_sub(1) else { return Poll::Ready(()) };
        self.0 = left;
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

type Ran = Result<(), Box<dyn std::error::Error + Send + Sync>>;

/// What a handler captures.
trait Captured: Send {
    fn run(&self) -> Ran;
}

impl Captured for Bomb {
    fn run(&self) -> Ran {
        Self::run(self)
    }
}

impl Captured for Large {
    fn run(&self) -> Ran {
        Self::run(self)
    }
}

impl Captured for Aligned {
    fn run(&self) -> Ran {
        Self::run(self)
    }
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

/// A capture, and what the handler does, dropped from top to bottom.
struct Load {
    captured: Box<dyn Captured>,
    serial: u32,
    runs: Option<Box<Deed>>,
    early: bool,
    panics_early: bool,
    drop_panics: bool,
    _last: Last,
}

impl Load {
    fn new(captured: impl Captured + 'static, serial: u32, spec: &Spec) -> Self {
        let (captured, runs, last) = (Box::new(captured), spec.runs.clone(), Last(spec.dropped.clone()));
        let (early, panics_early, drop_panics) = (spec.early, spec.panics_early(), spec.fate == Fate::DropPanics);
        Self { captured, serial, runs, early, panics_early, drop_panics, _last: last }
    }

    fn act(&self) {
        if let Some(deed) = &self.runs {
            perform(deed);
        }
    }

    /// As a handler that is not async.
    fn run(&self) -> Ran {
        self.act();
        self.captured.run()
    }

    /// As the function of one that is.
    fn start(self, left: u8) -> Work {
        log(Event::Began(self.serial));
        if self.early {
            self.act();
        }
        if self.panics_early {
            let _ = self.captured.run();
        }
        Work { load: self, yields: Yields(left), done: false }
    }
}

/// The future of an async handler.
struct Work {
    load: Load,
    yields: Yields,
    done: bool,
}

impl Drop for Work {
    fn drop(&mut self) {
        SILENT.set(!self.done && self.load.drop_panics);
    }
}

impl Future for Work {
    type Output = Ran;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Ran> {
        let polled = Pin::new(&mut self.yields).poll(context);
        polled.map(|()| {
            self.done = true;
            if !self.load.early {
                self.load.act();
            }
            self.load.captured.run()
        })
    }
}

/// What takes handlers. The id, if it takes this one.
trait Host {
    fn admit(&self, spec: &Spec, handler: impl IntoHandler + Send + 'static) -> Option<HandlerId>;
    fn admit_async(&self, spec: &Spec, handler: impl IntoAsyncHandler + 'static) -> Option<HandlerId>;
}

impl Host for Stack {
    fn admit(&self, spec: &Spec, handler: impl IntoHandler + Send + 'static) -> Option<HandlerId> {
        Some(match spec.when {
            When::Always => self.register(handler),
            When::Success => self.on_success(handler),
            When::Failure => self.on_failure(handler),
        })
    }

    fn admit_async(&self, spec: &Spec, handler: impl IntoAsyncHandler + 'static) -> Option<HandlerId> {
        Some(match spec.when {
            When::Always => self.register_async(handler),
            When::Success => self.on_success_async(handler),
            When::Failure => self.on_failure_async(handler),
        })
    }
}

impl Host for Handle {
    fn admit(&self, spec: &Spec, handler: impl IntoHandler + Send + 'static) -> Option<HandlerId> {
        let id = match spec.when {
            When::Always if spec.tried => return self.try_register(handler).ok(),
            When::Always => self.register(handler),
            When::Success => self.on_success(handler),
            When::Failure => self.on_failure(handler),
        };
        self.pending().first().is_some_and(|newest| newest.id() == id).then_some(id)
    }

    fn admit_async(&self, spec: &Spec, handler: impl IntoAsyncHandler + 'static) -> Option<HandlerId> {
        let id = match spec.when {
            When::Always if spec.tried => return self.try_register_async(handler).ok(),
            When::Always => self.register_async(handler),
            When::Success => self.on_success_async(handler),
            When::Failure => self.on_failure_async(handler),
        };
        self.pending().first().is_some_and(|newest| newest.id() == id).then_some(id)
    }
}

/// Calls a method of `$host` with a function, in a `Handler` if it is to have a name or a key.
macro_rules! admit {
    ($host:ident.$admit:ident, $spec:expr, $function:expr) => {{
        let key = |number| Key { number, panics: AtomicBool::new(false) };
        match $spec.shape {
            Shape::Named => $host.$admit($spec, Handler::new($function).named(NAME)),
            Shape::Keyed(number) => $host.$admit($spec, Handler::new($function).keyed(key(number))),
            Shape::NamedAndKeyed(number) => {
                $host.$admit($spec, Handler::new($function).keyed(key(number)).named(OWNED_NAME.to_owned()))
            }
            _ => $host.$admit($spec, $function),
        }
    }};
}

/// Whether it was taken.
fn register(host: &impl Host, spec: &Spec) -> bool {
    let is_async = spec.yields.is_some();
    let id = match spec.shape {
        Shape::Function(0) if is_async => host.admit_async(spec, async_function_0),
        Shape::Function(_) if is_async => host.admit_async(spec, async_function_1),
        Shape::Function(0) => host.admit(spec, function_0),
        Shape::Function(_) => host.admit(spec, function_1),
        Shape::ZeroSized(0) => register_zero(host, spec, Zero::<false>::new()),
        Shape::ZeroSized(_) => register_zero(host, spec, Zero::<true>::new()),
        _ => {
            let Some(serial) = next_serial() else { return false };
            let bomb = Bomb::new(serial, spec.fate);
            match spec.shape {
                Shape::Large => register_captured(host, serial, spec, Large::new(bomb)),
                Shape::Aligned => register_captured(host, serial, spec, Aligned(bomb)),
                _ => register_captured(host, serial, spec, bomb),
            }
        }
    };
    real(|real| real.ids.extend(id));
    id.is_some()
}

fn register_zero<const PANICS: bool>(host: &impl Host, spec: &Spec, zero: Zero<PANICS>) -> Option<HandlerId> {
    match spec.yields {
        None => host.admit(spec, move || Zero::run(&zero)),
        Some(_) => host.admit_async(spec, move || async move { Zero::run(&zero) }),
    }
}

fn register_captured(
    host: &impl Host,
    serial: u32,
    spec: &Spec,
    captured: impl Captured + 'static,
) -> Option<HandlerId> {
    match spec.yields {
        None if spec.is_plain() => host.admit(spec, move || captured.run()),
        Some(_) if spec.is_plain() => host.admit_async(spec, move || async move { captured.run() }),
        _ => register_load(host, spec, Load::new(captured, serial, spec)),
    }
}

fn register_load(host: &impl Host, spec: &Spec, load: Load) -> Option<HandlerId> {
    match spec.yields {
        None => admit!(host.admit, spec, move || load.run()),
        Some(left) => admit!(host.admit_async, spec, move || load.start(left)),
    }
}

fn enter(stack: &Stack, spec: &Spec, more: u8) {
    let Some(serial) = next_serial() else { return };
    let value = (Load::new(Bomb::new(serial, spec.fate), serial, spec), 0_u8);
    let check = move |written| assert_eq!(written, more + 1, "the exit got another value than was lent");
    let lent = match spec.yields {
        None => stack.enter(value, move |(load, written)| {
            check(written);
            load.run()
        }),
        Some(left) => stack.enter_async(value, move |(load, written)| {
            check(written);
            load.start(left)
        }),
    };
    let entered = stack.pending()[0].id();
    let mut ids = vec![entered];
    for _ in 0..more {
        lent.1 += 1;
        ids.push(stack.register(function_0));
    }
    lent.1 += 1;
    real(|real| real.ids.extend(ids));
}

// ---------------------------------------------------------------------------------------------------------------------
// The model

/// A panic that goes on.
type Panics = bool;

#[derive(Clone)]
struct Pending {
    serial: u32,
    /// Its index among all ids.
    id: usize,
    spec: Spec,
    /// Its function says that it was called.
    tells_begin: bool,
}

impl Pending {
    fn described(&self, what: &str) -> String {
        described(None, self.spec.shape.name(), what)
    }
}

/// What a stack or a scope consists of.
#[derive(Default)]
struct Queue {
    pending: Vec<Pending>,
    /// And in how many polls more it is pending.
    flight: Option<(Pending, u8)>,
    /// Of the drain that has begun.
    outcome: Option<Outcome>,
    errors: Vec<String>,
    exit_code: Option<i32>,
    abandoned: bool,
    is_scope: bool,
    closed: bool,
    /// The scope itself, and the handles to it.
    owners: u32,
    /// How many after the first.
    refused: Option<u32>,
}

impl Queue {
    fn take_result(&mut self) -> String {
        expected_result(&mem::take(&mut self.errors), self.exit_code.take())
    }
}

struct ModelScope {
    body: Body,
    bomb: u32,
    state: State,
}

#[derive(Clone, Copy)]
enum State {
    Unpolled,
    /// The queue, and in how many polls more the body is pending.
    InBody(usize, u8),
    Draining(usize),
}

#[derive(Default)]
struct Model {
    queues: Vec<Queue>,
    /// None if something is being done to it.
    stacks: [Option<usize>; 2],
    scopes: Vec<Option<ModelScope>>,
    handles: Vec<Option<usize>>,
    ids: usize,
    made: u32,
    polls: u32,
    events: Vec<Event>,
}

impl Model {
    fn new_queue(&mut self, queue: Queue) -> usize {
        self.queues.push(queue);
        self.queues.len() - 1
    }

    fn returned(&mut self, text: &str) {
        self.events.push(Event::Returned(text.to_owned()));
    }

    fn returned_or_panicked(&mut self, panics: Panics, text: &str) {
        self.events.push(if panics { Event::Panicked("dropped".into()) } else { Event::Returned(text.to_owned()) });
    }

    fn perform(&mut self, deed: &Deed) {
        match deed {
            Deed::Register(at, spec) => {
                let at = index(*at, 2 + self.handles.len());
                let host = if at < 2 { self.stacks[at].take() } else { self.handles[at - 2] };
                let Some(queue) = host else { return };
                self.queues[queue].owners += 1;
                self.register(queue, spec);
                self.release(queue);
                if at < 2 {
                    self.stacks[at] = Some(queue);
                }
            }
            Deed::Unregister(..) if self.ids == 0 => {}
            Deed::Enter(at, ..)
            | Deed::Unregister(at, _)
            | Deed::UnregisterFunction(at, _)
            | Deed::UnregisterKey(at, ..)
            | Deed::Clear(at)
            | Deed::Close(at, ..)
            | Deed::Cancel(at) => {
                let at = index(*at, 2);
                let Some(queue) = self.stacks[at].take() else { return };
                self.perform_on(queue, deed);
                self.stacks[at] = Some(queue);
            }
            Deed::PopAll(at) => {
                let at = index(*at, 2);
                if let [Some(_), Some(_)] = self.stacks {
                    let new = self.new_queue(Queue::default());
                    let popped = self.stacks[at].replace(new);
                    if let Some(dropped) = mem::replace(&mut self.stacks[1 - at], popped) {
                        self.abandon(dropped);
                    }
                }
            }
            Deed::Drop(at) | Deed::Unwind(at) => {
                let at = index(*at, 2);
                if self.stacks[at].is_some() {
                    let new = self.new_queue(Queue::default());
                    if let Some(dropped) = self.stacks[at].replace(new) {
                        self.abandon(dropped);
                    }
                }
            }
            Deed::Reserve(..) => {}
            Deed::Begin(body) => {
                if self.scopes.len() < MOST_SCOPES {
                    let Some(bomb) = self.next_serial() else { return };
                    self.scopes.push(Some(ModelScope { body: (**body).clone(), bomb, state: State::Unpolled }));
                }
            }
            Deed::Poll(at, times) => {
                let at = index(*at, self.scopes.len());
                let Some(mut scope) = self.scopes.get_mut(at).and_then(Option::take) else { return };
                for _ in 0..*times {
                    if self.poll_scope(&mut scope) {
                        return;
                    }
                    self.returned("pending");
                }
                self.scopes[at] = Some(scope);
            }
            Deed::Abort(at) => {
                let at = index(*at, self.scopes.len());
                let Some(scope) = self.scopes.get_mut(at).and_then(Option::take) else { return };
                if !matches!(scope.state, State::Draining(_)) {
                    self.events.push(Event::Dropped(scope.bomb));
                }
                if let State::InBody(queue, _) = scope.state {
                    self.release(queue);
                }
                if let State::InBody(queue, _) | State::Draining(queue) = scope.state {
                    self.abandon(queue);
                    self.release(queue);
                }
            }
            Deed::Clone(at) => {
                let handle = self.handles.get(index(*at, self.handles.len())).copied().flatten();
                if let Some(queue) = handle {
                    self.keep(queue);
                }
            }
            Deed::Release(at) => {
                let at = index(*at, self.handles.len());
                let handle = self.handles.get_mut(at).and_then(Option::take);
                if let Some(queue) = handle {
                    self.release(queue);
                }
            }
        }
    }

    /// Ends a drain of which nothing but failures is left.
    fn end_if_empty(&mut self, queue: usize) {
        let queue = &mut self.queues[queue];
        if queue.pending.is_empty() && queue.flight.is_none() {
            queue.outcome = None;
        }
    }

    fn perform_on(&mut self, queue: usize, deed: &Deed) {
        match deed {
            Deed::Enter(_, spec, more) => {
                let Some(serial) = self.next_serial() else { return };
                let spec = Spec { shape: Shape::Small, when: When::Always, ..spec.clone() };
                let tells_begin = spec.yields.is_some();
                self.add(queue, serial, spec, tells_begin);
                let shape = Shape::Function(0);
                let (fate, when, yields, early, tried) = (Fate::Return, When::Always, None, false, false);
                for _ in 0..*more {
                    let spec = Spec { shape, fate, when, yields, early, tried, runs: None, dropped: None };
                    self.add(queue, FUNCTIONS[0], spec, false);
                }
            }
            Deed::Unregister(_, pick) => {
                let id = index(*pick, self.ids);
                let found = self.take_if(queue, |pending| pending.id == id);
                let returned = (!found.is_empty()).to_string();
                self.drop_all(&found, &returned);
            }
            Deed::UnregisterFunction(_, which) => {
                let (shape, is_async) = (Shape::Function(which % 2), *which >= 2);
                let is_it = |spec: &Spec| spec.shape == shape && spec.yields.is_some() == is_async;
                let found = self.take_if(queue, |pending| is_it(&pending.spec));
                let returned = found.len().to_string();
                self.drop_all(&found, &returned);
            }
            Deed::UnregisterKey(_, key, panics) => {
                if *panics && self.queues[queue].pending.iter().any(|pending| pending.spec.shape.key().is_some()) {
                    return self.events.push(Event::Panicked("compared".into()));
                }
                let found = self.take_if(queue, |pending| pending.spec.shape.key() == Some(*key));
                let returned = found.len().to_string();
                self.drop_all(&found, &returned);
            }
            Deed::Clear(_) => {
                let mut found = mem::take(&mut self.queues[queue].pending);
                found.reverse();
                self.end_if_empty(queue);
                self.drop_all(&found, "");
            }
            Deed::Close(_, outcome, polls) => {
                for _ in 0..*polls {
                    let number = self.next_poll();
                    if self.poll(queue, *outcome, false, number) {
                        let returned = self.queues[queue].take_result();
                        return self.returned(&returned);
                    }
                    self.returned("pending");
                }
            }
            Deed::Cancel(_) => {
                let Some((flight, _)) = self.queues[queue].flight.take() else { return self.returned("false") };
                self.queues[queue].errors.push(flight.described("Cancelled"));
                self.end_if_empty(queue);
                let panics = self.drop(&flight);
                self.events.push(if panics { Event::Panicked(NO_TEXT.into()) } else { Event::Returned("true".into()) });
            }
            other => unreachable!("{other:?} is not done to a stack"),
        }
    }

    fn next_serial(&mut self) -> Option<u32> {
        self.made += u32::from(self.made <= MOST);
        (self.made <= MOST).then(|| self.made - 1)
    }

    fn next_poll(&mut self) -> u32 {
        self.polls += 1;
        self.polls
    }

    fn add(&mut self, queue: usize, serial: u32, spec: Spec, tells_begin: bool) {
        self.queues[queue].pending.push(Pending { serial, id: self.ids, spec, tells_begin });
        self.ids += 1;
    }

    fn register(&mut self, queue: usize, spec: &Spec) {
        let serial = match spec.shape.serial() {
            Some(serial) => Some(serial),
            None => self.next_serial(),
        };
        let Some(serial) = serial else { return self.returned("false") };
        let tells_begin = spec.shape.serial().is_none() && spec.tells_begin();
        if !self.queues[queue].closed {
            self.add(queue, serial, spec.clone(), tells_begin);
            return self.returned("true");
        }
        let pending = Pending { serial, id: 0, spec: spec.clone(), tells_begin };
        if !(spec.tried && spec.when == When::Always) {
            let refused = &mut self.queues[queue].refused;
            *refused = refused.map_or(Some(0), |more| Some(more + 1));
            if *refused == Some(0) {
                self.events.push(Event::Reported(pending.described("Refused")));
            }
        }
        self.drop_all(&[pending], "false");
    }

    fn keep(&mut self, queue: usize) {
        if self.handles.len() < MOST_HANDLES {
            self.queues[queue].owners += 1;
            self.handles.push(Some(queue));
        }
    }

    /// An owner of a scope's queue lets go of it.
    fn release(&mut self, queue: usize) {
        let queue = &mut self.queues[queue];
        queue.owners -= 1;
        if queue.owners == 0 && queue.refused.is_some_and(|more| more > 0) {
            self.events.push(Event::Reported(described(None, None, "Refused")));
        }
    }

    fn take_if(&mut self, queue: usize, matches: impl Fn(&Pending) -> bool) -> Vec<Pending> {
        let pending = &mut self.queues[queue].pending;
        let (found, kept) = mem::take(pending).into_iter().partition(|pending| matches(pending));
        *pending = kept;
        self.end_if_empty(queue);
        found
    }

    fn drop_all(&mut self, removed: &[Pending], returned: &str) {
        let mut panics = false;
        for handler in removed {
            panics |= self.drop(handler);
        }
        self.returned_or_panicked(panics, returned);
    }

    fn drop(&mut self, handler: &Pending) -> Panics {
        if FUNCTIONS.contains(&handler.serial) {
            return false;
        }
        self.events.push(Event::Dropped(handler.serial));
        self.act(handler.spec.dropped.as_deref());
        handler.spec.fate == Fate::DropPanics
    }

    fn act(&mut self, deed: Option<&Deed>) {
        if let Some(deed) = deed {
            self.perform(deed);
        }
    }

    fn run(&mut self, handler: &Pending) -> Verdict {
        self.events.push(Event::Ran(handler.serial));
        self.drop(handler);
        handler.spec.fate.verdict()
    }

    fn note(&mut self, queue: usize, handler: &Pending, verdict: Verdict, reports: bool) {
        let error = verdict.failure.map(|what| handler.described(&what));
        if reports {
            return self.events.extend(error.map(Event::Reported));
        }
        let queue = &mut self.queues[queue];
        queue.errors.extend(error);
        queue.exit_code = verdict.exit_code.or(queue.exit_code);
    }

    /// One poll of a drain; whether it was ready.
    fn poll(&mut self, queue: usize, outcome: Outcome, reports: bool, number: u32) -> bool {
        let outcome = *self.queues[queue].outcome.get_or_insert(outcome);
        loop {
            if let Some((handler, left)) = self.queues[queue].flight.take() {
                if let Some(left) = left.checked_sub(1) {
                    self.events.push(Event::Woken(number));
                    self.queues[queue].flight = Some((handler, left));
                    return false;
                }
                self.act(handler.spec.runs.as_deref().filter(|_| !handler.spec.early));
                let verdict = self.run(&handler);
                self.note(queue, &handler, verdict, reports);
                continue;
            }
            let this = &mut self.queues[queue];
            let Some(handler) = this.pending.pop() else {
                this.outcome = None;
                this.closed = this.is_scope;
                return true;
            };
            if let Some(verdict) = self.begin(queue, &handler, outcome) {
                self.note(queue, &handler, verdict, reports);
            } else {
                let left = handler.spec.yields.expect("it is async");
                self.queues[queue].flight = Some((handler, left));
            }
        }
    }

    /// Runs a handler, up to its future if it is async. Nothing if there is one.
    fn begin(&mut self, queue: usize, handler: &Pending, outcome: Outcome) -> Option<Verdict> {
        if !handler.spec.when.includes(outcome) {
            let panics = self.drop(handler);
            return Some(if panics { Fate::DropPanics.verdict() } else { Verdict::default() });
        }
        if handler.spec.yields.is_none() {
            self.act(handler.spec.runs.as_deref());
            return Some(self.run(handler));
        }
        if self.queues[queue].abandoned {
            let panics = self.drop(handler);
            let not_run = Verdict { failure: Some("NotRun".into()), exit_code: None };
            return Some(if panics { Fate::DropPanics.verdict() } else { not_run });
        }
        if handler.tells_begin {
            self.events.push(Event::Began(handler.serial));
            self.act(handler.spec.runs.as_deref().filter(|_| handler.spec.early));
        }
        handler.spec.panics_early().then(|| self.run(handler))
    }

    /// A stack, or the future of a scope, is dropped.
    fn abandon(&mut self, queue: usize) {
        let this = &mut self.queues[queue];
        this.exit_code = None;
        this.abandoned = true;
        this.outcome = None;
        let flight = this.flight.take();
        self.events.extend(mem::take(&mut this.errors).into_iter().map(Event::Reported));
        if let Some((flight, _)) = flight {
            self.events.push(Event::Reported(flight.described("Cancelled")));
            self.drop(&flight);
        }
        let ready = self.poll(queue, Outcome::Failure, true, 0);
        assert!(ready, "nothing is in flight in a drop");
    }

    /// One poll of a scope; whether it is over.
    fn poll_scope(&mut self, scope: &mut ModelScope) -> bool {
        let number = self.next_poll();
        let end = scope.body.end;
        loop {
            match scope.state {
                State::Unpolled => {
                    let queue = self.new_queue(Queue { is_scope: true, owners: 2, ..Queue::default() });
                    if scope.body.early && end == ScopeEnd::Panic {
                        self.end_body(scope, queue);
                        continue;
                    }
                    self.register(queue, &scope.body.spec);
                    if scope.body.kept {
                        self.keep(queue);
                    }
                    scope.state = State::InBody(queue, scope.body.yields);
                }
                State::InBody(queue, left) => {
                    if let Some(left) = left.checked_sub(1) {
                        self.events.push(Event::Woken(number));
                        scope.state = State::InBody(queue, left);
                        return false;
                    }
                    self.act(scope.body.deed.as_ref());
                    self.end_body(scope, queue);
                }
                State::Draining(queue) => {
                    let outcome = if end == ScopeEnd::Ok { Outcome::Success } else { Outcome::Failure };
                    if !self.poll(queue, outcome, end != ScopeEnd::Ok, number) {
                        return false;
                    }
                    let returned = self.queues[queue].take_result();
                    self.release(queue);
                    self.events.push(match end {
                        ScopeEnd::Ok => Event::Returned(returned),
                        ScopeEnd::Err => Event::Returned("the body's".into()),
                        ScopeEnd::Panic => Event::Panicked("the body".into()),
                    });
                    return true;
                }
            }
        }
    }

    fn end_body(&mut self, scope: &mut ModelScope, queue: usize) {
        self.events.push(Event::Dropped(scope.bomb));
        self.release(queue);
        scope.state = State::Draining(queue);
    }

    fn check(&self) {
        let id = |pending: &Pending| (real(|real| real.ids[pending.id]), pending.spec.shape.name().map(str::to_owned));
        let waiting = |queue: usize| -> Vec<_> { self.queues[queue].pending.iter().rev().map(id).collect() };
        for at in 0..2 {
            let queue = self.stacks[at].expect("nothing is done to it now");
            let stack = real(|real| real.stacks[at].take()).expect("nothing is done to it now");
            let expected = waiting(queue);
            assert_eq!((stack.len(), stack.is_empty()), (expected.len(), expected.is_empty()));
            let named = |pending: &exitstack::PendingHandler| (pending.id(), pending.name().map(str::to_owned));
            assert_eq!(stack.pending().iter().map(named).collect::<Vec<_>>(), expected, "who waits in stack {at}");
            let flight = self.queues[queue].flight.as_ref().map(|(flight, _)| id(flight));
            assert_eq!(stack.in_flight().as_ref().map(named), flight, "who is in flight in stack {at}");
            real(|real| real.stacks[at] = Some(stack));
        }
        for (at, queue) in self.handles.iter().enumerate() {
            let handle = real(|real| real.handles[at].clone());
            assert_eq!(handle.is_some(), queue.is_some(), "handle {at}");
            let Some((handle, queue)) = handle.zip(*queue) else { continue };
            let named = |pending: &exitstack::PendingHandler| (pending.id(), pending.name().map(str::to_owned));
            assert_eq!(
                handle.pending().iter().map(named).collect::<Vec<_>>(),
                waiting(queue),
                "who waits by handle {at}"
            );
        }
        let expected: Vec<bool> = self.scopes.iter().map(Option::is_some).collect();
        let there: Vec<bool> = real(|real| real.scopes.iter().map(Option::is_some).collect());
        assert_eq!(there, expected, "which scopes are not over");
    }
}

/// Does all that `bytes` say and compares each step with the model.
pub fn run(bytes: &[u8]) {
    let deeds = decode(bytes);
    let left = real(mem::take); // by a run that failed
    drop(left);
    begin();
    real(|real| *real = Real { stacks: [Some(Stack::new()), Some(Stack::new())], ..Real::default() });
    let mut model = Model::default();
    for at in 0..2 {
        model.stacks[at] = Some(model.new_queue(Queue::default()));
    }
    let mut all = Vec::new();
    let mut step = |model: &mut Model, deed: &Deed, why: &dyn Fn() -> String| {
        perform(deed);
        let happened = take_log();
        model.perform(deed);
        assert_eq!(happened, mem::take(&mut model.events), "{deed:?}, {}", why());
        model.check();
        all.extend(happened);
    };
    for (at, deed) in deeds.iter().enumerate() {
        step(&mut model, deed, &|| format!("step {at} of {deeds:#?}"));
    }
    // Everything is dropped until nothing is left: the handlers that this runs may make more.
    for round in 0.. {
        let is_left = model.stacks.iter().flatten().any(|&queue| {
            let Queue { pending, flight, outcome, .. } = &model.queues[queue];
            !pending.is_empty() || flight.is_some() || outcome.is_some()
        });
        if !is_left && model.scopes.iter().all(Option::is_none) && model.handles.iter().all(Option::is_none) {
            break;
        }
        assert!(round < 100, "stacks are filled for ever");
        let slots = u8::try_from(MOST_HANDLES).expect("few handles");
        let rest = (0..slots).flat_map(|at| [Deed::Abort(at), Deed::Release(at)]).chain([Deed::Drop(0), Deed::Drop(1)]);
        rest.for_each(|deed| step(&mut model, &deed, &|| "at the end".into()));
    }
    drop(real(mem::take));
    check_consumed(&all, model.made.min(MOST));
}
