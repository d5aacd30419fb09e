//! A release in three steps that is undone unless every step succeeds.
//!
//! **A stack that is dropped without `close()` has failed.** `scope` closes its stack only if the body returns `Ok`.
//! `announce` does without `scope` and closes its stack itself.

use std::error::Error;
use std::fs;
use std::path::Path;

use exitstack::{ExitStack, scope};

fn release(root: &Path, version: &str, manual: &Path) -> Result<(), Box<dyn Error>> {
    let directory = root.join(version);
    let listing = root.join("releases");
    let before = fs::read_to_string(&listing)?;
    scope(|stack| {
        stack.register(|| println!("  (done, one way or the other)"));
        stack.on_success(|| println!("  {version} is out"));

        println!("  1. make its directory");
        fs::create_dir(&directory)?;
        stack.on_failure(|| {
            println!("  undo 1");
            fs::remove_dir_all(&directory)
        });

        println!("  2. list it");
        fs::write(&listing, format!("{before}{version}\n"))?;
        stack.on_failure(|| {
            println!("  undo 2");
            fs::write(&listing, &before)
        });

        println!("  3. copy the manual");
        fs::copy(manual, directory.join("manual"))?;
        Ok(())
    })
}

/// The same by hand: leaving in any way before the last line drops the stack, which undoes the steps.
fn announce(root: &Path, version: &str) -> Result<(), Box<dyn Error>> {
    let news = root.join("news");
    let mut stack = ExitStack::new();
    stack.on_success(|| println!("  {version} is announced"));

    println!("  1. write the news");
    fs::write(&news, version)?;
    stack.on_failure(|| {
        println!("  undo 1");
        fs::remove_file(&news)
    });

    println!("  2. check that it is out");
    fs::metadata(root.join(version))?;
    Ok(stack.close()?) // only this makes it a success
}

fn main() -> Result<(), Box<dyn Error>> {
    let root = std::env::temp_dir().join(format!("exitstack-rollback-{}", std::process::id()));
    fs::create_dir(&root)?;
    let mut cleanup = ExitStack::new();
    cleanup.register(|| fs::remove_dir_all(&root));

    let manual = root.join("manual");
    fs::write(&manual, "press any key")?;
    fs::write(root.join("releases"), "")?;

    println!("1.0, with its manual:");
    release(&root, "1.0", &manual)?;

    println!("1.1, whose manual is missing:");
    let failed = release(&root, "1.1", &root.join("missing"));
    println!("  the error is the step's own: {}", failed.is_err());

    println!("listed: {}", fs::read_to_string(root.join("releases"))?.trim());
    println!("1.1 left a directory: {}", root.join("1.1").exists());

    println!("1.1, announced:");
    println!("  failed, as expected: {}", announce(&root, "1.1").is_err());
    println!("1.0, announced:");
    announce(&root, "1.0")?;
    Ok(cleanup.close()?)
}
