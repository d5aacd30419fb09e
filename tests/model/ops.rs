//! Two `ExitStack`s, and a model of them: two vectors of pending handlers.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use exitstack::{ExitStack, Handler, HandlerId, Outcome, ScopeError};

use super::{
    Aligned, Bomb, Bytes, Ended, Event, FUNCTIONS, Fate, Large, ScopeEnd, Shape, Verdict, When, Zero, begin,
    check_consumed, described, expected_result, function_0, function_1, log, observe, result, take_log,
};

/// The maximum number of handlers in a run: with more, a fuzzer finds too little for the time it takes.
const MOST: u32 = 400;

#[derive(Clone, Copy, Debug)]
pub enum Op {
    Register {
        shape: Shape,
        fate: Fate,
        when: When,
    },
    /// Enters a value, and registers `more` handlers while it is lent out before writing to it.
    Enter {
        fate: Fate,
        more: u8,
        /// Whether its exit receives the outcome.
        told: bool,
    },
    /// Any id that ever existed, of either stack.
    Unregister(u8),
    UnregisterFunction(usize),
    UnregisterKey {
        key: u8,
        /// This many comparisons return, and the next one panics.
        fuse: Option<u8>,
    },
    /// Uses a key of a type that no handler has.
    UnregisterForeignKey(u8),
    RunNow(u8),
    /// Replaces the other stack with the popped one. The replaced stack is dropped, which is a failure.
    PopAll,
    Swap,
    Clear,
    Reserve(u8),
    Close(Outcome),
    /// Drops the stack and replaces it with a new one.
    Drop,
    /// Like `Drop`, but caused by a panic.
    Unwind,
    /// Uses the stack of a `scope` or `try_scope` whose body ends this way.
    Scope {
        end: ScopeEnd,
        tried: bool,
        fails: bool,
    },
}

pub fn decode(bytes: &[u8]) -> Vec<Op> {
    let mut bytes = Bytes(bytes);
    let mut ops = Vec::new();
    while !bytes.is_empty() {
        let code = bytes.next();
        ops.push(match code % 32 {
            0..=8 => Op::Register { shape: bytes.shape(), fate: bytes.fate(), when: When::Always },
            9 | 10 => Op::Register { shape: bytes.shape(), fate: bytes.fate(), when: When::Success },
            11 | 12 => Op::Register { shape: bytes.shape(), fate: bytes.fate(), when: When::Failure },
            13 | 14 => {
                let (fate, byte) = (bytes.fate(), bytes.next());
                Op::Enter { fate, more: byte % 8, told: byte >= 128 }
            }
            15..=18 => Op::Unregister(bytes.next()),
            19 => Op::UnregisterFunction(usize::from(bytes.next() % 2)),
            20 => {
                let byte = bytes.next();
                Op::UnregisterKey { key: byte % 3, fuse: (byte >= 128).then_some(byte / 16 % 4) }
            }
            21 => Op::UnregisterForeignKey(bytes.next()),
            22 | 23 => Op::RunNow(bytes.next()),
            24 => Op::PopAll,
            25 => Op::Swap,
            26 => Op::Clear,
            27 => Op::Reserve(bytes.next()),
            28 => Op::Close(Outcome::Success),
            29 => Op::Close(Outcome::Failure),
            30 if code < 128 => Op::Drop,
            30 => Op::Unwind,
            _ => Op::Scope { end: bytes.end(), tried: code >= 128, fails: code / 32 % 2 == 0 },
        });
    }
    ops
}

/// A key. Comparing uses up the fuse of the key that is searched for.
struct Key {
    number: u8,
    fuse: Cell<Option<u8>>,
}

impl Key {
    fn new(number: u8) -> Self {
        Self { number, fuse: Cell::new(None) }
    }
}

impl PartialEq for Key {
    fn eq(&self, wanted: &Self) -> bool {
        match wanted.fuse.get() {
            Some(0) => resume_unwind(Box::new("compared")),
            left => wanted.fuse.set(left.map(|left| left - 1)),
        }
        self.number == wanted.number
    }
}

/// A pending handler, as seen by the model.
#[derive(Clone, Debug)]
struct Pending {
    serial: u32,
    id: HandlerId,
    shape: Shape,
    fate: Fate,
    when: When,
    /// Whether it logs the outcome that it receives.
    told: bool,
}

impl Pending {
    /// Predicts what happens when it runs.
    fn run(&self, outcome: Outcome, expected: &mut Vec<Event>) -> Verdict {
        if self.told {
            expected.push(Event::Told(outcome));
        }
        expected.push(Event::Ran(self.serial));
        self.drop(expected);
        self.fate.verdict()
    }

    /// Predicts what happens when it is dropped; returns true if that panics.
    fn drop(&self, expected: &mut Vec<Event>) -> bool {
        if !FUNCTIONS.contains(&self.serial) {
            expected.push(Event::Dropped(self.serial));
        }
        self.fate == Fate::DropPanics
    }

    fn described(&self, what: &str) -> String {
        described(None, self.shape.name(), what)
    }
}

#[derive(Default)]
struct Model {
    pending: Vec<Pending>,
}

impl Model {
    /// Predicts what happens in a drain; returns the result.
    fn drain(&mut self, outcome: Outcome, reports: bool, expected: &mut Vec<Event>) -> String {
        let mut errors = Vec::new();
        let mut exit_code = None;
        while let Some(handler) = self.pending.pop() {
            let verdict = if handler.when.includes(outcome) {
                handler.run(outcome, expected)
            } else if handler.drop(expected) {
                Fate::DropPanics.verdict()
            } else {
                Verdict::default()
            };
            exit_code = verdict.exit_code.or(exit_code);
            if let Some(what) = verdict.failure {
                let error = handler.described(&what);
                if reports {
                    expected.push(Event::Reported(error.clone()));
                }
                errors.push(error);
            }
        }
        expected_result(&errors, exit_code)
    }

    fn take(&mut self, id: Option<HandlerId>) -> Option<Pending> {
        let at = self.pending.iter().position(|pending| Some(pending.id) == id)?;
        Some(self.pending.remove(at))
    }

    fn take_if(&mut self, matches: impl Fn(&Pending) -> bool) -> Vec<Pending> {
        let (found, kept) = self.pending.drain(..).partition(|pending| matches(pending));
        self.pending = kept;
        found
    }

    /// Predicts what happens when these are dropped, and what the call returns or panics with.
    fn drop_all(removed: &[Pending], returned: &str, expected: &mut Vec<Event>) {
        let mut panics = false;
        for handler in removed {
            panics |= handler.drop(expected);
        }
        expected.push(if panics { Event::Panicked("dropped".into()) } else { Event::Returned(returned.into()) });
    }
}

struct Run<'a> {
    stacks: [ExitStack<'a>; 2],
    models: [Model; 2],
    /// Every id that ever existed.
    ids: Vec<HandlerId>,
    made: u32,
}

impl Run<'_> {
    fn bomb(&mut self, fate: Fate) -> Bomb {
        self.made += 1;
        Bomb::new(self.made - 1, fate)
    }

    fn register(&mut self, shape: Shape, fate: Fate, when: When) {
        if self.made >= MOST {
            return;
        }
        let fate = shape.fate(fate);
        let serial = shape.serial().unwrap_or(self.made);
        macro_rules! register {
            ($handler:expr) => {
                match when {
                    When::Always => self.stacks[0].register($handler),
                    When::Success => self.stacks[0].on_success($handler),
                    When::Failure => self.stacks[0].on_failure($handler),
                }
            };
        }
        let id = match shape {
            Shape::Function(0) => register!(function_0),
            Shape::Function(_) => register!(function_1),
            Shape::ZeroSized(0) => {
                let zero = Zero::<false>::new();
                register!(move || Zero::run(&zero))
            }
            Shape::ZeroSized(_) => {
                let zero = Zero::<true>::new();
                register!(move || Zero::run(&zero))
            }
            Shape::Small => {
                let bomb = self.bomb(fate);
                register!(move || bomb.run())
            }
            Shape::Large => {
                let large = Large::new(self.bomb(fate));
                register!(move || large.run())
            }
            Shape::Aligned => {
                let aligned = Aligned(self.bomb(fate));
                register!(move || aligned.run())
            }
            Shape::Named => {
                let bomb = self.bomb(fate);
                register!(Handler::new(move || bomb.run()).named(super::NAME))
            }
            Shape::Keyed(key) => {
                let bomb = self.bomb(fate);
                register!(Handler::new(move || bomb.run()).keyed(Key::new(key)))
            }
            Shape::NamedAndKeyed(key) => {
                let bomb = self.bomb(fate);
                register!(Handler::new(move || bomb.run()).keyed(Key::new(key)).named(super::OWNED_NAME.to_owned()))
            }
        };
        self.ids.push(id);
        self.models[0].pending.push(Pending { serial, id, shape, fate, when, told: false });
    }

    fn enter(&mut self, fate: Fate, more: u8, told: bool) {
        if self.made >= MOST {
            return;
        }
        let serial = self.made;
        let bomb = self.bomb(fate);
        let stack = &self.stacks[0];
        let exit = move |(bomb, written): (Bomb, u8)| {
            assert_eq!(written, more + 1, "the exit got another value than was lent");
            bomb.run()
        };
        let lent = if told {
            stack.enter_with((bomb, 0_u8), move |value, outcome| {
                log(Event::Told(outcome));
                exit(value)
            })
        } else {
            stack.enter((bomb, 0_u8), exit)
        };
        let entered = stack.pending()[0].id();
        let mut also = Vec::new();
        for _ in 0..more {
            lent.1 += 1;
            also.push(stack.register(function_0));
        }
        lent.1 += 1;
        self.ids.push(entered);
        self.models[0].pending.push(Pending {
            serial,
            id: entered,
            shape: Shape::Small,
            fate,
            when: When::Always,
            told,
        });
        for id in also {
            self.ids.push(id);
            let shape = Shape::Function(0);
            let fate = Fate::Return;
            let (serial, when, told) = (FUNCTIONS[0], When::Always, false);
            self.models[0].pending.push(Pending { serial, id, shape, fate, when, told });
        }
    }

    fn pick(&self, pick: u8) -> Option<HandlerId> {
        let index = usize::from(pick) % self.ids.len().max(1);
        self.ids.len().checked_sub(index + 1).map(|at| self.ids[at])
    }

    /// Performs the operation on the stack and on the model, and returns what must have happened.
    fn step(&mut self, op: Op) -> Vec<Event> {
        let mut expected = Vec::new();
        match op {
            Op::Register { shape, fate, when } => self.register(shape, fate, when),
            Op::Enter { fate, more, told } => self.enter(fate, more, told),
            Op::Unregister(pick) => {
                let id = self.pick(pick);
                if let Some(id) = id {
                    observe(|| self.stacks[0].unregister(id).to_string());
                    let removed = Vec::from_iter(self.models[0].take(Some(id)));
                    Model::drop_all(&removed, &(!removed.is_empty()).to_string(), &mut expected);
                }
            }
            Op::UnregisterFunction(which) => {
                observe(|| {
                    let stack = &mut self.stacks[0];
                    let count =
                        if which == 0 { stack.unregister_fn(function_0) } else { stack.unregister_fn(function_1) };
                    count.to_string()
                });
                let removed = self.models[0].take_if(|pending| pending.shape == Shape::Function(which));
                Model::drop_all(&removed, &removed.len().to_string(), &mut expected);
            }
            Op::UnregisterKey { key, fuse } => {
                let wanted = Key { number: key, fuse: Cell::new(fuse) };
                observe(|| self.stacks[0].unregister_key(&wanted).to_string());
                let keyed = self.models[0].pending.iter().filter(|pending| pending.shape.key().is_some()).count();
                if fuse.is_some_and(|fuse| usize::from(fuse) < keyed) {
                    expected.push(Event::Panicked("compared".into()));
                    return expected;
                }
                let removed = self.models[0].take_if(|pending| pending.shape.key() == Some(key));
                Model::drop_all(&removed, &removed.len().to_string(), &mut expected);
            }
            Op::UnregisterForeignKey(key) => {
                observe(|| self.stacks[0].unregister_key(&u16::from(key)).to_string());
                expected.push(Event::Returned("0".into()));
            }
            Op::RunNow(pick) => {
                let Some(id) = self.pick(pick) else { return expected };
                observe(|| self.stacks[0].run_now(id).map_or_else(|| "none".into(), |ran| result(&ran)));
                let returned = self.models[0].take(Some(id)).map_or_else(
                    || "none".into(),
                    |handler| {
                        let verdict = handler.run(Outcome::Failure, &mut expected); // not declared a success
                        let errors = verdict.failure.map(|what| handler.described(&what));
                        expected_result(&Vec::from_iter(errors), verdict.exit_code)
                    },
                );
                expected.push(Event::Returned(returned));
            }
            Op::PopAll => {
                self.stacks[1] = self.stacks[0].pop_all();
                self.models[1].drain(Outcome::Failure, true, &mut expected);
                self.models.swap(0, 1);
            }
            Op::Swap => {
                self.stacks.swap(0, 1);
                self.models.swap(0, 1);
            }
            Op::Clear => {
                observe(|| {
                    self.stacks[0].clear();
                    String::new()
                });
                let mut removed = std::mem::take(&mut self.models[0].pending);
                removed.reverse();
                Model::drop_all(&removed, "", &mut expected);
            }
            Op::Reserve(count) => self.stacks[0].reserve(count.into()),
            Op::Close(outcome) => {
                observe(|| {
                    result(&match outcome {
                        Outcome::Success => self.stacks[0].close(),
                        Outcome::Failure => self.stacks[0].close_with(outcome),
                    })
                });
                let returned = self.models[0].drain(outcome, false, &mut expected);
                expected.push(Event::Returned(returned));
            }
            Op::Drop => {
                self.stacks[0] = ExitStack::new();
                self.models[0].drain(Outcome::Failure, true, &mut expected);
            }
            Op::Unwind => {
                let stack = std::mem::take(&mut self.stacks[0]);
                let unwound = catch_unwind(AssertUnwindSafe(|| {
                    let _stack = stack;
                    resume_unwind(Box::new(()));
                }));
                assert!(unwound.is_err(), "the panic did not go on");
                self.models[0].drain(Outcome::Failure, true, &mut expected);
            }
            Op::Scope { end, tried, fails } => self.scope(end, tried, fails, &mut expected),
        }
        expected
    }

    /// A scope's stack cannot be filled from outside, so its body registers a few handlers with fixed fates.
    fn scope(&mut self, end: ScopeEnd, tried: bool, fails: bool, expected: &mut Vec<Event>) {
        let fates = if fails { [Fate::Fail, Fate::Return, Fate::Panic] } else { [Fate::Return; 3] };
        let bombs = fates.map(|fate| self.bomb(fate));
        let mut model = Model::default();
        let body = |stack: &ExitStack<'_>| {
            for (bomb, when) in bombs.into_iter().zip([When::Always, When::Success, When::Failure]) {
                let (serial, fate) = (bomb.serial, bomb.fate);
                let id = match when {
                    When::Always => stack.register(move || bomb.run()),
                    When::Success => stack.on_success(move || bomb.run()),
                    When::Failure => stack.on_failure(move || bomb.run()),
                };
                model.pending.push(Pending { serial, id, shape: Shape::Small, fate, when, told: false });
            }
            match end {
                ScopeEnd::Ok => Ok(()),
                ScopeEnd::Err => Err(Ended::Body),
                ScopeEnd::Panic => resume_unwind(Box::new("the body")),
            }
        };
        observe(|| {
            if tried {
                return match exitstack::try_scope(body) {
                    Ok(()) => result(&Ok(())),
                    Err(ScopeError::Work(_)) => "the body's".into(),
                    Err(ScopeError::Cleanup(error)) => result(&Err(error)),
                    Err(ScopeError::Both(_, error)) => format!("the body's, {}", result(&Err(error))),
                };
            }
            match exitstack::scope(body) {
                Ok(()) => result(&Ok(())),
                Err(Ended::Body) => "the body's".into(),
                Err(Ended::Close(error)) => result(&Err(error)),
            }
        });
        let outcome = if end == ScopeEnd::Ok { Outcome::Success } else { Outcome::Failure };
        let reports = end == ScopeEnd::Panic || (end == ScopeEnd::Err && !tried);
        let returned = model.drain(outcome, reports, expected);
        expected.push(match end {
            ScopeEnd::Ok => Event::Returned(returned),
            ScopeEnd::Err if tried && fails => Event::Returned(format!("the body's, {returned}")),
            ScopeEnd::Err => Event::Returned("the body's".into()),
            ScopeEnd::Panic => Event::Panicked("the body".into()),
        });
    }

    fn check(&self) {
        for (stack, model) in self.stacks.iter().zip(&self.models) {
            assert_eq!(stack.len(), model.pending.len(), "how many wait");
            assert_eq!(stack.is_empty(), model.pending.is_empty());
            let waiting: Vec<_> = stack.pending().iter().map(|p| (p.id(), p.name().map(str::to_owned))).collect();
            let expected: Vec<_> =
                model.pending.iter().rev().map(|p| (p.id, p.shape.name().map(str::to_owned))).collect();
            assert_eq!(waiting, expected, "who waits");
        }
    }
}

/// Performs the operations that `bytes` encode, and compares each step with the model.
pub fn run(bytes: &[u8]) {
    let ops = decode(bytes);
    begin();
    let mut run =
        Run { stacks: [ExitStack::new(), ExitStack::new()], models: Default::default(), ids: Vec::new(), made: 0 };
    let mut all = Vec::new();
    for (at, op) in ops.iter().chain(&[Op::Drop, Op::Swap, Op::Drop]).enumerate() {
        let expected = run.step(*op);
        let happened = take_log();
        assert_eq!(happened, expected, "step {at}, {op:?}, of {ops:?}");
        run.check();
        all.extend(happened);
    }
    check_consumed(&all, run.made);
}
