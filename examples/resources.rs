//! A number of resources that is only known at run time: entered, handed on together, and closed in reverse order.

use std::error::Error;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use exitstack::{CloseError, ExitStack, Handler};

/// Opens all files or none: a `?` in the middle drops the stack, which closes what was opened.
fn open_all<'a>(directory: &Path, names: &[&'static str]) -> Result<ExitStack<'a>, Box<dyn Error>> {
    let mut stack = ExitStack::new();
    for &name in names {
        let file = stack.enter(File::create_new(directory.join(name))?, move |file| {
            println!("  sync and close {name}");
            file.sync_all()
        });
        println!("  open {name}");
        writeln!(file, "I am {name}")?;
    }
    Ok(stack.pop_all()) // success: the caller gets the handlers, and this stack is empty
}

fn main() -> Result<(), Box<dyn Error>> {
    let directory = std::env::temp_dir().join(format!("exitstack-resources-{}", std::process::id()));
    fs::create_dir(&directory)?;
    let mut outer = ExitStack::new();
    outer.register(|| fs::remove_dir_all(&directory));

    println!("three files:");
    let mut files = open_all(&directory, &["a", "b", "c"])?;
    println!("  {} to close", files.len());
    files.close()?;

    println!("the second of these is there already:");
    let refused = open_all(&directory, &["d", "a", "e"]);
    println!("  failed, as expected: {}", refused.is_err());

    println!("one that fails to close:");
    let mut stack = ExitStack::new();
    let text = stack.enter(String::from("draft"), |text| Err(format!("{text} was not saved")));
    stack.register(Handler::new(|| println!("  closed before it")).named("runs all the same"));
    text.push_str(" 2"); // usable while more is registered
    let closed: Result<(), CloseError> = stack.close();
    for error in closed.unwrap_err().errors() {
        println!("  {}", error.source().ok_or("it failed, it did not panic")?);
    }
    // text.push('!');
    //
    // error[E0502]: cannot borrow `stack` as mutable because it is also borrowed as immutable
    //    |     let text = stack.enter(String::from("draft"), ...
    //    |                ----- immutable borrow occurs here
    //    |     let closed: Result<(), CloseError> = stack.close();
    //    |                                          ^^^^^^^^^^^^^ mutable borrow occurs here
    //    |     text.push('!');
    //    |     ---- immutable borrow later used here
    Ok(outer.close()?)
}
