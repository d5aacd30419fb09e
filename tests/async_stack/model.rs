//! Arbitrary sequences of operations, compared with a model made of plain vectors.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use exitstack::{AsyncExitStack, Handler, HandlerId, Outcome, PendingHandler};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use crate::log;
use crate::panicking::quiet_panic;
use crate::support::{Yields, failures, polled, reported, texts};

#[derive(Clone, Copy, Debug)]
enum End {
    Ok,
    Err,
    Panic,
    /// Panics before there is a future.
    PanicEarly,
}

#[derive(Clone, Copy, Debug)]
struct Kind {
    /// How often its future is pending; none if the handler is not async.
    yields: Option<usize>,
    only: Option<Outcome>,
    end: End,
}

#[derive(Clone, Debug)]
enum Op {
    Register(Kind),
    Unregister(Index),
    UnregisterKey(usize),
    Clear,
    PopAll,
    Close(Outcome, usize),
    Cancel,
    Drop,
}

fn outcome() -> impl Strategy<Value = Outcome> {
    prop_oneof![Just(Outcome::Success), Just(Outcome::Failure)]
}

fn op() -> impl Strategy<Value = Op> {
    let end = prop_oneof![4 => Just(End::Ok), 1 => Just(End::Err), 1 => Just(End::Panic), 1 => Just(End::PanicEarly)];
    let kind = (proptest::option::weighted(0.7, 0..3_usize), proptest::option::weighted(0.4, outcome()), end);
    prop_oneof![
        12 => kind.prop_map(|(yields, only, end)| Op::Register(Kind { yields, only, end })),
        2 => any::<Index>().prop_map(Op::Unregister),
        1 => (0..3_usize).prop_map(Op::UnregisterKey),
        1 => Just(Op::Clear),
        1 => Just(Op::PopAll),
        6 => (outcome(), 0..6_usize).prop_map(|(outcome, polls)| Op::Close(outcome, polls)),
        2 => Just(Op::Cancel),
        1 => Just(Op::Drop),
    ]
}

#[derive(Default)]
struct Model {
    pending: Vec<(usize, Kind)>,
    flight: Option<(usize, Kind)>,
    outcome: Option<Outcome>,
    failures: Vec<String>,
    log: Vec<String>,
}

impl Model {
    fn end(&mut self, n: usize, kind: Kind) {
        match kind.end {
            End::Ok => {}
            End::Err => self.failures.push(format!("{n} failed: error")),
            End::Panic | End::PanicEarly => self.failures.push(format!("{n} panicked: panic")),
        }
    }

    /// Models one poll; returns whether it was ready.
    fn poll(&mut self, outcome: Outcome) -> bool {
        let outcome = *self.outcome.get_or_insert(outcome);
        loop {
            if let Some((n, kind)) = self.flight.take() {
                if let Some(left @ 1..) = kind.yields {
                    self.flight = Some((n, Kind { yields: Some(left - 1), ..kind }));
                    return false;
                }
                self.log.push(format!("{n} ends"));
                self.end(n, kind);
            }
            let Some((n, kind)) = self.pending.pop() else {
                self.outcome = None;
                return true;
            };
            if kind.only.is_some_and(|only| only != outcome) {
                continue;
            }
            self.log.push(format!("{n} begins"));
            match (kind.yields, kind.end) {
                (Some(_), End::PanicEarly) | (None, _) => self.end(n, kind),
                (Some(_), _) => self.flight = Some((n, kind)),
            }
        }
    }

    fn cancel(&mut self) -> bool {
        let Some((n, _)) = self.flight.take() else { return false };
        self.failures.push(format!("{n} was cancelled before it finished"));
        true
    }

    /// Models the drop; returns what is reported.
    fn dropped(&mut self) -> Vec<String> {
        self.cancel();
        self.outcome = None;
        while let Some((n, kind)) = self.pending.pop() {
            if kind.only == Some(Outcome::Success) {
                continue;
            }
            if kind.yields.is_some() {
                self.failures.push(format!("{n} was not run: the stack was dropped without `close().await`"));
            } else {
                self.log.push(format!("{n} begins"));
                self.end(n, kind);
            }
        }
        std::mem::take(&mut self.failures)
    }
}

struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

fn register(stack: &AsyncExitStack<'_>, log: &log::Log<String>, n: usize, kind: Kind, dropped: Counted) -> HandlerId {
    let log = log.clone();
    let begin = move || {
        log.push(format!("{n} begins"));
        if matches!(kind.end, End::PanicEarly) {
            quiet_panic("panic");
        }
        log
    };
    let end = move || match kind.end {
        End::Ok => Ok(()),
        End::Err => Err("error"),
        End::Panic | End::PanicEarly => quiet_panic("panic"),
    };
    if let Some(yields) = kind.yields {
        let function = move || {
            let log = begin();
            async move {
                let _dropped = dropped;
                Yields(yields).await;
                log.push(format!("{n} ends"));
                end()
            }
        };
        let handler = Handler::new(function).named(n.to_string()).keyed(n % 3);
        match kind.only {
            None => stack.register_async(handler),
            Some(Outcome::Success) => stack.on_success_async(handler),
            Some(Outcome::Failure) => stack.on_failure_async(handler),
        }
    } else {
        let function = move || {
            let _dropped = dropped;
            begin();
            end()
        };
        let handler = Handler::new(function).named(n.to_string()).keyed(n % 3);
        match kind.only {
            None => stack.register(handler),
            Some(Outcome::Success) => stack.on_success(handler),
            Some(Outcome::Failure) => stack.on_failure(handler),
        }
    }
}

/// Performs the operations and then drops the stack.
fn check(ops: Vec<Op>) {
    let (mut model, log) = (Model::default(), log::Log::default());
    let mut stack = AsyncExitStack::new();
    let (mut ids, mut drops) = (Vec::new(), Vec::new());
    for op in ops.into_iter().chain([Op::Drop]) {
        match op {
            Op::Register(kind) => {
                let (n, dropped) = (ids.len(), Arc::default());
                ids.push(register(&stack, &log, n, kind, Counted(Arc::clone(&dropped))));
                drops.push(dropped);
                model.pending.push((n, kind));
            }
            Op::Unregister(at) => {
                if !ids.is_empty() {
                    let n = at.index(ids.len());
                    let before = model.pending.len();
                    model.pending.retain(|&(other, _)| other != n);
                    assert_eq!(stack.unregister(ids[n]), model.pending.len() < before);
                }
            }
            Op::UnregisterKey(key) => {
                let before = model.pending.len();
                model.pending.retain(|(n, _)| n % 3 != key);
                assert_eq!(stack.unregister_key(&key), before - model.pending.len());
            }
            Op::Clear => {
                stack.clear();
                model.pending.clear();
            }
            Op::PopAll => {
                let moved = stack.pop_all();
                assert!(stack.is_empty() && stack.in_flight().is_none());
                stack = moved;
            }
            Op::Close(outcome, polls) => {
                let result = polled(&mut stack, outcome, polls);
                let ready = (0..polls).any(|_| model.poll(outcome));
                assert_eq!(result.is_ready(), ready);
                if let std::task::Poll::Ready(result) = result {
                    assert_eq!(failures(&result), std::mem::take(&mut model.failures));
                }
            }
            Op::Cancel => assert_eq!(stack.cancel_in_flight(), model.cancel()),
            Op::Drop => {
                let reports = reported(|| drop(std::mem::take(&mut stack)));
                assert_eq!(texts(&reports), model.dropped());
            }
        }
        assert_eq!(log.take(), std::mem::take(&mut model.log));
        let pending: Vec<_> = stack.pending().iter().map(PendingHandler::id).collect();
        let expected: Vec<_> = model.pending.iter().rev().map(|&(n, _)| ids[n]).collect();
        assert_eq!((pending, stack.len()), (expected, model.pending.len()));
        assert_eq!(stack.in_flight().map(|handler| handler.id()), model.flight.map(|(n, _)| ids[n]));
        for (n, dropped) in drops.iter().enumerate() {
            let lives = model.pending.iter().chain(&model.flight).any(|&(other, _)| other == n);
            assert_eq!(dropped.load(Ordering::Relaxed), usize::from(!lives), "handler {n}");
        }
    }
}

proptest! {
    #[test]
    fn the_stack_does_what_the_model_does(ops in vec(op(), 0..40)) {
        check(ops);
    }
}
