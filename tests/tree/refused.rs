//! Handlers registered too late.

use std::sync::Arc;

use exitstack::{Handler, HandlerErrorKind, Interpreter};

use crate::{file_reports, reports_of};

#[test]
fn a_finalized_interpreter_hands_a_handler_back() {
    file_reports();
    let interpreter = Interpreter::new("hands back");
    interpreter.finalize().unwrap();
    let captured = Arc::new(());
    let inside = Arc::clone(&captured);
    let refused = interpreter.stack().try_register(move || drop(inside)).unwrap_err();
    assert_eq!(refused.location().line(), line!() - 1);
    assert_eq!(Arc::strong_count(&captured), 2);
    drop(refused.into_handler());
    assert_eq!(Arc::strong_count(&captured), 1);
    drop(interpreter);
    assert!(reports_of("hands back").is_empty(), "it was told");
}

#[test]
fn only_the_first_refusal_is_reported_in_full() {
    file_reports();
    let outer = Interpreter::new("refuses outer");
    let interpreter = outer.subinterpreter("refuses");
    interpreter.finalize().unwrap();
    let captured = Arc::new(());
    let inside = Arc::clone(&captured);
    let id = interpreter.stack().register(Handler::new(move || drop(inside)).named("too late"));
    let line = line!() - 1;
    assert_eq!(Arc::strong_count(&captured), 1, "dropped unrun");
    assert!(!interpreter.stack().unregister(id) && !outer.stack().unregister(id));
    for _ in 0..41 {
        interpreter.stack().register(|| unreachable!());
    }
    let first = reports_of("refuses outer");
    assert_eq!(first.len(), 1);
    assert!(matches!(first[0].kind(), HandlerErrorKind::Refused));
    assert_eq!((first[0].name(), first[0].location().line()), (Some("too late"), line));
    assert_eq!(first[0].path(), Some("process > refuses outer > refuses"));
}

/// All refusals but the first are counted, and the count is reported when the interpreter is dropped.
#[test]
fn further_refusals_are_reported_as_a_count() {
    file_reports();
    let outer = Interpreter::new("counts outer");
    let interpreter = outer.subinterpreter("counts");
    interpreter.finalize().unwrap();
    for _ in 0..42 {
        interpreter.stack().register(|| unreachable!());
    }
    assert_eq!(reports_of("counts outer").len(), 1);
    drop(interpreter);
    let all = reports_of("counts outer");
    assert_eq!(all.len(), 2);
    assert_eq!(all[1].path(), Some("process > counts outer > counts"));
    let shown = all[1].to_string();
    assert!(shown.contains("41 more exit handlers were refused"), "{shown}");
}

#[test]
fn one_refusal_alone_is_not_counted_again() {
    file_reports();
    let interpreter = Interpreter::new("refuses once");
    interpreter.finalize().unwrap();
    interpreter.stack().register(|| ());
    drop(interpreter);
    assert_eq!(reports_of("refuses once").len(), 1);
}
