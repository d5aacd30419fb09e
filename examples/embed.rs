//! A toy language runtime with two interpreters, whose scripts register and unregister exit handlers.
//!
//! The handlers are values of the language, compared with the language's own `==`, which may itself run scripts. So
//! they are kept in a [`HandlerList`] under the runtime's lock, and foreign code runs only while the lock is not held.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use exitstack::{CloseError, Handler, HandlerId, HandlerList, Interpreter};

/// A value of the language: an action, such as `print bye`.
type Value = Arc<str>;

#[derive(Clone)]
struct Script {
    at_exit: Arc<Mutex<HandlerList<Value>>>,
}

impl Script {
    fn list(&self) -> MutexGuard<'_, HandlerList<Value>> {
        self.at_exit.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does what the value says.
    fn call(&self, value: &str) -> Result<(), String> {
        let (verb, rest) = value.split_once(' ').unwrap_or((value, ""));
        match verb {
            "print" => println!("  {rest}"),
            "register" => drop(self.list().push(rest.into())),
            "unregister" => println!("  {} unregistered", self.unregister(rest)),
            _ => return Err(format!("`{value}`: no such verb")),
        }
        Ok(())
    }

    /// The language's `==`: ignores case, and a value that begins with `noisy` registers a handler when it is compared.
    fn equal(&self, a: &str, b: &str) -> bool {
        if a.starts_with("noisy") {
            let _ = self.call("register print (somebody compared me)");
        }
        a.eq_ignore_ascii_case(b)
    }

    /// Keeps ids across the comparisons, not indices: whatever a comparison does to the list, an id still means the
    /// same handler.
    fn unregister(&self, value: &str) -> usize {
        let ids: Vec<HandlerId> = self.list().iter().map(|(id, _)| id).collect();
        let mut removed = 0;
        for id in ids {
            let Some(candidate) = self.list().get(id).cloned() else { continue };
            if self.equal(&candidate, value) {
                let gone = self.list().remove(id); // dropped after the lock, as its drop is foreign too
                removed += usize::from(gone.is_some());
            }
        }
        removed
    }

    /// Runs the handlers, newest first, including those registered in the meantime. The last error is the result.
    fn finish(&self) -> Result<(), String> {
        let mut result = Ok(());
        loop {
            let newest = self.list().pop();
            let Some((_, value)) = newest else { return result };
            if let Err(error) = self.call(&value) {
                println!("  error: {error}");
                result = Err(error);
            }
        }
    }
}

fn start(name: &'static str, lines: &[&str]) -> Interpreter {
    println!("{name} starts");
    let script = Script { at_exit: Arc::default() };
    let interpreter = Interpreter::new(name);
    let at_end = script.clone();
    interpreter.stack().register(Handler::new(move || at_end.finish()).named("atexit"));
    for line in lines {
        script.call(line).unwrap_or_else(|error| println!("  error: {error}"));
    }
    interpreter
}

fn main() -> Result<(), CloseError> {
    let late = "register register print registered while the handlers run";
    let one = start("one", &["register print one is last", late, "register print never", "unregister PRINT Never"]);
    let late = "register print two ends";
    let two = start("two", &["register dance", "register noisy value", late, "unregister NOISY VALUE"]);

    println!("two ends; one is not touched");
    if let Err(failed) = two.finalize() {
        println!("  {failed:#}");
    }
    println!("one ends");
    one.finalize()
}
