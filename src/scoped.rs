//! Stacks that are closed with the outcome of a body: [`scope`] and [`try_scope`].

use crate::error::{CloseError, Outcome, ScopeError};
use crate::stack::ExitStack;

/// Runs `body` with a new stack, then drains the stack with the outcome of the body.
///
/// This is Python's `with ExitStack() as stack:`. The outcome is success if the body returns `Ok`, and failure if it
/// returns `Err` or panics. The stack is closed automatically, so success needs no [`close()`](ExitStack::close).
///
/// | body | handlers | result |
/// | --- | --- | --- |
/// | `Ok(value)` | none failed | `Ok(value)` |
/// | `Ok(_)` | some failed or requested an exit status | `Err(E::from(close_error))` |
/// | `Err(error)` | | `Err(error)`; failures of handlers go to the [report hook](crate::report) |
/// | panics | | the panic propagates; failures of handlers go to the report hook |
///
/// If the body failed, exit statuses that handlers request are ignored.
///
/// **The error type has to be `From<CloseError>`**, as `Box<dyn Error>` and `anyhow::Error` are; `io::Error` and
/// `String` are not. For any other error type use [`try_scope`], or give an error type of your own a variant for the
/// cleanup: see [`guide::own_errors`](crate::guide::own_errors).
///
/// # Errors
///
/// Returns the error of the body, or that of the drain if the body succeeded. All handlers have run then.
///
/// # Panics
///
/// Panics if the body panics. All handlers have run then.
///
/// ```
/// use exitstack::scope;
/// use std::error::Error;
///
/// fn transfer(ok: bool) -> Result<(), Box<dyn Error>> {
///     scope(|stack| {
///         println!("begin");
///         stack.on_failure(|| println!("rollback"));
///         stack.on_success(|| println!("commit"));
///         if ok { Ok(()) } else { Err("insufficient funds".into()) }
///     })
/// }
/// assert!(transfer(true).is_ok());
/// assert_eq!(transfer(false).unwrap_err().to_string(), "insufficient funds");
/// ```
#[doc(alias = "with")]
#[doc(alias = "transaction")]
pub fn scope<'a, T, E>(body: impl FnOnce(&ExitStack<'a>) -> Result<T, E>) -> Result<T, E>
where
    E: From<CloseError>, // for an error that is not, such as `io::Error`, there is `try_scope`
{
    // Where the bound is not met, the compiler shows its line, with the comment.
    let mut stack = ExitStack::new();
    let value = body(&stack)?; // on an error or a panic the stack is dropped, with failure as the outcome
    stack.close()?;
    Ok(value)
}

/// Runs `body` with a new stack as [`scope`] does, but returns both errors if the body and its cleanup fail.
///
/// This asks nothing of the error type, and reports nothing unless the body panics.
///
/// | body | handlers | result |
/// | --- | --- | --- |
/// | `Ok(value)` | none failed | `Ok(value)` |
/// | `Ok(_)` | some failed or requested an exit status | `Err(ScopeError::Cleanup(close_error))` |
/// | `Err(error)` | none failed | `Err(ScopeError::Work(error))` |
/// | `Err(error)` | some failed or requested an exit status | `Err(ScopeError::Both(error, close_error))` |
/// | panics | | the panic propagates; failures of handlers go to the [report hook](crate::report) |
///
/// # Errors
///
/// Returns the error of the body, that of the drain, or both. All handlers have run then.
///
/// # Panics
///
/// Panics if the body panics. All handlers have run then.
///
/// ```
/// use exitstack::{ScopeError, try_scope};
///
/// let result = try_scope(|stack| {
///     stack.register(|| Err("disk full"));
///     Ok::<_, std::num::ParseIntError>("7".parse::<u32>()?)
/// });
/// assert!(matches!(result, Err(ScopeError::Cleanup(_))));
/// ```
pub fn try_scope<'a, T, E>(body: impl FnOnce(&ExitStack<'a>) -> Result<T, E>) -> Result<T, ScopeError<E>> {
    let mut stack = ExitStack::new();
    match body(&stack) {
        Ok(value) => stack.close().map(|()| value).map_err(ScopeError::Cleanup),
        Err(work) => Err(match stack.close_with(Outcome::Failure) {
            Ok(()) => ScopeError::Work(work),
            Err(cleanup) => ScopeError::Both(work, cleanup),
        }),
    }
}
