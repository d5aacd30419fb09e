//! A language runtime with Python's module `atexit`: scripts register exit handlers, and each runtime runs its own when
//! it ends. The language is [Koto](https://koto.dev), whose names do not begin with `_`: `atexit.clear` is `_clear`.
//!
//! The handlers are values of the language. They are not `Send`, and to call, to compare or to drop one may run a
//! script, which may register, unregister, clear or fail. So they wait in a [`HandlerList`], and none of the three is
//! done while that is borrowed.
//!
//! `cargo run --example runtime -- examples/runtime/order.koto` runs one of the scripts there, or several, each in a
//! runtime of its own.

use std::cell::{Cell, RefCell};
use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;
use std::rc::Rc;
use std::{env, fs};

use exitstack::{ExitStack, HandlerId, HandlerList};
use koto::Ptr;
use koto::prelude::*;
use koto::runtime::Result;

struct Runtime {
    at_exit: RefCell<HandlerList<Handler>>,
    running: Cell<bool>,
    vm: KotoVm, // what is called gets one of its own that shares the state of this
}

struct Handler {
    function: KValue,
    args: Vec<KValue>,
}

/// The number of handlers that others may register in one run: one that registers itself would never let it end.
const LATE: usize = 1000;

impl Runtime {
    fn new() -> Rc<Self> {
        let runtime = Rc::new(Self { at_exit: RefCell::default(), running: Cell::new(false), vm: KotoVm::default() });
        runtime.vm.prelude().insert("atexit", runtime.atexit());
        runtime.vm.prelude().add_fn("finalizer", Finalizer::create);
        runtime
    }

    /// The module. Its functions do not keep the runtime alive, since the runtime's handlers may refer to them.
    fn atexit(self: &Rc<Self>) -> KMap {
        let module = KMap::with_type("atexit");
        let function = |name: &str, body: fn(&Self, &[KValue]) -> Result<KValue>| {
            let runtime = Rc::downgrade(self);
            module.add_fn(name, move |context| match runtime.upgrade() {
                Some(runtime) => body(&runtime, context.args()),
                None => runtime_error!("the runtime has ended"),
            });
        };
        function("register", |runtime, args| match args {
            [function, args @ ..] if function.is_callable() => {
                let handler = Handler { function: function.clone(), args: args.to_vec() };
                runtime.at_exit.borrow_mut().push(handler);
                Ok(function.clone())
            }
            other => unexpected_args("|Callable, Any...|", other),
        });
        function("unregister", |runtime, args| match args {
            [function] => runtime.unregister(function).map(|()| KValue::Null),
            other => unexpected_args("|Any|", other),
        });
        function("clear", |runtime, _| {
            let handlers = runtime.at_exit.borrow_mut().clear();
            drop(handlers); // not in the line above, where the list is borrowed to its end
            Ok(KValue::Null)
        });
        function("ncallbacks", |runtime, _| Ok(runtime.at_exit.borrow().len().into()));
        function("run_exitfuncs", |runtime, _| {
            let last = runtime.run_exitfuncs().err();
            Ok(last.map_or(KValue::Null, |error| error.error.to_string().into()))
        });
        module
    }

    /// Removes every handler whose function is equal to this one.
    ///
    /// Across the comparisons it holds ids, not places: whatever they do to the list, an id means the same handler.
    fn unregister(&self, function: &KValue) -> Result<()> {
        let ids: Vec<HandlerId> = self.at_exit.borrow().iter().map(|(id, _)| id).collect();
        for id in ids {
            let registered = self.at_exit.borrow().get(id).map(|handler| handler.function.clone());
            let Some(registered) = registered else { continue }; // removed since
            if self.is_equal(function, &registered)? {
                let removed = self.at_exit.borrow_mut().remove(id);
                drop(removed);
            }
        }
        Ok(())
    }

    /// As in Python, a value is equal to itself, and its `==` is not asked.
    fn is_equal(&self, a: &KValue, b: &KValue) -> Result<bool> {
        if is_same(a, b) {
            return Ok(true);
        }
        match self.vm.spawn_shared_vm().run_binary_op(BinaryOp::Equal, a.clone(), b.clone())? {
            KValue::Bool(equal) => Ok(equal),
            other => unexpected_type("Bool", &other),
        }
    }

    /// Runs the handlers, the newest first, also those that they register. Shows every error, and returns the last one.
    fn run_exitfuncs(&self) -> Result<()> {
        if self.running.replace(true) {
            return Ok(()); // a handler has called this: the others run when it has returned
        }
        let stack = ExitStack::new();
        stack.register(|| self.running.set(false)); // even if the host panics
        let mut result = Ok(());
        let bound = self.at_exit.borrow().len() + LATE;
        for _ in 0..bound {
            let newest = self.at_exit.borrow_mut().pop();
            let Some((_, Handler { function, args })) = newest else { break };
            if let Err(error) = self.vm.spawn_shared_vm().call_function(function, args.as_slice()) {
                show("an exit handler", &error);
                result = Err(error);
            }
        }
        result
    }

    fn run(&self, name: &str, script: &str) -> Result<()> {
        let chunk = self.vm.loader().borrow_mut().compile_script(script, Some(name.into()), <_>::default())?;
        self.vm.spawn_shared_vm().run(chunk).map(drop)
    }

    /// As in Python, handlers that fail do not change the exit status: their errors have been shown.
    fn end(self: Rc<Self>) {
        let _last = self.run_exitfuncs();
        let left = self.at_exit.borrow().len();
        if left > 0 {
            show("atexit", &format!("too many late registrations, handlers that do not run: {left}"));
        }
    }
}

/// Koto's own function for this has no answer for functions.
fn is_same(a: &KValue, b: &KValue) -> bool {
    match (a, b) {
        (KValue::Function(a), KValue::Function(b)) => {
            a.captures().zip(b.captures()).is_some_and(|(a, b)| a.is_same_instance(b))
        }
        (KValue::NativeFunction(a), KValue::NativeFunction(b)) => Ptr::ptr_eq(&a.function, &b.function),
        _ => a.is_same_instance(b),
    }
}

/// A destructor, which Koto does not have: scripts get a value from `finalizer`, and where that is dropped, the function
/// that they gave is called.
struct Finalizer {
    function: KValue,
    vm: KotoVm,
}

impl Finalizer {
    fn create(context: &mut CallContext) -> Result<KValue> {
        let [function] = context.args() else { return unexpected_args("|Callable|", context.args()) };
        let finalizer = Self { function: function.clone(), vm: context.vm.spawn_shared_vm() };
        Ok(KNativeFunction::new(move |_| Ok(finalizer.function.clone())).into())
    }
}

impl Drop for Finalizer {
    fn drop(&mut self) {
        if let Err(error) = self.vm.call_function(self.function.clone(), &[]) {
            show("a finalizer", &error);
        }
    }
}

/// Does not panic if nothing can be written, as `eprintln!` would.
fn show(place: &str, error: &dyn Display) {
    let _ = writeln!(io::stderr(), "error in {place}: {error}");
}

fn main() -> io::Result<ExitCode> {
    let mut scripts = Vec::new();
    for path in env::args().skip(1) {
        scripts.push((fs::read_to_string(&path)?, path));
    }
    if scripts.is_empty() {
        scripts.push((include_str!("runtime/one.koto").into(), "one.koto".into()));
        scripts.push((include_str!("runtime/two.koto").into(), "two.koto".into()));
    }
    let mut status = ExitCode::SUCCESS;
    let runtimes = ExitStack::new(); // `std::process::exit` would pass over it: these values stay on their thread
    for (script, name) in scripts {
        let runtime = runtimes.enter(Runtime::new(), Runtime::end);
        if let Err(error) = runtime.run(&name, &script) {
            show(&name, &error);
            status = ExitCode::FAILURE;
        }
    }
    Ok(status) // the runtimes end here, the newest first
}
