//! A handler's error may be sent to another thread.

use std::error::Error;

use exitstack::ExitStack;

fn save() -> Result<(), Box<dyn Error>> {
    Ok(())
}

fn main() {
    let stack = ExitStack::new();
    stack.register(save);
}
