//! `scope_async`: what it returns, however its body ends.

use std::error::Error;
use std::panic::Location;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex};

use exitstack::{AsyncScope, CloseError, Exit, Handler, HandlerErrorKind, scope_async};
use pollster::block_on;

use crate::Log;
use crate::panicking::{panic_of, quiet_panic};
use crate::support::{Yields, failures, finished, idle, reported, texts};

type Failure = Box<dyn Error + Send + Sync>;

/// Registers handlers for every outcome; one of them fails.
fn fill(stack: &AsyncScope<'_>, log: &Log) {
    stack.register(log.handler("any"));
    stack.on_failure(log.handler("failure"));
    stack.on_success(log.handler("success"));
    let failing = log.clone();
    let handler = async move || {
        Yields(1).await;
        failing.push("async failure");
        Err("rollback")
    };
    // A handle is not tied to a lifetime of the body, and neither is what it registers.
    stack.on_failure_async(Handler::new(handler).named("f"));
    let committing = log.clone();
    let handler = async move || {
        Yields(1).await;
        committing.push("async success");
        Err("commit")
    };
    stack.on_success_async(Handler::new(handler).named("s"));
}

/// The result contains the cleanup's failures.
#[test]
fn a_body_that_succeeds_commits() {
    let log = Log::default();
    let result = block_on(scope_async(|stack| {
        let log = log.clone();
        async move {
            fill(&stack, &log);
            Ok::<_, CloseError>(7)
        }
    }));
    assert_eq!(failures(&result.map(drop)), ["s failed: commit"]);
    assert_eq!(log.take(), ["async success", "success", "any"]);
    let result = block_on(scope_async(async |stack: AsyncScope<'_>| {
        stack.register_async(async || ());
        Ok::<_, CloseError>(7)
    }));
    assert_eq!(result.unwrap(), 7);
}

/// The cleanup's failures are reported.
#[test]
fn a_body_that_fails_rolls_back() {
    let log = Log::default();
    let mut result = Ok(());
    let reports = reported(|| {
        result = block_on(scope_async(|stack| {
            let log = log.clone();
            async move {
                fill(&stack, &log);
                stack.register_async(async || Err(Exit(3))); // ignored
                Yields(1).await;
                Err::<(), Failure>("work".into())
            }
        }));
    });
    assert_eq!(result.unwrap_err().to_string(), "work");
    assert_eq!(texts(&reports), ["f failed: rollback"]);
    assert_eq!(log.take(), ["async failure", "failure", "any"]);
}

/// The body may panic before its first poll or in any poll; the panic propagates.
#[test]
fn a_body_that_panics_rolls_back() {
    for (at, message) in [(0, "closure"), (1, "first poll"), (2, "later poll")] {
        let log = Log::default();
        let reports = reported(|| {
            let inner = log.clone();
            let scope = scope_async(move |stack| {
                fill(&stack, &inner);
                if at == 0 {
                    quiet_panic("closure");
                }
                async move {
                    if at == 1 {
                        quiet_panic("first poll");
                    }
                    Yields(1).await;
                    quiet_panic("later poll");
                    #[expect(unreachable_code, reason = "it says what the body returns")]
                    Ok::<(), CloseError>(())
                }
            });
            assert_eq!(panic_of(|| block_on(scope)), message);
        });
        assert_eq!(texts(&reports), ["f failed: rollback"]);
        assert_eq!(log.take(), ["async failure", "failure", "any"]);
    }
}

/// The scope is dropped after any number of polls: before it begins, in its body, and in its cleanup.
#[test]
fn a_scope_dropped_midway_accounts_for_handlers() {
    struct Ends(Log);
    impl Drop for Ends {
        fn drop(&mut self) {
            self.0.push("body");
        }
    }
    let scope = |log: Log| {
        scope_async(|stack| async move {
            let body = Ends(log.clone());
            stack.register(log.handler("sync"));
            stack.register_async(Handler::new(|| Yields(1)).named("a"));
            stack.on_success_async(Handler::new(|| Yields(1)).named("b"));
            Yields(1).await;
            drop(body);
            Ok::<_, CloseError>(())
        })
    };
    let not_run = "a was not run: the stack was dropped without `close().await`";
    let expected: [(&[&str], &[&str]); 4] = [
        (&[], &[]),
        (&["body", "sync"], &[not_run]),
        (&["body", "sync"], &["b was cancelled before it finished", not_run]),
        (&["body", "sync"], &["a was cancelled before it finished"]),
    ];
    for (polls, (logged, told)) in expected.into_iter().enumerate() {
        let log = Log::default();
        let reports = reported(|| {
            let mut scope = Box::pin(scope(log.clone()));
            for _ in 0..polls {
                assert!(scope.as_mut().poll(&mut idle()).is_pending());
            }
            drop(scope);
        });
        assert_eq!((&*log.take(), texts(&reports)), (logged, told.iter().map(ToString::to_string).collect()));
    }
    let (result, polls) = finished(scope(Log::default()));
    assert_eq!((result.is_ok(), polls), (true, 4));
}

/// Failures of a cleanup that is dropped midway have not been returned.
#[test]
fn failures_of_a_dropped_cleanup_are_reported() {
    let reports = reported(|| {
        let mut scope = pin!(Some(scope_async(|stack| async move {
            stack.register_async(Handler::new(|| Yields(1)).named("below"));
            stack.register(Handler::new(|| Err("early")).named("above"));
            Ok::<_, CloseError>(())
        })));
        assert!(scope.as_mut().as_pin_mut().unwrap().poll(&mut idle()).is_pending());
        scope.set(None);
    });
    assert_eq!(texts(&reports), ["above failed: early", "below was cancelled before it finished"]);
}

#[test]
fn a_handler_that_registers_more_runs_it_next() {
    let log = Log::default();
    block_on(scope_async(|stack| {
        let log = log.clone();
        async move {
            stack.register(log.handler("below"));
            let (handle, inner) = (stack.clone(), log.clone());
            stack.register_async(async move || {
                Yields(1).await;
                let (again, innermost) = (handle.clone(), inner.clone());
                handle.register_async(async move || {
                    again.register(innermost.handler("of the handler's handler"));
                    Yields(1).await;
                    innermost.push("of the handler");
                });
                inner.push("handler");
            });
            Ok::<_, CloseError>(())
        }
    }))
    .unwrap();
    assert_eq!(log.take(), ["handler", "of the handler", "of the handler's handler", "below"]);
}

/// Another task registers while a future is in flight and nothing is pending: the scope has not ended yet.
#[test]
fn a_kept_handle_registers_until_all_is_done() {
    let (log, kept) = (Log::default(), Arc::new(Mutex::new(None)));
    let mut scope = pin!(scope_async(|stack| {
        let kept = Arc::clone(&kept);
        async move {
            stack.register_async(|| Yields(1));
            *kept.lock().unwrap() = Some(stack);
            Ok::<_, CloseError>(())
        }
    }));
    assert!(scope.as_mut().poll(&mut idle()).is_pending());
    let handle = kept.lock().unwrap().take().unwrap();
    assert!(handle.pending().is_empty());
    handle.register(log.handler("late"));
    assert!(scope.as_mut().poll(&mut idle()).is_ready());
    assert_eq!(log.take(), ["late"]);
    assert!(handle.try_register(|| ()).is_err());
}

#[test]
fn refusals_are_reported_once_and_counted() {
    let log = Log::default();
    let handle = block_on(scope_async(async |stack| Ok::<_, CloseError>(stack))).unwrap();
    let clone = handle.clone();
    let refused = handle.try_register_async(async || log.push("run by hand")).unwrap_err();
    assert_eq!((refused.location().file(), refused.location().line()), (file!(), line!() - 1));
    block_on((refused.into_handler())());
    assert_eq!(log.take(), ["run by hand"]);
    let first = reported(|| {
        let id = handle.register_async(Handler::new(async || unreachable!("refused")).named("late"));
        assert!(handle.pending().iter().all(|pending| pending.id() != id));
    });
    assert_eq!(texts(&first), ["late was refused: the stack no longer accepts handlers"]);
    assert!(matches!(first[0].kind(), HandlerErrorKind::Refused));
    let more = reported(|| {
        clone.register(|| unreachable!("refused"));
        clone.on_success(|| unreachable!("refused"));
        clone.on_failure(|| unreachable!("refused"));
        clone.on_success_async(async || unreachable!("refused"));
        clone.on_failure_async(async || unreachable!("refused"));
        drop(clone);
    });
    assert!(more.is_empty());
    let last = reported(|| drop(handle));
    assert_eq!(last.len(), 1);
    assert!(last[0].to_string().starts_with("5 more exit handlers were refused after the one registered at "));
}

#[test]
fn a_refused_handlers_own_place_is_shown() {
    let handle = block_on(scope_async(async |stack| Ok::<_, CloseError>(stack))).unwrap();
    let place = Location::caller();
    let refused = handle.try_register(Handler::new(|| ()).at(place)).unwrap_err();
    assert_eq!(refused.location(), place);
    let refused = handle.try_register_async(Handler::new(async || ()).at(place)).unwrap_err();
    assert_eq!(refused.location(), place);
    let reports = reported(|| _ = handle.register_async(Handler::new(async || ()).at(place)));
    assert_eq!(reports[0].location(), place);
}

/// Threads register while the scope ends: each handler either runs or is refused, and none is lost in between.
#[test]
fn what_races_with_the_end_runs_or_is_refused() {
    for _ in 0..200 {
        let (ran, taken) = (Arc::new(AtomicUsize::new(0)), AtomicUsize::new(0));
        let kept = Mutex::new(Vec::new());
        let start = Barrier::new(3);
        let mut scope = pin!(scope_async(|stack| {
            stack.register_async(|| Yields(1));
            *kept.lock().unwrap() = vec![stack.clone(), stack];
            async { Ok::<_, CloseError>(()) }
        }));
        assert!(scope.as_mut().poll(&mut idle()).is_pending());
        std::thread::scope(|threads| {
            for handle in kept.lock().unwrap().drain(..) {
                let (ran, taken, start) = (&ran, &taken, &start);
                threads.spawn(move || {
                    start.wait();
                    for _ in 0..1000 {
                        let ran = Arc::clone(ran);
                        if handle.try_register(move || _ = ran.fetch_add(1, Ordering::Relaxed)).is_err() {
                            return;
                        }
                        taken.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            start.wait();
            assert!(scope.as_mut().poll(&mut idle()).is_ready());
        });
        assert_eq!(ran.load(Ordering::Relaxed), taken.into_inner());
    }
}

/// A handler holds a handle, which in turn holds the handler.
#[test]
fn handles_in_handlers_leak_nothing() {
    let token = Arc::new(());
    for polls in 0..4 {
        let reports = reported(|| {
            let mut scope = Box::pin(scope_async(|stack| {
                let token = Arc::clone(&token);
                async move {
                    let (first, second, third) = (stack.clone(), stack.clone(), Arc::clone(&token));
                    stack.register(move || drop((first, third)));
                    stack.register_async(async move || {
                        Yields(1).await;
                        drop((second, token));
                    });
                    Yields(1).await;
                    Ok::<_, CloseError>(())
                }
            }));
            let done = (0..polls).any(|_| scope.as_mut().poll(&mut idle()).is_ready());
            assert_eq!(done, polls == 3);
        });
        assert_eq!(reports.len(), usize::from(polls == 1 || polls == 2));
        assert_eq!(Arc::strong_count(&token), 1, "after {polls} polls");
    }
}

#[test]
fn debug_of_a_handle_shows_what_is_pending() {
    let scope = scope_async(async |stack| {
        stack.register(Handler::new(|| ()).named("first"));
        stack.register_async(Handler::new(async || ()).named("second"));
        Ok::<_, CloseError>(format!("{stack:?}"))
    });
    let shown = block_on(scope).unwrap();
    assert!(shown.starts_with("AsyncScope { pending: ["), "{shown}");
    let at = |name| shown.find(name).unwrap_or_else(|| panic!("no {name} in {shown}"));
    assert!(at("second") < at("first"), "the next to run is not shown first: {shown}");
}
