//! The report hook. There is one per process, so each test here has it exclusively.

use std::error::Error;
use std::fmt;
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use exitstack::report::{set_hook, take_hook};
use exitstack::{ExitStack, Handler, HandlerError, HandlerErrorKind, Interpreter};
use proptest::prelude::*;

use crate::model;
use crate::panicking::{panic_with_nothing, quiet_panic};
use crate::stderr::Capture;
use crate::support::{alone, collect_reports};

fn fail() {
    ExitStack::new().register(|| Err("no"));
}

#[test]
fn the_hook_gets_all_that_is_known_of_a_failure() {
    let _alone = alone();
    let reports = collect_reports();
    let stack = ExitStack::new();
    let line = line!() + 1;
    stack.register(Handler::new(|| Err("no")).named("flush"));
    drop(stack);
    let reports = reports.lock().unwrap();
    let [report] = &**reports else { panic!("{reports:?}") };
    assert_eq!((report.name(), report.path(), report.location().line()), (Some("flush"), None, line));
    assert!(matches!(report.kind(), HandlerErrorKind::Failed(error) if error.to_string() == "no"));
}

/// Not only at the end of the drain.
#[test]
fn a_report_is_made_when_the_failure_happens() {
    let _alone = alone();
    let count = Arc::new(AtomicUsize::new(0));
    let counts = Arc::clone(&count);
    set_hook(Box::new(move |_| {
        counts.fetch_add(1, Ordering::SeqCst);
    }));
    let stack = ExitStack::new();
    for reported in (0..3).rev() {
        let count = Arc::clone(&count);
        stack.register(move || {
            assert_eq!(count.load(Ordering::SeqCst), reported);
            Err("one more")
        });
    }
    drop(stack);
    assert_eq!(count.load(Ordering::SeqCst), 3);
}

/// Taking the hook returns it, and it can be set again.
#[test]
fn take_hook_puts_the_default_back() {
    let _alone = alone();
    let reports = collect_reports();
    let hook = take_hook();
    let written = Capture::new().during(fail);
    assert!(String::from_utf8(written).unwrap().ends_with(" failed: no\n"));
    assert!(reports.lock().unwrap().is_empty());
    set_hook(hook);
    fail();
    assert_eq!(reports.lock().unwrap().len(), 1);
    drop(take_hook());
}

#[test]
fn take_hook_returns_the_very_box_however_often() {
    let _alone = alone();
    let count = Arc::new(AtomicUsize::new(0));
    let sink = Arc::clone(&count);
    let hook: Box<dyn Fn(&HandlerError) + Send + Sync> = Box::new(move |_| _ = sink.fetch_add(1, Ordering::SeqCst));
    let address = ptr::from_ref(&*hook).addr();
    set_hook(hook);
    for _ in 0..3 {
        let hook = take_hook();
        assert_eq!(ptr::from_ref(&*hook).addr(), address);
        set_hook(hook);
    }
    fail();
    assert_eq!(count.load(Ordering::SeqCst), 1);
    drop(take_hook());
}

#[test]
fn without_a_hook_take_hook_returns_the_default() {
    let _alone = alone();
    let default = take_hook();
    let reports = collect_reports();
    fail();
    drop(take_hook());
    let written = Capture::new().during(|| default(&reports.lock().unwrap()[0]));
    assert_eq!(String::from_utf8(written).unwrap().lines().count(), 1);
}

#[test]
fn hooks_can_be_chained() {
    let _alone = alone();
    let reports = collect_reports();
    let seen = Arc::new(AtomicUsize::new(0));
    let (earlier, counts) = (take_hook(), Arc::clone(&seen));
    set_hook(Box::new(move |error| {
        counts.fetch_add(1, Ordering::SeqCst);
        earlier(error);
    }));
    fail();
    drop(take_hook());
    assert_eq!((seen.load(Ordering::SeqCst), reports.lock().unwrap().len()), (1, 1));
}

#[test]
fn a_hook_may_replace_and_take_the_hook() {
    let _alone = alone();
    let reports: Arc<Mutex<Vec<HandlerError>>> = Arc::default();
    let sink = Arc::clone(&reports);
    set_hook(Box::new(move |_| {
        let _itself = take_hook();
        let sink = Arc::clone(&sink);
        set_hook(Box::new(move |error| sink.lock().unwrap().push(error.clone())));
    }));
    fail();
    fail();
    drop(take_hook());
    assert_eq!(reports.lock().unwrap().len(), 1);
}

#[test]
fn a_hook_that_is_replaced_is_dropped_unlocked() {
    struct UsesHook;
    impl Drop for UsesHook {
        fn drop(&mut self) {
            drop(take_hook());
        }
    }
    let _alone = alone();
    let uses = UsesHook;
    set_hook(Box::new(move |_| {
        let _captured = &uses;
    }));
    set_hook(Box::new(|_| unreachable!("taken when the one before it was dropped")));
    let written = Capture::new().during(fail);
    assert!(!written.is_empty());
}

/// The hook is called for failures of that stack as well, but not forever; and what stops that is over with the report.
#[test]
fn a_hook_whose_own_stack_fails_comes_to_an_end() {
    let _alone = alone();
    let calls = Arc::new(AtomicUsize::new(0));
    let counts = Arc::clone(&calls);
    set_hook(Box::new(move |_| {
        counts.fetch_add(1, Ordering::SeqCst);
        fail();
    }));
    let written = Capture::new().during(|| (0..2).for_each(|_| fail()));
    drop(take_hook());
    assert_eq!(calls.load(Ordering::SeqCst), 2 * 8);
    assert_eq!(String::from_utf8(written).unwrap().lines().count(), 2);
}

/// The report contains the path, the name and the location, and control characters are escaped.
#[test]
fn the_default_report_is_one_line_of_text() {
    let _alone = alone();
    let line = line!() + 3;
    let written = Capture::new().during(|| {
        let plugin = Interpreter::new("plugin\n-a");
        plugin.stack().register(Handler::new(|| Err("disk\r\n\x1b[2Jfull")).named("flush\u{202e}"));
    });
    let expected = format!(
        "process > plugin\\n-a: exit handler `flush\\u{{202e}}` registered at {}:{line}:24 failed: disk\\r\\n\\u{{1b}}[2Jfull\n",
        file!()
    );
    assert_eq!(String::from_utf8(written).unwrap(), expected);
}

/// Formatting the error fails or panics halfway.
#[test]
fn an_error_that_cannot_be_shown_is_reported() {
    let _alone = alone();
    for (kind, word) in [(2, "half(the message could not be written)"), (3, "half(the message panicked)")] {
        let failure = model::report::decode(&[&[kind | 16][..], b"half|||and why"].concat());
        let written = Capture::new().during(|| model::report::report(&failure));
        let written = String::from_utf8(written).unwrap();
        assert!(written.ends_with(&format!("failed: {word}: and why\n")), "{written}");
    }
}

#[test]
fn the_default_report_shows_every_cause() {
    let _alone = alone();
    let written = Capture::new().during(|| {
        ExitStack::new().register(|| Err(anyhow::anyhow!("not\nfound").context("read").context("save")));
    });
    let written = String::from_utf8(written).unwrap();
    assert!(written.ends_with(" failed: save: read: not\\nfound\n"), "{written}");
    assert_eq!(written.lines().count(), 1);
}

/// The chain of causes panics, or never ends.
#[test]
fn the_default_report_survives_an_odd_chain() {
    #[derive(Debug)]
    struct Odd {
        panics: bool,
    }
    impl fmt::Display for Odd {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("odd")
        }
    }
    impl Error for Odd {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            if self.panics { panic_with_nothing() } else { Some(self) }
        }
    }
    let _alone = alone();
    for (panics, end) in [(true, " failed: odd (the rest panicked)\n"), (false, ": odd: ...\n")] {
        let written = Capture::new().during(|| {
            ExitStack::new().register(move || Err(Odd { panics }));
        });
        let written = String::from_utf8(written).unwrap();
        assert!(written.ends_with(end) && written.len() < 2000, "{written}");
    }
}

#[test]
fn the_default_report_follows_a_hooks_panic() {
    let _alone = alone();
    let seen = Arc::new(AtomicUsize::new(0));
    let counts = Arc::clone(&seen);
    set_hook(Box::new(move |_| {
        counts.fetch_add(1, Ordering::SeqCst);
        quiet_panic("the hook");
    }));
    let written = Capture::new().during(fail);
    drop(take_hook());
    assert_eq!((seen.load(Ordering::SeqCst), String::from_utf8(written).unwrap().lines().count()), (1, 1));
}

#[test]
fn a_hook_whose_drop_panics_has_reported() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic_with_nothing();
        }
    }
    let _alone = alone();
    let seen = Arc::new(AtomicUsize::new(0));
    let (counts, bomb) = (Arc::clone(&seen), Bomb);
    set_hook(Box::new(move |_| {
        let _captured = &bomb;
        counts.fetch_add(1, Ordering::SeqCst);
        drop(take_hook());
    }));
    let written = Capture::new().during(fail);
    assert_eq!((seen.load(Ordering::SeqCst), String::from_utf8(written).unwrap()), (1, String::new()));
}

#[test]
fn no_payload_panics_the_default_report() {
    let _alone = alone();
    let written = Capture::new().during(|| {
        ExitStack::new().register(|| quiet_panic("two\nlines"));
    });
    assert!(String::from_utf8(written).unwrap().ends_with("panicked: two\\nlines\n"));
}

proptest! {
    #[test]
    fn any_failure_is_reported_in_one_line(kind in any::<u8>(), texts in any::<[String; 3]>()) {
        let _alone = alone();
        let failure = model::report::decode(&[&[kind], texts.join("|").as_bytes()].concat());
        let written = Capture::new().during(|| model::report::report(&failure));
        model::report::check(&failure, &written);
    }
}
