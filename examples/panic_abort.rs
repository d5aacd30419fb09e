//! Handlers that run after a panic even though the program is built with `panic = "abort"`.

use std::panic;

use exitstack::process_stack;

/// Does nothing with `panic = "unwind"`: there, handlers run by themselves after a panic, unless something catches it.
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
