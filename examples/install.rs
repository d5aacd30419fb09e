//! Installs a directory tree in `app`, completely or not at all: `install [fail
//! panic
//! exit
//! thread
//! wait]`.

#[cfg(unix)]
#[allow(unsafe_code, reason = "files are locked by a call to C")]
#[path = "sweep/journal.rs"]
mod journal;

#[cfg(unix)]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    use std::path::Path;
    use std::{env, fs};

    use exitstack::Interpreter;

    let jobs = Path::new("jobs");
    fs::create_dir_all(jobs)?;
    println!("swept: {}", journal::sweep(jobs)?); // left by earlier runs that were killed
    let ending = env::args().nth(1);
    Interpreter::scope("install", |install| {
        let staged = journal::begin(jobs)?; // removed when the transaction ends, however it ends
        for step in ["bin", "lib", "lib/plugins", "share"] {
            let directory = staged.join(step);
            let undone = directory.clone();
            // Registered before the step, because the process may exit between the two.
            install.stack().on_failure(move || {
                println!("undo {step}");
                let _ = fs::remove_dir(undone); // it may not exist yet
            });
            if step == "lib/plugins" {
                interrupt(ending.as_deref())?;
            }
            fs::create_dir(&directory)?;
            println!("made {step}");
        }
        install.stack().on_success(move || fs::rename(staged, "app"));
        Ok(())
    })
}

/// Ends the installation in the middle of a step, in the requested way.
#[cfg(unix)]
fn interrupt(ending: Option<&str>) -> Result<(), Box<dyn std::error::Error>> {
    match ending {
        Some("fail") => return Err("no plugins".into()),
        Some("panic") => panic!("no plugins"),
        Some("exit") => std::process::exit(3),
        Some("thread") => _ = std::thread::spawn(|| std::process::exit(4)).join(),
        Some("wait") => {
            println!("waits");
            std::io::stdin().read_line(&mut String::new())?;
        }
        _ => {}
    }
    Ok(())
}

#[cfg(not(unix))]
fn main() {}
