//! A service with three subsystems, one nested in another, torn down in order although one of them fails.

use std::error::Error;

use exitstack::{Handler, Interpreter, register};

/// Like a library that knows nothing of subsystems: registers with the current one.
fn open(what: &'static str) {
    println!("open  {what}");
    register(Handler::new(move || println!("close {what}")).named(what));
}

fn main() {
    // While the process exits, failures that cannot be returned to anyone are reported here.
    exitstack::report::set_hook(Box::new(|error| println!("reported: {error:#}")));

    let store = Interpreter::new("store");
    store.enter(|| open("disk"));
    let cache = store.subinterpreter("cache"); // positioned after the disk, before the index
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
    open("log"); // belongs to the process, outside any subsystem

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
    std::mem::forget(web); // as if a running thread still held it
}
