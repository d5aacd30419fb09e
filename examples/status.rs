//! A program whose exit status says whether its cleanup failed: `status [return
//! error
//! exit] [fails]`.

use std::error::Error;
use std::process;
use std::sync::atomic::{AtomicBool, Ordering};

use exitstack::{Exit, Handler, process_stack, register, report};

static FAILED: AtomicBool = AtomicBool::new(false);

/// Sets the exit status to 1 if a handler fails, on every exit path that runs handlers.
fn let_failures_decide() {
    let print = report::take_hook();
    report::set_hook(Box::new(move |error| {
        FAILED.store(true, Ordering::Relaxed);
        print(error);
    }));
    // The first handler registered is the last to run.
    register(|| if FAILED.load(Ordering::Relaxed) { Err(Exit(1)) } else { Ok(()) });
}

fn main() -> Result<(), Box<dyn Error>> {
    let_failures_decide();
    let fails = std::env::args().any(|arg| arg == "fails");
    let save = move || if fails { Err("disk full") } else { Ok(()) };
    register(Handler::new(save).named("save"));

    match std::env::args().nth(1).as_deref() {
        Some("error") => return Err("the work failed".into()),
        Some("exit") => process::exit(0),
        _ => {}
    }
    // When `main` returns normally, a failure is `main`'s own error.
    Ok(process_stack().close()?)
}
