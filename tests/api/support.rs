//! Shared by the tests: counters, and the report hook, of which there is only one per process.

use std::panic::resume_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use exitstack::HandlerError;

use crate::model::{self, Event};

static HOOK: RwLock<()> = RwLock::new(());

/// Sends reports to the log of the reporting thread while the guard is held.
pub fn routed() -> RwLockReadGuard<'static, ()> {
    let guard = HOOK.read().unwrap_or_else(PoisonError::into_inner);
    model::install_hook();
    guard
}

/// Returns what `action` reports on this thread.
pub fn reported(action: impl FnOnce()) -> Vec<String> {
    let _routed = routed();
    model::take_log();
    action();
    let is_report = |event| if let Event::Reported(text) = event { Some(text) } else { None };
    model::take_log().into_iter().filter_map(is_report).collect()
}

/// Reserves the hook for this test, set to the default, until the guard is dropped.
pub fn alone() -> impl Drop {
    struct Alone {
        hook: Option<Hook>,
        _guard: RwLockWriteGuard<'static, ()>,
    }
    impl Drop for Alone {
        fn drop(&mut self) {
            if let Some(hook) = self.hook.take() {
                exitstack::report::set_hook(hook);
            }
        }
    }
    let guard = HOOK.write().unwrap_or_else(PoisonError::into_inner);
    model::install_hook();
    Alone { hook: Some(exitstack::report::take_hook()), _guard: guard }
}

type Hook = Box<dyn Fn(&HandlerError) + Send + Sync>;

/// Collects reports in a list, for a test that has reserved the hook.
pub fn collect_reports() -> Arc<Mutex<Vec<HandlerError>>> {
    let reports = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&reports);
    exitstack::report::set_hook(Box::new(move |error| sink.lock().unwrap().push(error.clone())));
    reports
}

/// Creates values and counts how often they are used and dropped.
#[derive(Clone, Default)]
pub struct Counter(Arc<Counts>);

#[derive(Default)]
struct Counts {
    used: AtomicUsize,
    dropped: AtomicUsize,
}

impl Counter {
    /// Returns a value that may be used once, and whose use and drop are counted.
    pub fn bomb(&self) -> Bomb {
        Bomb { counts: Arc::clone(&self.0), used: false, panics: false }
    }

    /// Returns a value whose drop also panics.
    pub fn bomb_that_panics(&self) -> Bomb {
        Bomb { counts: Arc::clone(&self.0), used: false, panics: true }
    }

    pub fn used(&self) -> usize {
        self.0.used.load(Ordering::SeqCst)
    }

    pub fn dropped(&self) -> usize {
        self.0.dropped.load(Ordering::SeqCst)
    }
}

pub struct Bomb {
    counts: Arc<Counts>,
    used: bool,
    panics: bool,
}

impl Bomb {
    pub fn use_up(&mut self) {
        assert!(!std::mem::replace(&mut self.used, true), "used twice");
        self.counts.used.fetch_add(1, Ordering::SeqCst);
    }
}

impl Drop for Bomb {
    fn drop(&mut self) {
        self.counts.dropped.fetch_add(1, Ordering::SeqCst);
        if self.panics {
            resume_unwind(Box::new("dropped"));
        }
    }
}
