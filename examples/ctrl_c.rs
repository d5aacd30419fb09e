//! A command-line tool that removes its half-written file when Ctrl-C ends it.

use std::io::{self, BufRead, Write};
use std::{fs, process::ExitCode};

use exitstack::shutdown::{Limits, set_limits};
use exitstack::{Handler, signals::Signals};

const PARTIAL: &str = "copy.partial";

fn main() -> ExitCode {
    exitstack::run(|| {
        set_limits(Limits::new().within(std::time::Duration::from_secs(5)))?;
        Signals::new().install()?; // a second Ctrl-C does not even wait five seconds
        let mut file = fs::File::create(PARTIAL)?;
        exitstack::process_stack()
            .on_failure(Handler::new(|| fs::remove_file(PARTIAL)).named("remove the half-written file"));
        for line in io::stdin().lock().lines() {
            writeln!(file, "{}", line?)?;
            println!("a line is copied");
        }
        fs::rename(PARTIAL, "copy")
    }) // after Ctrl-C the file is gone, and a shell sees that the signal ended the program
}
