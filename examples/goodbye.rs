//! Goodbyes at the end of the process: arguments captured by a closure, and a function that is unregistered.

fn goodbye(name: &str, adjective: &str) {
    println!("Goodbye {name}, it was {adjective} to meet you.");
}

fn wave() {
    println!("(waves)");
}

fn main() {
    // The counterpart of Python's `atexit.register(goodbye, 'Donny', 'nice')`: a closure captures any number of
    // arguments.
    exitstack::register(|| goodbye("Donny", "nice"));

    let (name, adjective) = (String::from("Walter"), String::from("loud"));
    exitstack::register(move || goodbye(&name, &adjective));

    // A function registered twice runs twice. It is identified by its type, and unregistered all at once.
    exitstack::register(wave);
    exitstack::register(wave);
    println!("{} waves taken back", exitstack::unregister_fn(wave));
    println!("{} the second time", exitstack::unregister_fn(wave));
    exitstack::register(wave);

    // A closure that captures something has no identity of its own. It is unregistered by its id.
    let id = exitstack::register(|| goodbye("nobody", "hard"));
    println!("taken back by its id: {}", exitstack::unregister(id));

    println!("hello");
}
