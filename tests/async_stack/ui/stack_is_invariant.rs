use exitstack::AsyncExitStack;

fn shorter<'s>(stack: &AsyncExitStack<'static>, text: &'s str) {
    let stack: &AsyncExitStack<'s> = stack;
    stack.register(move || println!("{text}"));
}

fn main() {
    shorter(&AsyncExitStack::new(), &String::from("gone"));
}
