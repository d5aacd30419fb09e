//! Whose waker a future gets, and that none is kept.

use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};

use exitstack::AsyncExitStack;

/// A waker that counts its calls.
#[derive(Default)]
struct Counts {
    woken: AtomicUsize,
}

impl Wake for Counts {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.woken.fetch_add(1, Ordering::Relaxed);
    }
}

impl Counts {
    fn woken(&self) -> usize {
        self.woken.load(Ordering::Relaxed)
    }
}

/// A gate that opens once, for the future that waits at it with the waker of its latest poll.
#[derive(Clone, Default)]
struct Gate(Arc<Mutex<(bool, Option<Waker>)>>);

impl Gate {
    fn open(&self) {
        let waker = {
            let mut gate = self.0.lock().unwrap();
            gate.0 = true;
            gate.1.take()
        };
        waker.into_iter().for_each(Waker::wake);
    }
}

impl Future for Gate {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let mut gate = self.0.lock().unwrap();
        if gate.0 {
            return Poll::Ready(());
        }
        gate.1 = Some(context.waker().clone());
        Poll::Pending
    }
}

#[test]
fn a_future_is_polled_with_the_latest_waker() {
    let (first, second) = (Arc::new(Counts::default()), Arc::new(Counts::default()));
    let gate = Gate::default();
    let mut stack = AsyncExitStack::new();
    stack.register_async(|| gate.clone());
    let (old, new) = (Waker::from(Arc::clone(&first)), Waker::from(Arc::clone(&second)));
    {
        let mut close = pin!(stack.close());
        assert!(close.as_mut().poll(&mut Context::from_waker(&old)).is_pending());
        assert!(close.as_mut().poll(&mut Context::from_waker(&new)).is_pending());
    }
    gate.open();
    assert_eq!((first.woken(), second.woken()), (0, 1), "the last one, also after the `close()` was dropped");
    assert!(pin!(stack.close()).poll(&mut Context::from_waker(&old)).is_ready());
}

#[test]
fn a_close_that_is_resumed_gives_its_own_waker() {
    let (first, second) = (Arc::new(Counts::default()), Arc::new(Counts::default()));
    let gate = Gate::default();
    let mut stack = AsyncExitStack::new();
    stack.register_async(|| gate.clone());
    for counts in [&first, &second] {
        let waker = Waker::from(Arc::clone(counts));
        assert!(pin!(stack.close()).poll(&mut Context::from_waker(&waker)).is_pending());
    }
    gate.open();
    assert_eq!((first.woken(), second.woken()), (0, 1));
    drop(stack);
}

#[test]
fn the_stack_keeps_no_waker() {
    let counts = Arc::new(Counts::default());
    let waker = Waker::from(Arc::clone(&counts));
    let mut stack = AsyncExitStack::new();
    stack.register_async(std::future::pending::<()>); // which keeps none either
    assert!(pin!(stack.close()).poll(&mut Context::from_waker(&waker)).is_pending());
    drop(waker);
    assert_eq!((Arc::strong_count(&counts), counts.woken()), (1, 0));
    stack.cancel_in_flight();
    assert!(pollster::block_on(stack.close()).is_err());
}
