//! Every position: of up to six handlers each one, and each two, do something out of the ordinary; whatever it is, every
//! handler runs that must, once, in order, and every failure is told.

use std::sync::{Arc, Mutex};

use exitstack::{ExitStack, SharedExitStack};

use crate::support::{Counter, panic_of, quiet_panic};

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

/// What a drain of handlers `0..n` must do: who runs, how many fail, and whether an exit status is asked for.
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
            // Who drops a handler whose drop panics, panics.
            Some(Act::UnregisterBelow) => told.failures += usize::from(pending.pop().is_some_and(panics)),
            Some(Act::Clear) => told.failures += usize::from(pending.drain(..).any(panics)),
            Some(Act::Close) | None => {}
        }
    }
    told
}

/// Calls `check` for every number of handlers with no act, with each at each position, and with each two at each two.
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

fn told(result: Result<(), exitstack::CloseError>, ran: Vec<usize>) -> Told {
    let error = result.err();
    Told {
        ran,
        failures: error.as_ref().map_or(0, |error| error.errors().len()),
        exit_code: error.and_then(|error| error.exit_code()),
    }
}

const LOCAL: [Act; 4] = [Act::Fail, Act::Panic, Act::DropPanics, Act::Exit];

#[test]
fn a_stack_of_one_thread() {
    at_every_position(&LOCAL, |n, act_of| {
        let (counter, ran) = (Counter::default(), std::cell::RefCell::new(Vec::new()));
        let mut stack = ExitStack::new();
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
        let result = stack.close();
        assert_eq!((stack.len(), counter.dropped(), counter.used()), (0, n, n));
        assert_eq!(told(result, ran.take()), expected(n, act_of));
    });
}

#[test]
fn a_stack_between_threads() {
    at_every_position(&ACTS, |n, act_of| {
        let (counter, ran) = (Counter::default(), Arc::new(Mutex::new(Vec::new())));
        let stack = Arc::new(SharedExitStack::new());
        for at in 0..n {
            let act = act_of(at);
            let mut bomb = if act == Some(Act::DropPanics) { counter.bomb_that_panics() } else { counter.bomb() };
            let (ran, inner) = (Arc::clone(&ran), Arc::clone(&stack));
            stack.register(move || {
                bomb.use_up();
                ran.lock().unwrap().push(at);
                match act {
                    Some(Act::Close) => inner.close()?,
                    Some(Act::Clear) => inner.clear(),
                    Some(Act::UnregisterBelow) => {
                        let below = inner.pending();
                        assert!(below.first().is_none_or(|below| inner.unregister(below.id())));
                    }
                    Some(Act::Register) => {
                        let ran = Arc::clone(&ran);
                        inner.register(move || ran.lock().unwrap().push(EXTRA + at));
                    }
                    _ => {}
                }
                end(act, at)
            });
        }
        let result = stack.close();
        assert_eq!((stack.len(), counter.dropped()), (0, n));
        let ran = std::mem::take(&mut *ran.lock().unwrap());
        assert_eq!(counter.used(), ran.iter().filter(|at| **at < EXTRA).count());
        assert_eq!(told(result, ran), expected(n, act_of));
    });
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
