//! The same stack on tokio, on the futures executor and on pollster, in tasks that are spawned, timed out and aborted.

use std::sync::Arc;
use std::time::Duration;

use exitstack::{AsyncExitStack, CloseError, Handler, HandlerErrorKind, Outcome, scope_async};
use tokio::sync::{Notify, oneshot};
use tokio::task::yield_now;
use tokio::time::{sleep, timeout};

use crate::Log;
use crate::support::{Yields, failures, polled};

const SECOND: Duration = Duration::from_secs(1);

/// A stack whose handlers use tokio's timer.
fn filled(log: &Log) -> AsyncExitStack<'static> {
    let stack = AsyncExitStack::new();
    for name in ["3", "2", "1"] {
        let log = log.clone();
        stack.register_async(
            Handler::new(async move || {
                sleep(SECOND).await;
                log.push(name);
                if name == "2" { Err("fails") } else { Ok(()) }
            })
            .named(name),
        );
    }
    stack
}

#[tokio::test(start_paused = true)]
async fn in_one_thread() {
    let log = Log::default();
    let result = filled(&log).close().await;
    assert_eq!((log.take(), failures(&result)), (vec!["1", "2", "3"], vec!["2 failed: fails".to_owned()]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_spawned_task_of_several_threads() {
    let log = Log::default();
    let tasks: Vec<_> = (0..8)
        .map(|_| {
            let log = log.clone();
            tokio::spawn(async move {
                let mut stack = AsyncExitStack::new();
                for name in ["3", "2", "1"] {
                    let log = log.clone();
                    stack.register_async(async move || {
                        yield_now().await;
                        log.push(name);
                    });
                }
                yield_now().await;
                stack.close().await
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    let mut ran = log.take();
    ran.sort_unstable();
    assert_eq!(ran, [["1"; 8], ["2"; 8], ["3"; 8]].concat());
}

/// The drain begins in one task and ends in another, on another thread.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_one_task_to_another() {
    let (open, gate) = oneshot::channel::<()>();
    let log = Log::default();
    let mut stack = AsyncExitStack::new();
    let inner = log.clone();
    stack.register_async(async move || {
        gate.await?;
        inner.push("done");
        Ok::<(), oneshot::error::RecvError>(())
    });
    let mut stack = tokio::spawn(async move {
        assert!(polled(&mut stack, Outcome::Success, 3).is_pending());
        stack
    })
    .await
    .unwrap();
    let closing = tokio::spawn(async move { stack.close().await });
    open.send(()).unwrap();
    closing.await.unwrap().unwrap();
    assert_eq!(log.take(), ["done"]);
}

/// Once that handler is cancelled, the rest runs.
#[tokio::test(start_paused = true)]
async fn a_timeout_names_the_handler_that_is_stuck() {
    let log = Log::default();
    let mut stack = filled(&log);
    stack.register_async(Handler::new(std::future::pending::<()>).named("stuck"));
    assert!(timeout(5 * SECOND, stack.close()).await.is_err());
    assert_eq!(stack.in_flight().unwrap().name(), Some("stuck"));
    assert!(stack.cancel_in_flight());
    let result = timeout(5 * SECOND, stack.close()).await.unwrap();
    assert_eq!(failures(&result), ["stuck was cancelled before it finished", "2 failed: fails"]);
    assert_eq!(log.take(), ["1", "2", "3"]);
}

/// Each timeout expires at a different point of the drain.
#[tokio::test(start_paused = true)]
async fn timeouts_in_a_row_lose_nothing() {
    for millis in 1..40 {
        let log = Log::default();
        let mut stack = filled(&log);
        let result = loop {
            if let Ok(result) = timeout(Duration::from_millis(100 * millis), stack.close()).await {
                break result;
            }
        };
        assert_eq!((log.take(), failures(&result)), (vec!["1", "2", "3"], vec!["2 failed: fails".to_owned()]));
    }
}

#[tokio::test(start_paused = true)]
async fn a_select_takes_a_branch_and_comes_back() {
    let log = Log::default();
    let mut stack = filled(&log);
    let mut ticks = 0;
    let result = loop {
        tokio::select! {
            result = stack.close() => break result,
            () = sleep(SECOND * 2 / 3) => ticks += 1,
        }
    };
    assert_eq!((log.take(), failures(&result)), (vec!["1", "2", "3"], vec!["2 failed: fails".to_owned()]));
    assert_eq!(ticks, 4);
}

#[tokio::test]
async fn a_task_that_is_aborted_runs_what_it_can() {
    let log = Log::default();
    let (inner, began) = (log.clone(), Arc::new(Notify::new()));
    let notify = Arc::clone(&began);
    let task = tokio::spawn(scope_async(|stack| async move {
        stack.register(inner.handler("sync"));
        stack.register_async(async || unreachable!("nobody awaits it"));
        notify.notify_one();
        std::future::pending().await
    }));
    began.notified().await;
    task.abort();
    let ended: Result<Result<(), CloseError>, _> = task.await;
    assert!(ended.unwrap_err().is_cancelled());
    assert_eq!(log.take(), ["sync"]);
}

/// Also if the scope borrows, and if its types are generic parameters.
#[test]
fn a_scope_can_be_spawned() {
    fn spawned<T: Send + 'static>(value: T) -> impl Future<Output = Result<T, CloseError>> + Send + 'static {
        scope_async(|stack| async move {
            let kept = stack.clone();
            stack.register_async(async move || drop(kept));
            yield_now().await;
            Ok(value)
        })
    }
    fn borrowing(log: &Log) -> impl Future<Output = Result<(), CloseError>> + Send {
        scope_async(move |stack| async move {
            stack.register_async(async || log.push("borrowed"));
            stack.register(|| log.push("sync"));
            Yields(1).await;
            Ok(())
        })
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    assert_eq!(runtime.block_on(runtime.spawn(spawned(7))).unwrap().unwrap(), 7);
    let log = Log::default();
    pollster::block_on(borrowing(&log)).unwrap();
    assert_eq!(log.take(), ["sync", "borrowed"]);
}

#[test]
fn on_other_executors() {
    let log = Log::default();
    for run in [
        |stack: &mut AsyncExitStack<'_>| futures_executor::block_on(stack.close()),
        |stack: &mut AsyncExitStack<'_>| pollster::block_on(stack.close()),
    ] {
        let mut stack = AsyncExitStack::new();
        stack.register_async(async || log.push("2"));
        stack.register_async(async || {
            Yields(5).await;
            log.push("1");
        });
        run(&mut stack).unwrap();
        drop(stack);
        assert_eq!(log.take(), ["1", "2"]);
    }
    let mut pool = futures_executor::LocalPool::new();
    pool.run_until(async {
        let mut stack = AsyncExitStack::new();
        stack.register_async(async || Err("kept"));
        let error = stack.close().await.unwrap_err();
        assert!(matches!(error.errors()[0].kind(), HandlerErrorKind::Failed(_)));
    });
}
