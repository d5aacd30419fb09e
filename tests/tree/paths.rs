//! How the failures of an interpreter are displayed.

use exitstack::{Exit, Handler, Interpreter};

use crate::{file_reports, reports_of};

#[test]
fn a_failure_carries_its_path_from_the_process() {
    let plugin = Interpreter::new("plugin-a");
    let db = plugin.subinterpreter("db");
    db.stack().register(Handler::new(|| Err("disk full")).named("flush"));
    let line = line!() - 1;
    let error = plugin.finalize().unwrap_err();
    let expected = format!(
        "process > plugin-a > db: exit handler `flush` registered at {}:{line}:16 failed",
        file!().replace('\\', "/")
    );
    assert_eq!(error.to_string(), expected);
    assert_eq!(format!("{error:#}"), format!("{expected}: disk full"));
    assert_eq!(error.errors()[0].path(), Some("process > plugin-a > db"));
}

#[test]
fn a_failure_in_run_now_carries_the_path_too() {
    let plugin = Interpreter::new("plugin-a");
    let id = plugin.stack().register(|| Err("disk full"));
    let error = plugin.stack().run_now(id).unwrap().unwrap_err();
    assert_eq!(error.errors()[0].path(), Some("process > plugin-a"));
}

#[test]
fn a_name_is_kept_as_given_and_shown_on_one_line() {
    let names = [
        "two\nlines",
        "\r\u{1b}[2Jcleared",
        "tab\tand \0 nul",
        "\u{202e}reversed\u{2028}",
        "",
        " ",
        "a > b",
        "größe 名",
    ];
    for name in names {
        let outer = Interpreter::new(name);
        assert_eq!(outer.name(), name);
        let inner = outer.subinterpreter(String::from(name));
        assert_eq!(inner.name(), name);
        inner.stack().register(Handler::new(|| Err("x")).named(name));
        let error = outer.finalize().unwrap_err();
        assert_eq!(error.errors()[0].path(), Some(&*format!("process > {name} > {name}")));
        let shown = format!("{error} {error:#}");
        let unruly = |c: char| c.is_control() || matches!(c, '\u{202e}' | '\u{2028}');
        assert!(!shown.contains(unruly), "{shown:?}");
    }
}

/// The drop reports failures of the interpreter and of everything nested in it.
#[test]
fn the_last_handles_drop_reports_what_failed() {
    file_reports();
    let outer = Interpreter::new("dropped outer");
    let inner = outer.subinterpreter("dropped inner");
    outer.stack().register(|| Err("above"));
    inner.stack().register(|| Err("inner"));
    drop(outer);
    let reports: Vec<String> =
        reports_of("dropped outer").iter().map(|error| error.path().unwrap().to_owned()).collect();
    assert_eq!(reports, ["process > dropped outer", "process > dropped outer > dropped inner"]);
    assert!(inner.finalize().is_ok(), "it was reported, and is not told again");
}

#[test]
fn what_finalize_returns_is_not_reported_too() {
    file_reports();
    let outer = Interpreter::new("told outer");
    let inner = outer.subinterpreter("told inner");
    inner.stack().register(|| Err("inner"));
    assert_eq!(outer.finalize().unwrap_err().errors().len(), 1);
    drop((outer, inner));
    assert!(reports_of("told outer").is_empty());
}

/// A nested interpreter requested it.
#[test]
fn an_exit_status_comes_up_and_the_last_one_wins() {
    let outer = Interpreter::new("outer");
    outer.stack().register(|| Err(Exit(5)));
    let inner = outer.subinterpreter("inner");
    inner.stack().register(|| Err(Exit(3)));
    let error = outer.finalize().unwrap_err();
    assert_eq!((error.exit_code(), error.errors().len()), (Some(5), 0));

    let outer = Interpreter::new("outer");
    let inner = outer.subinterpreter("inner");
    inner.stack().register(|| Err(Exit(3)));
    outer.stack().register(|| Err(Exit(5)));
    outer.stack().register(|| Err("failed"));
    let error = outer.finalize().unwrap_err();
    assert_eq!((error.exit_code(), error.errors().len()), (Some(3), 1));
}
