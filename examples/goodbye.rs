//! Goodbyes, said when the process ends: arguments bound by a closure, and a function that is taken back.

fn goodbye(name: &str, adjective: &str) {
    println!("Goodbye {name}, it was {adjective} to meet you.");
}

fn wave() {
    println!("(waves)");
}

fn main() {
    // What `atexit.register(goodbye, 'Donny', 'nice')` is in Python: a closure binds the arguments, any number of them.
    exitstack::register(|| goodbye("Donny", "nice"));

    let (name, adjective) = (String::from("Walter"), String::from("loud"));
    exitstack::register(move || goodbye(&name, &adjective));

    // Registered twice, a function runs twice; it is known by its type, and taken back with all its registrations.
    exitstack::register(wave);
    exitstack::register(wave);
    println!("{} waves taken back", exitstack::unregister_fn(wave));
    println!("{} the second time", exitstack::unregister_fn(wave));
    exitstack::register(wave);

    // A closure that captures something has no identity of its own: its id takes it back.
    let id = exitstack::register(|| goodbye("nobody", "hard"));
    println!("taken back by its id: {}", exitstack::unregister(id));

    println!("hello");
}
