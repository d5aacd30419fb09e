fn main() {
    let mut stack = exitstack::AsyncExitStack::new();
    let text = stack.enter_async(String::new(), async |text| drop(text));
    stack.cancel_in_flight();
    text.push('!');
}
