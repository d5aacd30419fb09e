//! A service of three subsystems, one nested in another: torn down in order, one of them failing.

use std::error::Error;

use exitstack::{Handler, Interpreter, register};

/// What a library would do that knows nothing of subsystems: it registers with the current one.
fn open(what: &'static str) {
    println!("open  {what}");
    register(Handler::new(move || println!("close {what}")).named(what));
}

fn main() {
    // On its way out, the process tells here what nobody can be handed.
    exitstack::report::set_hook(Box::new(|error| println!("reported: {error:#}")));

    let store = Interpreter::new("store");
    store.enter(|| open("disk"));
    let cache = store.subinterpreter("cache"); // its place: after the disk, before the index
    cache.enter(|| {
        open("memory");
        register(Handler::new(|| Err("3 entries not written back")).named("write back"));
    });
    store.enter(|| open("index"));

    let web = Interpreter::new("web");
    web.enter(|| {
        open("socket");
        register(Handler::new(|| panic!("a session was still open")).named("end sessions"));
    });
    open("log"); // the process's own, outside of any subsystem

    println!("-- the store goes first, with its cache in it");
    if let Err(errors) = store.finalize() {
        for error in &errors {
            let path = error.path().unwrap_or_default();
            let cause = error.source().map(ToString::to_string).unwrap_or_default();
            println!("{path}: `{}` failed: {cause}", error.name().unwrap_or("a handler"));
        }
    }
    let refused = cache.stack().try_register(|| println!("never"));
    println!("the cache takes no more: {}", refused.is_err());

    println!("-- main ends; the web subsystem is still there");
    std::mem::forget(web); // as a thread would keep it that still runs
}
