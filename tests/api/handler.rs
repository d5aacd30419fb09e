//! What can be registered: kinds of handlers, their names, keys and locations, and functions as their own identity.

use std::cell::{Cell, RefCell};
use std::panic::Location;
use std::sync::atomic::{AtomicUsize, Ordering};

use exitstack::{Exit, ExitStack, Handler, HandlerErrorKind, HandlerId, SharedExitStack};

use crate::panicking::{panic_of, panic_with_nothing, quiet_panic};
use crate::support::Counter;

#[test]
fn a_handler_returns_nothing_a_result_or_never() {
    let mut stack = ExitStack::new();
    stack.register(|| ());
    stack.register(|| Ok::<(), std::io::Error>(()));
    stack.register(|| Err("a text"));
    stack.register(|| Err(String::from("an owned text")));
    stack.register(|| Err::<(), Box<dyn std::error::Error + Send + Sync>>("a boxed error".into()));
    stack.register(|| Err(std::io::Error::other("an error")));
    stack.register(|| quiet_panic("never"));
    let error = stack.close().unwrap_err();
    let messages: Vec<String> =
        error.iter().map(|error| format!("{error:#}").rsplit_once(": ").unwrap().1.into()).collect();
    assert_eq!(messages, ["never", "an error", "a boxed error", "an owned text", "a text"]);
}

#[test]
fn the_handlers_own_error_can_be_had_back() {
    let mut stack = ExitStack::new();
    stack.register(|| Err(std::io::Error::from_raw_os_error(13)));
    let error = stack.close().unwrap_err();
    let HandlerErrorKind::Failed(cause) = error.errors()[0].kind() else { panic!("{error:?}") };
    assert_eq!(cause.downcast_ref::<std::io::Error>().unwrap().raw_os_error(), Some(13));
}

#[test]
fn closures_of_every_size_keep_their_captures() {
    macro_rules! sizes {
        ($($words:literal)*) => {$({
            let values: [usize; $words] = std::array::from_fn(|at| at * 7 + $words);
            let counter = Counter::default();
            let (mut bomb, unused) = (counter.bomb(), counter.bomb());
            let mut stack = ExitStack::new();
            stack.register(move || {
                assert!(values.iter().enumerate().all(|(at, value)| *value == at * 7 + $words));
                bomb.use_up();
            });
            let id = stack.register(move || drop((values, unused)));
            assert!(stack.unregister(id));
            stack.close().unwrap();
            assert_eq!((counter.used(), counter.dropped()), (1, 2));
        })*};
    }
    sizes!(0 1 2 3 4 5 8 100 5000);
}

/// Checks the alignment when they run and when they are dropped.
#[test]
fn closures_of_every_alignment_are_aligned() {
    macro_rules! alignments {
        ($($align:literal)*) => {$({
            #[repr(align($align))]
            struct Aligned(u8);
            impl Aligned {
                fn check(&self) {
                    assert_eq!((self.0, std::ptr::from_ref(self).addr() % $align), (7, 0));
                }
            }
            impl Drop for Aligned {
                fn drop(&mut self) {
                    self.check();
                    self.0 = 0;
                }
            }
            let mut stack = ExitStack::new();
            for _ in 0..9 {
                let aligned = Aligned(7);
                stack.register(move || aligned.check());
            }
            let aligned = Aligned(7);
            let id = stack.register(Handler::new(move || aligned.check()).named("dressed"));
            assert!(stack.unregister(id));
            stack.close().unwrap();
        })*};
    }
    alignments!(2 4 8 16 32 64 4096);
}

#[test]
fn zero_sized_handlers_run_and_are_dropped() {
    static DROPPED: AtomicUsize = AtomicUsize::new(0);
    struct Zero;
    impl Drop for Zero {
        fn drop(&mut self) {
            DROPPED.fetch_add(1, Ordering::SeqCst);
        }
    }
    let mut stack = ExitStack::new();
    for _ in 0..3 {
        let zero = Zero;
        stack.register(move || drop(zero));
    }
    stack.close().unwrap();
    assert_eq!(DROPPED.load(Ordering::SeqCst), 3);
    let zero = Zero;
    stack.register(move || drop(zero));
    stack.clear();
    assert_eq!(DROPPED.load(Ordering::SeqCst), 4);
}

/// Function pointers and boxed functions are handlers too.
#[test]
fn functions_and_methods_are_handlers() {
    static RAN: AtomicUsize = AtomicUsize::new(0);
    fn function() {
        RAN.fetch_add(1, Ordering::SeqCst);
    }
    fn generic<const N: usize>() {
        RAN.fetch_add(N, Ordering::SeqCst);
    }
    let boxed: Box<dyn FnOnce()> = Box::new(function);
    let stack = ExitStack::new();
    stack.register(function);
    stack.register(function as fn());
    stack.register(generic::<10>);
    stack.register(boxed);
    drop(stack);
    assert_eq!(RAN.load(Ordering::SeqCst), 13);
}

/// Removes every registration of that function and of no other.
#[test]
fn unregister_fn_removes_that_function_alone() {
    fn hello() {}
    fn goodbye() {}
    let log = RefCell::new(Vec::new());
    let mut stack = ExitStack::new();
    stack.register(hello);
    stack.register(goodbye);
    stack.register(|| log.borrow_mut().push("captures"));
    stack.on_success(goodbye);
    stack.register(Handler::new(goodbye).named("dressed").keyed(1));
    stack.register(goodbye);
    assert_eq!(stack.unregister_fn(goodbye), 4);
    assert_eq!(stack.unregister_fn(goodbye), 0);
    assert_eq!(stack.len(), 2);
    stack.close().unwrap();
    drop(stack);
    assert_eq!(log.into_inner(), ["captures"]);
}

/// The function that was passed is dropped last. Each drop panics, and the first panic goes on.
#[test]
fn a_functions_drop_that_panics_stops_no_removal() {
    static DROPPED: AtomicUsize = AtomicUsize::new(0);
    struct Rude;
    impl Drop for Rude {
        fn drop(&mut self) {
            quiet_panic(["first", "second", "passed"][DROPPED.fetch_add(1, Ordering::Relaxed) % 3]);
        }
    }
    fn rude() -> impl FnOnce() + Send {
        let rude = Rude;
        move || drop(rude)
    }
    let (mut stack, shared) = (ExitStack::new(), SharedExitStack::new());
    for _ in 0..2 {
        stack.register(rude());
        shared.register(rude());
    }
    assert_eq!(panic_of(|| stack.unregister_fn(rude())), "first");
    assert_eq!(panic_of(|| shared.unregister_fn(rude())), "first");
    assert_eq!(DROPPED.load(Ordering::Relaxed), 6);
    assert!(stack.is_empty() && shared.is_empty());
}

/// Recognizes closures without captures, and a particular instance of a generic function.
#[test]
fn unregister_fn_knows_closures_and_instances() {
    fn generic<T>() {}
    let closure = || ();
    let twin = || ();
    let mut stack = ExitStack::new();
    stack.register(closure);
    stack.register(generic::<u8>);
    stack.register(generic::<u16>);
    assert_eq!(stack.unregister_fn(twin), 0);
    assert_eq!(stack.unregister_fn(generic::<u32>), 0);
    assert_eq!(stack.unregister_fn(closure), 1);
    assert_eq!(stack.unregister_fn(generic::<u8>), 1);
    assert_eq!(stack.len(), 1);
}

#[test]
fn unregister_key_drops_all_though_drops_panic() {
    let counter = Counter::default();
    let mut stack = ExitStack::new();
    let shared = SharedExitStack::new();
    for _ in 0..3 {
        let bomb = counter.bomb_that_panics();
        stack.register(Handler::new(move || drop(bomb)).keyed(1));
        let bomb = counter.bomb_that_panics();
        shared.register(Handler::new(move || drop(bomb)).keyed(1));
    }
    assert_eq!(panic_of(|| stack.unregister_key(&1)), "dropped");
    assert_eq!(panic_of(|| shared.unregister_key(&1)), "dropped");
    assert_eq!(counter.dropped(), 6);
    assert!(stack.is_empty() && shared.is_empty());
}

/// Keys are compared oldest first.
#[test]
fn unregister_key_uses_the_keys_own_eq() {
    thread_local!(static ASKED: RefCell<Vec<u32>> = const { RefCell::new(Vec::new()) });
    struct Modulo(u32);
    impl PartialEq for Modulo {
        fn eq(&self, other: &Self) -> bool {
            ASKED.with_borrow_mut(|asked| asked.push(self.0));
            self.0 % 3 == other.0 % 3
        }
    }
    let mut stack = ExitStack::new();
    for n in 0..7 {
        stack.register(Handler::new(|| ()).keyed(Modulo(n)));
        stack.register(|| ());
    }
    assert_eq!(stack.unregister_key(&Modulo(30)), 3);
    assert_eq!(stack.len(), 11);
    ASKED.with_borrow(|asked| assert_eq!(*asked, [0, 1, 2, 3, 4, 5, 6]));
    assert_eq!(stack.unregister_key(&Modulo(30)), 0);
}

#[test]
fn a_key_of_another_type_is_unequal() {
    let mut stack = ExitStack::new();
    stack.register(Handler::new(|| ()).keyed(1_u8));
    stack.register(Handler::new(|| ()).keyed("1"));
    stack.register(Handler::new(|| ()).keyed(String::from("1")));
    assert_eq!(stack.unregister_key(&1_u16), 0);
    assert_eq!(stack.unregister_key(&()), 0);
    assert_eq!(stack.unregister_key(&"1"), 1);
    assert_eq!(stack.len(), 2);
}

#[test]
fn a_key_that_does_not_equal_itself_is_not_found() {
    let mut stack = ExitStack::new();
    stack.register(Handler::new(|| ()).keyed(f64::NAN));
    assert_eq!(stack.unregister_key(&f64::NAN), 0);
    assert_eq!(stack.len(), 1);
}

/// The panic propagates to the caller of `unregister_key`.
#[test]
fn a_panic_of_a_keys_eq_removes_nothing() {
    struct Panics(bool);
    impl PartialEq for Panics {
        fn eq(&self, _: &Self) -> bool {
            if self.0 { quiet_panic("==") } else { true }
        }
    }
    let mut stack = ExitStack::new();
    let shared = SharedExitStack::new();
    for panics in [false, false, true, false] {
        stack.register(Handler::new(|| ()).keyed(Panics(panics)));
        shared.register(Handler::new(|| ()).keyed(Panics(panics)));
    }
    assert_eq!(panic_of(|| stack.unregister_key(&Panics(false))), "==");
    assert_eq!(panic_of(|| shared.unregister_key(&Panics(false))), "==");
    assert_eq!((stack.len(), shared.len()), (4, 4));
    stack.close().unwrap();
    shared.close().unwrap();
}

/// Whatever its handler does. If the handler succeeds, the panic of the drop is what has failed.
#[test]
fn a_keys_drop_that_panics_loses_nothing() {
    #[derive(PartialEq)]
    struct Rude;
    impl Drop for Rude {
        fn drop(&mut self) {
            panic_with_nothing();
        }
    }
    let ran = Cell::new(false);
    let mut stack = ExitStack::new();
    stack.register(|| ran.set(true));
    stack.register(Handler::new(|| ()).keyed(Rude));
    stack.register(Handler::new(|| Err(Exit(3))).keyed(Rude));
    stack.register(Handler::new(|| Err("disk full")).keyed(Rude));
    stack.register(Handler::new(|| quiet_panic("boom")).keyed(Rude));
    let error = stack.close().unwrap_err();
    assert!(ran.get());
    let texts: Vec<_> = error.iter().map(|error| format!("{error:#}")).collect();
    assert_eq!((texts.len(), error.exit_code()), (3, Some(3)));
    assert!(texts[0].ends_with("panicked: boom") && texts[1].ends_with("failed: disk full"), "{texts:?}");
    assert!(texts[2].ends_with("panicked: (non-string panic payload)"), "{texts:?}");
}

#[test]
fn a_later_name_or_key_replaces_an_earlier_one() {
    let mut stack = ExitStack::new();
    stack.register(Handler::new(|| ()).named("first").keyed(1).named("second").keyed("two"));
    assert_eq!(stack.pending()[0].name(), Some("second"));
    assert_eq!(stack.unregister_key(&1), 0);
    assert_eq!(stack.unregister_key(&"two"), 1);
}

/// The handler returned an error, panicked, or panicked while it was dropped.
#[test]
fn an_error_has_its_handlers_name() {
    let counter = Counter::default();
    let bomb = counter.bomb_that_panics();
    let mut stack = ExitStack::new();
    stack.register(|| Err("nameless"));
    stack.register(Handler::new(|| Err("no")).named("fails"));
    stack.register(Handler::new(|| quiet_panic("boom")).named(String::from("panics")));
    stack.register(|| quiet_panic("nameless"));
    stack.register(Handler::new(move || drop(bomb)).named("drops"));
    stack.register(Handler::new(|| ()).named("fine"));
    stack.register(|| quiet_panic("nameless"));
    let error = stack.close().unwrap_err();
    let names: Vec<_> = error.iter().map(exitstack::HandlerError::name).collect();
    assert_eq!(names, [None, Some("drops"), None, Some("panics"), Some("fails"), None]);
}

#[test]
fn every_registration_notes_its_callers_location() {
    fn line(location: &'static Location<'static>) -> u32 {
        assert_eq!(location.file(), file!());
        location.line()
    }
    let stack = ExitStack::new();
    let shared = SharedExitStack::new();
    let here = Location::caller();
    stack.register(|| ());
    stack.on_success(|| ());
    stack.on_failure(|| ());
    stack.enter((), |()| ());
    stack.enter_with((), |(), _| ());
    shared.register(|| ());
    shared.try_register(|| ()).unwrap();
    shared.on_success(|| ());
    shared.on_failure(|| ());
    let interpreter = exitstack::Interpreter::new("here");
    let in_interpreter = interpreter.enter(|| {
        exitstack::register(|| ());
        Location::caller()
    });
    let lines: Vec<u32> = stack.pending().iter().rev().map(|pending| line(pending.location()) - here.line()).collect();
    assert_eq!(lines, [1, 2, 3, 4, 5]);
    let lines: Vec<u32> = shared.pending().iter().rev().map(|pending| line(pending.location()) - here.line()).collect();
    assert_eq!(lines, [6, 7, 8, 9]);
    assert_eq!(interpreter.stack().pending()[0].location().file(), in_interpreter.file());
}

#[test]
fn an_error_has_the_location_of_the_registration() {
    #[track_caller]
    fn wrapper(stack: &ExitStack<'_>) -> HandlerId {
        stack.register(|| Err("no"))
    }
    let mut stack = ExitStack::new();
    let line = line!() + 1;
    wrapper(&stack);
    let error = stack.close().unwrap_err();
    let location = error.errors()[0].location();
    assert_eq!((location.file(), location.line()), (file!(), line));
    assert!(error.to_string().contains(&format!("registered at {}:{line}:", file!())));
}
