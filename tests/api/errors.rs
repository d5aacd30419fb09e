//! `CloseError`, `HandlerError` and `Exit`.

use std::error::Error;
use std::fmt;
use std::iter;

use exitstack::{CloseError, Exit, ExitStack, Handler, HandlerErrorKind, SharedExitStack};

use crate::panicking::quiet_panic;
use crate::support::reported;

#[test]
fn the_last_exit_status_wins_and_is_no_failure() {
    let mut stack = ExitStack::new();
    stack.register(|| Err(Exit(3)));
    stack.register(|| ());
    stack.register(|| Err(Box::new(Exit(2))));
    stack.register(|| Err::<(), Box<dyn Error + Send + Sync>>(Exit(1).into()));
    let error = stack.close().unwrap_err();
    assert_eq!(error.exit_code(), Some(3));
    assert!(error.errors().is_empty() && error.source().is_none());
    assert_eq!(error.to_string(), "an exit handler requested exit status 3");
}

#[test]
fn a_box_in_a_box_that_holds_an_exit_is_one_too() {
    let mut stack = ExitStack::new();
    stack.register(|| Err::<(), Box<dyn Error + Send + Sync>>(Box::new(Box::new(Exit(5)))));
    let error = stack.close().unwrap_err();
    assert_eq!((error.exit_code(), error.errors().len()), (Some(5), 0));
}

#[test]
fn failures_and_an_exit_status_are_both_kept() {
    let mut stack = ExitStack::new();
    stack.register(|| Err("later"));
    stack.register(|| Err(Exit(3)));
    stack.register(|| quiet_panic("earlier"));
    let error = stack.close().unwrap_err();
    assert_eq!((error.exit_code(), error.errors().len()), (Some(3), 2));
    assert!(error.to_string().ends_with(" failed: later"));
}

#[test]
fn a_nested_stacks_exit_status_counts_outside() {
    let nested = |fails: bool, code: i32| {
        move || {
            let mut inner = ExitStack::new();
            if fails {
                inner.register(|| Err("inner"));
            }
            inner.register(move || Err(Exit(code)));
            inner.close()
        }
    };
    let mut stack = ExitStack::new();
    stack.register(nested(false, 4));
    let error = stack.close().unwrap_err();
    assert_eq!((error.exit_code(), error.errors().len()), (Some(4), 0));
    assert!(error.source().is_none());

    stack.register(nested(true, 5));
    stack.register(nested(false, 6));
    let error = stack.close().unwrap_err();
    assert_eq!((error.exit_code(), error.errors().len()), (Some(5), 1));
    let inner = error.source().unwrap().downcast_ref::<CloseError>().unwrap();
    assert_eq!(inner.exit_code(), Some(5));

    let twice = move || -> Result<(), CloseError> {
        let mut middle = ExitStack::new();
        middle.register(nested(false, 7));
        middle.close()
    };
    stack.register(move || twice().map_err(Box::new));
    assert_eq!(stack.close().unwrap_err().exit_code(), Some(7));
}

/// An exit request is not a failure, so it is not reported either.
#[test]
fn a_dropped_stacks_exit_request_is_forgotten() {
    let reports = reported(|| {
        let stack = ExitStack::new();
        stack.register(|| Err(Exit(1)));
        drop(stack);
        let stack = SharedExitStack::new();
        stack.register(|| Err(Exit(1)));
    });
    assert!(reports.is_empty(), "{reports:?}");
}

#[test]
fn one_failure_is_told_as_that_failure() {
    let mut stack = ExitStack::new();
    stack.register(Handler::new(|| Err(std::io::Error::other("disk full"))).named("flush"));
    stack.register(|| Err(Exit(3)));
    let error = stack.close().unwrap_err();
    let shown = error.to_string();
    assert!(shown.starts_with("exit handler `flush` registered at ") && shown.ends_with(":11 failed"), "{shown}");
    assert_eq!(shown, error.errors()[0].to_string());
    assert_eq!(error.source().unwrap().downcast_ref::<std::io::Error>().unwrap().to_string(), "disk full");
    assert_eq!(error.errors()[0].source().unwrap().to_string(), "disk full");
    stack.register(|| quiet_panic("boom"));
    let error = stack.close().unwrap_err();
    assert!(error.to_string().ends_with(":11 panicked: boom"), "{error}");
    assert!(error.source().is_none());
}

/// An error with several failures has no source.
#[test]
fn several_failures_are_told_on_one_line() {
    let mut stack = ExitStack::new();
    stack.register(|| quiet_panic("two\nlines"));
    stack.register(Handler::new(|| chain(&["no", "because\r", "\u{202e}"])).named("\n"));
    let line = line!() - 2;
    let error = stack.close().unwrap_err();
    let expected = format!(
        "2 exit handlers failed: exit handler `\\n` registered at {0}:{1}:11 failed: no: because\\r: \\u{{202e}}; \
         exit handler registered at {0}:{line}:11 panicked: two\\nlines",
        file!(),
        line + 1,
    );
    assert_eq!(error.to_string(), expected);
    assert_eq!(format!("{error:#}"), expected);
    assert!(error.source().is_none());
}

#[test]
fn the_last_failure_is_the_last_that_happened() {
    let mut stack = ExitStack::new();
    stack.register(|| Err(Exit(3)));
    assert!(stack.close().unwrap_err().last().is_none());
    stack.register(Handler::new(|| Err("no")).named("second"));
    stack.register(Handler::new(|| quiet_panic("no")).named("first"));
    assert_eq!(stack.close().unwrap_err().last().unwrap().name(), Some("second"));
}

/// Fails with an error whose text is the first of these, whose source's text is the second, and so on.
fn chain(texts: &[&'static str]) -> Result<(), Link> {
    let link = |source: Option<Box<Link>>, text: &&'static str| Some(Box::new(Link { text, source }));
    texts.iter().rev().fold(None, link).map_or(Ok(()), |link| Err(*link))
}

#[derive(Debug, thiserror::Error)]
#[error("{text}")]
struct Link {
    text: &'static str,
    source: Option<Box<Link>>,
}

/// The error of a handler whose own cleanup failed; that failure is its source.
#[derive(Debug, thiserror::Error)]
#[error("undo")]
struct Undo(#[from] CloseError);

/// Checks that, in each way to print the error, each of these texts appears exactly once, and in this order.
fn assert_told_once(error: &CloseError, texts: &[&str]) {
    let whole = anyhow::Error::from(error.clone());
    let debug = format!("{whole:?}");
    let without_backtrace = debug.split("\n\nStack backtrace:").next().unwrap().to_owned();
    for shown in [format!("{error:#}"), format!("{whole:#}"), without_backtrace] {
        let places: Vec<Vec<usize>> =
            texts.iter().map(|text| shown.match_indices(text).map(|(at, _)| at).collect()).collect();
        assert!(places.iter().all(|places| places.len() == 1) && places.is_sorted(), "{texts:?} in {shown:?}");
    }
}

/// Stacks may be nested to any depth.
#[test]
fn each_text_of_a_failure_is_printed_once() {
    fn fails_once() -> Result<(), CloseError> {
        let mut inner = ExitStack::new();
        inner.register(Handler::new(|| chain(&["save", "not found"])).named("one"));
        inner.close()
    }
    fn fails_twice() -> Result<(), CloseError> {
        let mut inner = ExitStack::new();
        inner.register(Handler::new(fails_once).named("second"));
        inner.register(Handler::new(|| Err(Exit(3))).named("exits"));
        inner.register(Handler::new(|| quiet_panic("boom")).named("first"));
        inner.close()
    }
    let once = ["`one`", "save", "not found"];
    let twice = ["`first`", "boom", "`second`", "`one`", "save", "not found"];
    assert_told_once(&fails_once().unwrap_err(), &once);
    assert_told_once(&fails_twice().unwrap_err(), &twice);

    let told = |handler: fn() -> anyhow::Result<()>, texts: &[&str], others: &[&str]| {
        let mut stack = ExitStack::new();
        if !others.is_empty() {
            stack.register(Handler::new(|| chain(&["full", "disk"])).named("other"));
        }
        stack.register(Handler::new(handler).named("outer"));
        let texts = [&["`outer`"], texts, others].concat();
        assert_told_once(&stack.close().unwrap_err(), &texts);
    };
    for others in [&[][..], &["`other`", "full", "disk"]] {
        told(|| Ok(fails_once()?), &once, others);
        told(|| Ok(fails_twice()?), &twice, others);
        told(|| fails_once().map_err(|error| Undo(error).into()), &[&["undo"][..], &once].concat(), others);
        told(|| fails_twice().map_err(|error| Undo(error).into()), &[&["undo"][..], &twice].concat(), others);
        let boxed: fn() -> anyhow::Result<()> = || Ok(fails_once().map_err(Box::new)?);
        told(boxed, &once, others);
        let context: fn() -> anyhow::Result<()> = || anyhow::Context::context(fails_twice(), "clean up");
        told(context, &[&["clean up"][..], &twice].concat(), others);
    }
}

/// The chain of causes is endless, but the text is not.
#[test]
fn an_error_that_is_its_own_source_can_be_shown() {
    #[derive(Debug)]
    struct Endless;
    impl fmt::Display for Endless {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("again")
        }
    }
    impl Error for Endless {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            Some(self)
        }
    }
    let mut stack = ExitStack::new();
    stack.register(|| Err(Endless));
    let shown = format!("{:#}", stack.close().unwrap_err());
    assert!(shown.ends_with(": again: again: ..."), "{shown}");
    stack.register(|| Err("disk full"));
    stack.register(|| Err(Endless));
    let shown = stack.close().unwrap_err().to_string();
    assert!(shown.contains(": again: ...; exit handler ") && shown.ends_with(" failed: disk full"), "{shown}");
}

#[test]
fn a_chain_of_a_hundred_causes_is_shown_whole() {
    let texts: Vec<&'static str> = iter::repeat_n("cause", 99).chain(["the first of all"]).collect();
    let mut stack = ExitStack::new();
    stack.register(move || chain(&texts));
    let shown = format!("{:#}", stack.close().unwrap_err());
    assert_eq!(shown.matches(": cause").count(), 99);
    assert!(shown.ends_with(": the first of all"), "{shown}");
}

/// Checks the `Debug` output, which `main` prints: it has what the methods return, and nothing else.
#[test]
fn an_error_shows_its_facts() {
    let mut stack = ExitStack::new();
    stack.register(Handler::new(|| Err("disk full")).named("flush"));
    stack.register(|| Err(Exit(3)));
    let shown = format!("{:?}", stack.close().unwrap_err());
    let location = r#"CloseError { errors: [HandlerError { path: None, name: Some("flush"), location: "#;
    assert!(shown.starts_with(location), "{shown}");
    let place = concat!(file!(), ":");
    assert!(shown[location.len()..].starts_with(place), "{shown}");
    assert!(shown.ends_with(r#", kind: Failed("disk full"), .. }], exit_code: Some(3) }"#), "{shown}");
}

#[test]
fn each_failure_has_the_place_of_its_own_handler() {
    let mut stack = ExitStack::new();
    let first = line!() + 1;
    stack.register(|| quiet_panic("1"));
    stack.register(|| Err("2"));
    stack.register(|| ());
    stack.register(|| quiet_panic("4"));
    stack.register(|| ());
    let error = stack.close().unwrap_err();
    let lines: Vec<u32> = error.iter().map(|error| error.location().line()).collect();
    assert_eq!(lines, [first + 3, first + 1, first]);
}

#[test]
fn a_clone_of_an_error_is_the_same_error() {
    let mut stack = ExitStack::new();
    stack.register(|| Err("no"));
    stack.register(|| Err(Exit(1)));
    let error = stack.close().unwrap_err();
    let clone = error.clone();
    drop(error);
    assert_eq!((clone.errors().len(), clone.exit_code()), (1, Some(1)));
    assert_eq!((&clone).into_iter().count(), clone.iter().count());
    assert!(matches!(clone.errors()[0].clone().kind(), HandlerErrorKind::Failed(_)));
    assert_eq!(clone.errors()[0].path(), None);
}

#[test]
fn an_exit_is_told_in_words() {
    assert_eq!(Exit(3).to_string(), "exit with status 3");
}
