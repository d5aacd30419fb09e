//! A program whose exit status tells whether its cleanup failed: `status [WAY] [fails]`, WAY is return, error or exit.

use std::error::Error;
use std::process;
use std::sync::atomic::{AtomicBool, Ordering};

use exitstack::{Exit, Handler, process_stack, register, report};

static FAILED: AtomicBool = AtomicBool::new(false);

/// On every way out that runs handlers: if one of them fails, the status is 1.
fn let_failures_decide() {
    let print = report::take_hook();
    report::set_hook(Box::new(move |error| {
        FAILED.store(true, Ordering::Relaxed);
        print(error);
    }));
    // The first to be registered is the last to run.
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
    // On the usual way out the failure is `main`'s own error.
    Ok(process_stack().close()?)
}
