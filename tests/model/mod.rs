//! Operations on stacks, and trivial models that predict their results.
//!
//! They have three users: the property tests and the corpus replay in `tests/api` and `tests/async_stack`, and the fuzz
//! targets. All of them start from bytes, so that what one finds can be replayed by another. One thread at a time does
//! something. What handlers do is logged on that thread, the model predicts the log, and the two must be equal after each
//! step.
//!
//! Intended panics are raised with `resume_unwind`, which calls no panic hook: a fuzzer's hook would abort.

#[cfg(fuzzing)]
pub mod limits;
pub mod ops;
pub mod report;
pub mod shared;

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::error::Error;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Once;

use exitstack::{CloseError, Exit, ExitStack, HandlerError, HandlerErrorKind, Outcome};

/// Something that happened, or must happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The handler with this number ran.
    Ran(u32),
    /// The function of the async handler with this number was called.
    Began(u32),
    /// The waker of the poll with this number was woken.
    Woken(u32),
    /// A value captured by the handler with this number was dropped.
    Dropped(u32),
    /// This failure went to the report hook.
    Reported(String),
    /// A handler received this outcome.
    Told(Outcome),
    /// A call returned this.
    Returned(String),
    /// A call panicked with this message.
    Panicked(String),
}

thread_local! {
    static LOG: RefCell<Vec<Event>> = const { RefCell::new(Vec::new()) };
}

pub fn log(event: Event) {
    LOG.with(|log| log.borrow_mut().push(event));
}

pub fn take_log() -> Vec<Event> {
    LOG.take()
}

/// Makes this the log of this thread.
#[cfg(fuzzing)]
pub fn set_log(log: Vec<Event>) {
    LOG.set(log);
}

/// Installs the report hook of all tests on models, which logs on the reporting thread.
pub fn install_hook() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| exitstack::report::set_hook(Box::new(|error| log(Event::Reported(brief(error))))));
}

/// Describes a failure without its location.
pub fn brief(error: &HandlerError) -> String {
    let what = match error.kind() {
        HandlerErrorKind::Failed(error) => match error.downcast_ref::<CloseError>() {
            Some(nested) => format!("failed: {}", result(&Err(nested.clone()))),
            None => format!("failed: {error}"),
        },
        HandlerErrorKind::Panicked(message) => format!("panicked: {message}"),
        HandlerErrorKind::TimedOut(_) => "timed out".to_owned(),
        other => format!("{other:?}"),
    };
    described(error.path(), error.name(), &what)
}

/// Returns what [`brief`] returns for such a failure.
pub fn described(path: Option<&str>, name: Option<&str>, what: &str) -> String {
    format!("{}/{}/{what}", path.unwrap_or_default(), name.unwrap_or_default())
}

/// Describes what a close returned, in a form that a model can predict.
pub fn result(result: &Result<(), CloseError>) -> String {
    match result {
        Ok(()) => expected_result(&[], None),
        Err(error) => {
            let errors: Vec<String> = error.iter().map(brief).collect();
            assert!(!errors.is_empty() || error.exit_code().is_some(), "an error without a reason");
            let source = error.source().map(ToString::to_string);
            let only = if let [only] = error.errors() { only.source() } else { None };
            assert_eq!(source, only.map(ToString::to_string), "the source is that of the only failure");
            assert_eq!(error.last().map(brief).as_ref(), errors.last());
            expected_result(&errors, error.exit_code())
        }
    }
}

/// Returns what [`result`] returns for such a drain.
pub fn expected_result(errors: &[String], exit_code: Option<i32>) -> String {
    format!("{errors:?} {exit_code:?}")
}

/// Calls `call` and logs what it returns, or that it panics.
pub fn observe(call: impl FnOnce() -> String) {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(returned) => log(Event::Returned(returned)),
        Err(payload) => log(Event::Panicked(text(&*payload))),
    }
}

/// What [`text`] says of a panic without one.
pub const NO_TEXT: &str = "no text";

pub fn text(payload: &(dyn Any + Send)) -> String {
    payload.downcast_ref::<&str>().unwrap_or(&NO_TEXT).to_string()
}

/// How a handler ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Return,
    Fail,
    Panic,
    /// Panics with a payload whose drop panics.
    PanicTwice,
    Exit(i32),
    /// A `Box<Exit>` that is boxed as an error once more.
    BoxedExit(i32),
    /// Returns the error of a stack of its own, in which one handler failed and another requested this status.
    Nested(i32),
    /// Returns, but the drop of its captured value panics.
    DropPanics,
}

/// For which outcomes a handler runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    Always,
    Success,
    Failure,
}

impl When {
    pub fn includes(self, outcome: Outcome) -> bool {
        match self {
            Self::Always => true,
            Self::Success => outcome == Outcome::Success,
            Self::Failure => outcome == Outcome::Failure,
        }
    }
}

/// How the body of a scope ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScopeEnd {
    Ok,
    Err,
    Panic,
}

/// The error of a scope.
pub enum Ended {
    Body,
    Close(CloseError),
}

impl From<CloseError> for Ended {
    fn from(error: CloseError) -> Self {
        Self::Close(error)
    }
}

/// A handler's result, as a model predicts it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    pub failure: Option<String>,
    pub exit_code: Option<i32>,
}

impl Fate {
    /// What a drain must record of a handler that ran.
    pub fn verdict(self) -> Verdict {
        let (failure, exit_code) = match self {
            Self::Return => (None, None),
            Self::Fail => (Some("failed: on purpose".to_owned()), None),
            Self::Panic => (Some("panicked: on purpose".to_owned()), None),
            Self::PanicTwice => (Some("panicked: (non-string panic payload)".to_owned()), None),
            Self::Exit(code) | Self::BoxedExit(code) => (None, Some(code)),
            Self::Nested(code) => {
                let inner = described(None, None, "failed: nested");
                (Some(format!("failed: {}", expected_result(&[inner], Some(code)))), Some(code))
            }
            Self::DropPanics => (Some("panicked: dropped".to_owned()), None),
        };
        Verdict { failure, exit_code }
    }

    fn meet(self) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        match self {
            Self::Return | Self::DropPanics => Ok(()),
            Self::Fail => Err("on purpose".into()),
            Self::Panic => resume_unwind(Box::new("on purpose")),
            Self::PanicTwice => resume_unwind(Box::new(Twice)),
            Self::Exit(code) => Err(Exit(code).into()),
            Self::BoxedExit(code) => Err(Box::new(Box::new(Exit(code)))),
            Self::Nested(code) => {
                let mut inner = ExitStack::new();
                inner.register(|| Err("nested"));
                inner.register(move || Err(Exit(code)));
                Ok(inner.close()?)
            }
        }
    }
}

struct Twice;

impl Drop for Twice {
    fn drop(&mut self) {
        // Without a message, because the payload of a panicking payload drop is leaked, and a fuzzer would report that.
        resume_unwind(Box::new(()));
    }
}

/// Captured by every handler: logs its drop, and checks that it is not damaged.
#[derive(Debug)]
pub struct Bomb {
    pub serial: u32,
    check: u32,
    fate: Fate,
}

impl Bomb {
    pub fn new(serial: u32, fate: Fate) -> Self {
        Self { serial, check: !serial, fate }
    }

    pub fn run(&self) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        self.inspect();
        log(Event::Ran(self.serial));
        self.fate.meet()
    }

    fn inspect(&self) {
        assert_eq!(self.check, !self.serial, "a capture was damaged");
    }
}

impl Drop for Bomb {
    fn drop(&mut self) {
        self.inspect();
        log(Event::Dropped(self.serial));
        self.check = self.serial; // so that a second drop finds it damaged
        if self.fate == Fate::DropPanics {
            resume_unwind(if SILENT.take() { Box::new(()) } else { Box::new("dropped") });
        }
    }
}

thread_local! {
    /// Whether the next drop that panics does so with nothing: where what it panics with is leaked, a fuzzer would tell.
    pub static SILENT: Cell<bool> = const { Cell::new(false) };
}

/// A captured value too large for a stack's own storage.
pub struct Large {
    bomb: Bomb,
    ballast: [u32; 40],
}

impl Large {
    pub fn new(bomb: Bomb) -> Self {
        Self { ballast: [bomb.serial; 40], bomb }
    }

    pub fn run(&self) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        assert_eq!(self.ballast, [self.bomb.serial; 40], "a large capture was damaged");
        self.bomb.run()
    }
}

/// A captured value small enough for a stack's own storage, but with a larger alignment.
#[repr(align(16))]
pub struct Aligned(pub Bomb);

const _: () = assert!(size_of::<Aligned>() <= 24 && align_of::<Aligned>() > align_of::<usize>());

impl Aligned {
    pub fn run(&self) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        self.check();
        self.0.run()
    }

    fn check(&self) {
        assert!(std::ptr::from_ref(self).is_aligned(), "a capture is not aligned");
    }
}

impl Drop for Aligned {
    fn drop(&mut self) {
        self.check();
    }
}

thread_local! {
    /// How many zero-sized captured values exist.
    static ZERO_SIZED: Cell<i32> = const { Cell::new(0) };
}

/// The numbers under which handlers with a zero-sized captured value are logged.
const ZEROS: [u32; 2] = [u32::MAX - 2, u32::MAX - 3];

/// A zero-sized captured value, dropped like any other. `PANICS` says whether its drop panics.
pub struct Zero<const PANICS: bool>(());

impl<const PANICS: bool> Zero<PANICS> {
    const SERIAL: u32 = ZEROS[PANICS as usize];

    pub fn new() -> Self {
        ZERO_SIZED.set(ZERO_SIZED.get() + 1);
        Self(())
    }

    pub fn run(_captured: &Self) {
        log(Event::Ran(Self::SERIAL));
    }
}

impl<const PANICS: bool> Drop for Zero<PANICS> {
    fn drop(&mut self) {
        ZERO_SIZED.set(ZERO_SIZED.get() - 1);
        log(Event::Dropped(Self::SERIAL));
        if PANICS {
            resume_unwind(Box::new("dropped"));
        }
    }
}

/// The numbers under which handlers without captured values are logged.
pub const FUNCTIONS: [u32; 2] = [u32::MAX, u32::MAX - 1];

pub fn function_0() {
    log(Event::Ran(FUNCTIONS[0]));
}

pub fn function_1() -> Result<(), &'static str> {
    log(Event::Ran(FUNCTIONS[1]));
    Err("on purpose")
}

pub const NAME: &str = "a name";
pub const OWNED_NAME: &str = "an owned name";

/// What a handler is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    Small,
    Large,
    Aligned,
    /// One of the two functions, which captures nothing and has a fate of its own.
    Function(usize),
    /// Captures a zero-sized value: one whose drop returns, or one whose drop panics.
    ZeroSized(usize),
    Named,
    Keyed(u8),
    NamedAndKeyed(u8),
}

impl Shape {
    pub fn key(self) -> Option<u8> {
        match self {
            Self::Keyed(key) | Self::NamedAndKeyed(key) => Some(key),
            _ => None,
        }
    }

    pub fn name(self) -> Option<&'static str> {
        match self {
            Self::Named => Some(NAME),
            Self::NamedAndKeyed(_) => Some(OWNED_NAME),
            _ => None,
        }
    }

    /// The actual fate of a handler of this shape that was given `fate`.
    pub fn fate(self, fate: Fate) -> Fate {
        match self {
            Self::Function(0) | Self::ZeroSized(0) => Fate::Return,
            Self::Function(_) => Fate::Fail,
            Self::ZeroSized(_) => Fate::DropPanics,
            _ => fate,
        }
    }

    /// The number of a handler of this shape, if it cannot store one of its own.
    pub fn serial(self) -> Option<u32> {
        match self {
            Self::Function(which) => Some(FUNCTIONS[which]),
            Self::ZeroSized(which) => Some(ZEROS[which]),
            _ => None,
        }
    }
}

/// Bytes read one by one, followed by zeros.
pub struct Bytes<'b>(pub &'b [u8]);

impl Bytes<'_> {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn next(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    pub fn end(&mut self) -> ScopeEnd {
        [ScopeEnd::Ok, ScopeEnd::Err, ScopeEnd::Panic][usize::from(self.next() % 3)]
    }

    pub fn fate(&mut self) -> Fate {
        let byte = self.next();
        let code = i32::from(byte / 16);
        match byte % 16 {
            8 | 9 => Fate::Fail,
            10 => Fate::Panic,
            11 => Fate::PanicTwice,
            12 => Fate::Exit(code),
            13 => Fate::BoxedExit(code),
            14 => Fate::Nested(code),
            15 => Fate::DropPanics,
            _ => Fate::Return,
        }
    }

    pub fn shape(&mut self) -> Shape {
        let byte = self.next();
        match byte % 8 {
            1 => Shape::Large,
            2 => Shape::Aligned,
            3 => Shape::Function(usize::from(byte / 8 % 2)),
            4 => Shape::Named,
            5 => Shape::Keyed(byte / 8 % 3),
            6 => Shape::NamedAndKeyed(byte / 8 % 3),
            7 => Shape::ZeroSized(usize::from(byte / 8 % 2)),
            _ => Shape::Small,
        }
    }
}

/// Prepares this thread for a run by forgetting what an earlier one left.
pub fn begin() {
    install_hook();
    take_log();
    ZERO_SIZED.set(0);
}

/// Checks in a complete log that every captured value of `0..made` was dropped exactly once and ran at most once, and
/// that no zero-sized captured value is left.
pub fn check_consumed(events: &[Event], made: u32) {
    let mut dropped = vec![0; made as usize];
    let mut ran = vec![0; made as usize];
    for event in events {
        match *event {
            Event::Dropped(serial) | Event::Ran(serial) if ZEROS.contains(&serial) || FUNCTIONS.contains(&serial) => {}
            Event::Dropped(serial) => dropped[serial as usize] += 1,
            Event::Ran(serial) => ran[serial as usize] += 1,
            _ => {}
        }
    }
    assert!(dropped.iter().all(|&times| times == 1), "captures dropped, by number: {dropped:?}");
    assert!(ran.iter().all(|&times| times <= 1), "handlers run, by number: {ran:?}");
    assert_eq!(ZERO_SIZED.get(), 0, "captures without size, made and not dropped");
}
