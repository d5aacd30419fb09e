//! Every position: of up to six handlers, each one and each pair does something unusual. Whatever it is, every handler
//! that must run does so exactly once and in order, and every failure is recorded.

use std::sync::{Arc, Mutex};

use exitstack::{CloseError, ExitStack, Interpreter, SharedExitStack};

use crate::panicking::{panic_of, quiet_panic};
use crate::support::{Counter, reported};

const MOST: usize = 6;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    Fail,
    Panic,
    DropPanics,
    Exit,
    Close,
    Register,
    UnregisterBelow,
    Clear,
}

const ACTS: [Act; 8] =
    [Act::Fail, Act::Panic, Act::DropPanics, Act::Exit, Act::Close, Act::Register, Act::UnregisterBelow, Act::Clear];

/// What a drain of handlers `0..n` must do: which handlers run, how many fail, and which exit status is requested.
#[derive(Debug, Default, PartialEq, Eq)]
struct Told {
    ran: Vec<usize>,
    failures: usize,
    exit_code: Option<i32>,
}

const EXTRA: usize = 100;

fn expected(n: usize, act_of: impl Fn(usize) -> Option<Act>) -> Told {
    let mut told = Told::default();
    let mut pending: Vec<usize> = (0..n).collect();
    let panics = |at| act_of(at) == Some(Act::DropPanics);
    while let Some(at) = pending.pop() {
        told.ran.push(at);
        match act_of(at) {
            Some(Act::Fail | Act::Panic | Act::DropPanics) => told.failures += 1,
            Some(Act::Exit) => told.exit_code = Some(i32::try_from(at).unwrap()),
            Some(Act::Register) => pending.push(EXTRA + at),
            // A handler that drops another one whose drop panics, panics itself.
            Some(Act::UnregisterBelow) => told.failures += usize::from(pending.pop().is_some_and(panics)),
            Some(Act::Clear) => told.failures += usize::from(pending.drain(..).any(panics)),
            Some(Act::Close) | None => {}
        }
    }
    told
}

/// Calls `check` for every number of handlers: with no act, with each act at each position, and with each two acts at
/// each two positions.
fn at_every_position(acts: &[Act], check: impl Fn(usize, &dyn Fn(usize) -> Option<Act>)) {
    for n in 0..=MOST {
        check(n, &|_| None);
        for first in 0..n {
            for &act in acts {
                check(n, &|at| (at == first).then_some(act));
                for second in 0..first {
                    for &other in acts {
                        check(n, &|at| match at {
                            _ if at == first => Some(act),
                            _ if at == second => Some(other),
                            _ => None,
                        });
                    }
                }
            }
        }
    }
}

type Outcome = Result<(), Box<dyn std::error::Error + Send + Sync>>;

fn end(act: Option<Act>, at: usize) -> Outcome {
    match act {
        Some(Act::Fail) => Err("on purpose".into()),
        Some(Act::Panic) => quiet_panic("on purpose"),
        Some(Act::Exit) => Err(exitstack::Exit(i32::try_from(at)?).into()),
        _ => Ok(()),
    }
}

fn told(result: Result<(), CloseError>, ran: Vec<usize>) -> Told {
    let error = result.err();
    Told {
        ran,
        failures: error.as_ref().map_or(0, |error| error.errors().len()),
        exit_code: error.and_then(|error| error.exit_code()),
    }
}

/// What a handler can do on a stack that only its owner reaches: end in one of these ways.
const ENDS: [Act; 4] = [Act::Fail, Act::Panic, Act::DropPanics, Act::Exit];

/// Fills a single-threaded stack, drains it with `drain`, and passes the result and the expectation to `checks`.
fn local(drain: impl Fn(ExitStack<'_>) -> Result<(), CloseError>, checks: impl Fn(Told, Told)) {
    at_every_position(&ENDS, |n, act_of| {
        let (counter, ran) = (Counter::default(), std::cell::RefCell::new(Vec::new()));
        let stack = ExitStack::new();
        for at in 0..n {
            let act = act_of(at);
            let mut bomb = if act == Some(Act::DropPanics) { counter.bomb_that_panics() } else { counter.bomb() };
            let ran = &ran;
            stack.register(move || {
                bomb.use_up();
                ran.borrow_mut().push(at);
                end(act, at)
            });
        }
        let result = drain(stack);
        assert_eq!((counter.dropped(), counter.used()), (n, n));
        checks(told(result, ran.take()), expected(n, act_of));
    });
}

#[test]
fn a_stack_of_one_thread_that_is_closed() {
    local(|mut stack| stack.close(), |told, expected| assert_eq!(told, expected));
}

#[test]
fn a_stack_of_one_thread_that_is_dropped() {
    let reports = std::cell::Cell::new(0);
    local(
        |stack| {
            reports.set(reported(|| drop(stack)).len());
            Ok(())
        },
        |told, expected| assert_eq!((told.ran, reports.get()), (expected.ran, expected.failures)),
    );
}

/// A stack that its own handlers can reach.
trait Reached: Clone + Send + 'static {
    fn stack(&self) -> &SharedExitStack;
    fn drain(&self) -> Result<(), CloseError>;
}

impl Reached for Arc<SharedExitStack> {
    fn stack(&self) -> &SharedExitStack {
        self
    }

    fn drain(&self) -> Result<(), CloseError> {
        self.close()
    }
}

impl Reached for Interpreter {
    fn stack(&self) -> &SharedExitStack {
        Interpreter::stack(self)
    }

    fn drain(&self) -> Result<(), CloseError> {
        self.finalize()
    }
}

fn reached<S: Reached>(new: impl Fn() -> S) {
    at_every_position(&ACTS, |n, act_of| {
        let (counter, ran) = (Counter::default(), Arc::new(Mutex::new(Vec::new())));
        let own = new();
        for at in 0..n {
            let act = act_of(at);
            let mut bomb = if act == Some(Act::DropPanics) { counter.bomb_that_panics() } else { counter.bomb() };
            let (ran, own, stack) = (Arc::clone(&ran), own.clone(), own.stack());
            stack.register(move || {
                bomb.use_up();
                ran.lock().unwrap().push(at);
                match act {
                    Some(Act::Close) => own.drain()?,
                    Some(Act::Clear) => own.stack().clear(),
                    Some(Act::UnregisterBelow) => {
                        let below = own.stack().pending();
                        assert!(below.first().is_none_or(|below| own.stack().unregister(below.id())));
                    }
                    Some(Act::Register) => {
                        let ran = Arc::clone(&ran);
                        own.stack().register(move || ran.lock().unwrap().push(EXTRA + at));
                    }
                    _ => {}
                }
                end(act, at)
            });
        }
        let result = own.drain();
        assert_eq!((own.stack().len(), counter.dropped()), (0, n));
        let ran = std::mem::take(&mut *ran.lock().unwrap());
        assert_eq!(counter.used(), ran.iter().filter(|at| **at < EXTRA).count());
        assert_eq!(told(result, ran), expected(n, act_of));
    });
}

#[test]
fn a_stack_between_threads() {
    reached(Arc::<SharedExitStack>::default);
}

#[test]
fn an_interpreter() {
    let parent = Interpreter::new("parent");
    reached(|| parent.subinterpreter("child"));
}

#[test]
fn clear_at_every_position_of_a_panicking_drop() {
    at_every_position(&[Act::DropPanics], |n, act_of| {
        let counter = Counter::default();
        let mut stack = ExitStack::new();
        let shared = SharedExitStack::new();
        let mut panics = false;
        for at in 0..n {
            let bomb = || if act_of(at).is_some() { counter.bomb_that_panics() } else { counter.bomb() };
            panics |= act_of(at).is_some();
            let (local, between) = (bomb(), bomb());
            stack.register(move || drop(local));
            shared.register(move || drop(between));
        }
        if panics {
            assert_eq!((panic_of(|| stack.clear()), panic_of(|| shared.clear())), ("dropped".into(), "dropped".into()));
        } else {
            stack.clear();
            shared.clear();
        }
        assert_eq!((counter.used(), counter.dropped()), (0, 2 * n));
        assert!(stack.is_empty() && shared.is_empty());
    });
}

#[test]
fn unregister_at_every_position_and_every_two() {
    for n in 0..=MOST {
        for first in 0..n {
            for second in 0..n {
                let (counter, ran) = (Counter::default(), std::cell::RefCell::new(Vec::new()));
                let mut stack = ExitStack::new();
                let ids: Vec<_> = (0..n)
                    .map(|at| {
                        let (mut bomb, ran) = (counter.bomb(), &ran);
                        stack.register(move || {
                            bomb.use_up();
                            ran.borrow_mut().push(at);
                        })
                    })
                    .collect();
                assert!(stack.unregister(ids[first]));
                assert_eq!(stack.unregister(ids[second]), first != second);
                stack.close().unwrap();
                assert_eq!(counter.dropped(), n);
                assert!(ran.take().into_iter().eq((0..n).rev().filter(|at| *at != first && *at != second)));
            }
        }
    }
}
