//! Futures that run in an interpreter.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use pin_project_lite::pin_project;

use super::Interpreter;

pin_project! {
    /// A future that runs in an interpreter, returned by [`Interpreter::instrument`].
    ///
    /// ```
    /// use exitstack::{Instrumented, Interpreter};
    ///
    /// let plugin = Interpreter::new("plugin-a");
    /// let future: Instrumented<_> = plugin.instrument(async { exitstack::register(|| println!("done")) });
    /// pollster::block_on(future);
    /// assert_eq!(plugin.stack().pending().len(), 1);
    /// ```
    #[must_use = "futures do nothing unless polled"]
    pub struct Instrumented<F> {
        #[pin]
        future: F,
        // Dropped after the future, whose locals may be what the handlers clean up.
        interpreter: Interpreter,
    }
}

impl<F> Instrumented<F> {
    pub(super) fn new(interpreter: Interpreter, future: F) -> Self {
        Self { future, interpreter }
    }
}

impl<F: Future> Future for Instrumented<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let future = this.future;
        this.interpreter.enter(|| future.poll(context))
    }
}

impl<F> fmt::Debug for Instrumented<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Instrumented").field("interpreter", &self.interpreter).finish_non_exhaustive()
    }
}
