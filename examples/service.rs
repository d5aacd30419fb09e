//! A tokio service that finishes the work it has begun when SIGTERM arrives, within ten seconds in all.
//!
//! A `watch` channel tells the tasks to stop; tokio-util's `CancellationToken` would work as well. What must happen
//! last, on every exit path, is registered with the process stack.
//!
//! `service [MILLISECONDS [slow]]`: how much time the tasks have, and whether one of them takes longer.

use std::io;
use std::process::ExitCode;
use std::time::Duration;

use exitstack::shutdown::{Limits, set_limits};
use exitstack::{Handler, signals::Signals};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// Of the ten seconds, the tasks get six and the handlers three; one is left for everything in between.
const FOR_TASKS: Duration = Duration::from_secs(6);
const FOR_HANDLERS: Duration = Duration::from_secs(3);

/// Works piece by piece, and finishes the current piece before it stops.
async fn work(name: &str, piece: Duration, stop: watch::Receiver<bool>) {
    println!("{name} works");
    loop {
        sleep(piece).await;
        if *stop.borrow() {
            break;
        }
    }
    println!("{name} has finished");
}

async fn serve(mut stop: watch::Receiver<bool>, for_tasks: Duration, is_slow: bool) {
    let mut tasks = JoinSet::new();
    tasks.spawn(work("a task", Duration::from_millis(10), stop.clone()));
    if is_slow {
        tasks.spawn(work("a slow task", Duration::from_secs(3600), stop.clone()));
    }
    let _ = stop.wait_for(|stop| *stop).await; // accept connections here
    if timeout(for_tasks, async { while tasks.join_next().await.is_some() {} }).await.is_err() {
        println!("{} task is cancelled", tasks.len());
    }
}

fn main() -> ExitCode {
    exitstack::run(|| {
        let for_tasks = std::env::args().nth(1).and_then(|text| text.parse().ok()).map(Duration::from_millis);
        let for_tasks = for_tasks.unwrap_or(FOR_TASKS);
        let is_slow = std::env::args().nth(2).is_some();

        set_limits(Limits::new().within(FOR_HANDLERS))?;
        let (stop, stopped) = watch::channel(false);
        let request = move |signal| {
            println!("signal {signal}");
            stop.send_replace(true);
        };
        // If `main` hangs, the handlers run when the grace period is over.
        Signals::new().grace(for_tasks + Duration::from_secs(1)).on_request(request).install()?;
        exitstack::register(Handler::new(|| println!("the pool is closed")).named("close the pool"));

        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        runtime.block_on(serve(stopped, for_tasks, is_slow));
        println!("nothing is served any more");
        Ok::<(), io::Error>(())
    }) // the handlers run here; then the process dies by the signal
}
