//! The error type of a scope's body must be convertible from the cleanup's.

use std::io;

use exitstack::{Interpreter, scope};

fn main() -> io::Result<()> {
    scope(|stack| -> io::Result<()> {
        stack.register(|| println!("cleaned up"));
        Ok(())
    })?;
    Interpreter::scope("install", |_| -> io::Result<()> { Ok(()) })
}
