//! Facts about types, one test each: what may cross threads, and how large things are.

use std::fmt::Debug;

use exitstack::{
    CloseError, Exit, ExitStack, Handler, HandlerError, HandlerErrorKind, HandlerId, HandlerList, Instrumented,
    Interpreter, Outcome, PendingHandler, Refused, ScopeError, ScopeFailure, SharedExitStack,
};

/// Whether `$type` implements `$bound`: where it does, an inherent constant shadows the trait's.
macro_rules! implements {
    ($type:ty: $($bound:tt)+) => {{
        #[allow(dead_code, reason = "unused where the bound holds")]
        trait No {
            const ANSWER: bool = false;
        }
        impl<T: ?Sized> No for T {}
        struct Ask<T: ?Sized>(std::marker::PhantomData<T>);
        #[allow(dead_code, reason = "unused where the bound does not hold")]
        impl<T: ?Sized + $($bound)+> Ask<T> {
            const ANSWER: bool = true;
        }
        <Ask<$type>>::ANSWER
    }};
}

macro_rules! facts {
    ($($name:ident: $fact:expr;)*) => {$(
        #[test]
        fn $name() {
            const { assert!($fact) }
        }
    )*};
}

facts! {
    exit_stack_is_not_send: !implements!(ExitStack<'static>: Send);
    exit_stack_is_not_sync: !implements!(ExitStack<'static>: Sync);
    shared_exit_stack_is_send: implements!(SharedExitStack: Send);
    shared_exit_stack_is_sync: implements!(SharedExitStack: Sync);
    interpreter_is_send_and_sync: implements!(Interpreter: Send) && implements!(Interpreter: Sync);
    shared_stacks_may_cross_a_catch_unwind: implements!(SharedExitStack: std::panic::UnwindSafe + std::panic::RefUnwindSafe)
        && implements!(Interpreter: std::panic::UnwindSafe + std::panic::RefUnwindSafe);
    interpreter_is_clone: implements!(Interpreter: Clone);
    close_error_is_an_error_that_may_be_sent: implements!(CloseError: std::error::Error + Send + Sync + 'static);
    close_error_is_clone: implements!(CloseError: Clone);
    handler_error_is_an_error_that_may_be_sent: implements!(HandlerError: std::error::Error + Send + Sync + 'static);
    handler_error_is_clone: implements!(HandlerError: Clone);
    handler_error_kind_may_be_sent: implements!(HandlerErrorKind: Send + Sync + Clone);
    exit_is_an_error: implements!(Exit: std::error::Error + Send + Sync + Copy + Eq);
    exit_is_a_value_of_main: implements!(Exit: std::process::Termination);
    refused_is_an_error: implements!(Refused<fn()>: std::error::Error + Send + Sync);
    refused_of_a_handler_without_debug_is_debug: implements!(Refused<Box<dyn Fn()>>: Debug);
    scope_error_is_an_error_as_the_works_is: implements!(ScopeError<Exit>: std::error::Error + Send + Sync + Clone)
        && !implements!(ScopeError<&'static str>: std::error::Error)
        && implements!(ScopeError<&'static str>: Send + Sync + Debug)
        && !implements!(ScopeError<std::rc::Rc<u8>>: Send);
    scope_failure_is_an_error_that_may_be_sent: implements!(ScopeFailure: std::error::Error + Send + Sync + 'static);
    instrumented_may_be_sent_as_its_future_may: implements!(Instrumented<std::future::Ready<u8>>: Send + Sync + Unpin)
        && !implements!(Instrumented<std::rc::Rc<u8>>: Send)
        && !implements!(Instrumented<std::marker::PhantomPinned>: Unpin);
    instrumented_is_no_larger_than_both: size_of::<Instrumented<usize>>() == 2 * size_of::<usize>();
    outcome_is_copy: implements!(Outcome: Copy + Eq);
    handler_id_is_a_plain_key: implements!(HandlerId: Copy + Ord + std::hash::Hash + Send + Sync + Debug);
    pending_handler_may_be_sent: implements!(PendingHandler: Send + Sync + Clone + 'static);
    handler_list_is_send_as_its_values_are: implements!(HandlerList<u8>: Send)
        && !implements!(HandlerList<std::rc::Rc<u8>>: Send);
    handler_list_is_sync_as_its_values_are: implements!(HandlerList<u8>: Sync)
        && !implements!(HandlerList<std::cell::Cell<u8>>: Sync);
    handler_list_asks_no_bounds: implements!(HandlerList<Handler<fn()>>: Default);
    close_error_is_one_word: size_of::<CloseError>() == size_of::<usize>();
    a_close_that_is_fine_is_one_word: size_of::<Result<(), CloseError>>() == size_of::<usize>();
    handler_error_is_one_word: size_of::<HandlerError>() == size_of::<usize>();
    handler_id_is_eight_bytes: size_of::<HandlerId>() == 8;
    interpreter_is_one_word: size_of::<Interpreter>() == size_of::<usize>();
    exit_stack_is_at_most_33_words: size_of::<ExitStack<'static>>() <= 264 || size_of::<usize>() > 8;
    exit_stack_is_made_in_a_const: { const _: ExitStack<'static> = ExitStack::new(); true };
    shared_exit_stack_is_made_in_a_static: { static _STACK: SharedExitStack = SharedExitStack::new(); true };
}

#[test]
fn debug_shows_something_for_every_type() {
    let interpreter = Interpreter::new("i");
    interpreter.finalize().unwrap();
    let refused = interpreter.stack().try_register(|| ()).unwrap_err();
    let stack = ExitStack::new();
    let id = stack.register(Handler::new(|| ()).named("waits"));
    let mut list = HandlerList::new();
    let listed = list.push("value");
    assert!(format!("{interpreter:?}").contains("process > i"));
    assert!(format!("{refused:?}").contains("types.rs"));
    assert!(format!("{stack:?}").contains("waits"));
    assert!(format!("{:?}", stack.pending()[0]).contains("waits"));
    assert!(format!("{:?}", SharedExitStack::new()).contains("SharedExitStack"));
    assert!(format!("{:?}", Handler::new(|| ()).named("n")).contains('n'));
    assert_eq!(format!("{list:?}"), format!("{{{listed:?}: \"value\"}}"));
    assert_eq!(format!("{:?}", list.iter()), format!("{list:?}"));
    assert!(format!("{id:?}").starts_with("HandlerId("));
}
