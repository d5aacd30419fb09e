//! A handler may borrow only what outlives the stack.

use exitstack::ExitStack;

fn main() {
    let stack = ExitStack::new();
    {
        let short = String::from("short");
        stack.register(|| println!("{short}"));
    }
    drop(stack);
}
