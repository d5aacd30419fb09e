//! Handlers that run after a panic although the program is built with `panic = "abort"`.

use std::panic;

use exitstack::process_stack;

/// With `panic = "unwind"` this does nothing: there a panic may be caught, and handlers run by themselves where it is not.
fn close_on_panic() {
    if cfg!(panic = "abort") {
        let print = panic::take_hook();
        panic::set_hook(Box::new(move |panicked| {
            print(panicked);
            if let Err(error) = process_stack().close() {
                eprintln!("{error:#}");
            }
        }));
    }
}

fn main() {
    close_on_panic();
    exitstack::register(|| println!("the handler ran"));
    panic!("the work panicked"); // with `panic = "abort"`: the hook, then SIGABRT
}
