//! What becomes of a handler that a stack does not accept.

use std::fmt;
use std::panic::Location;

/// The error of [`try_register`](crate::SharedExitStack::try_register), which hands back the handler that was refused.
///
/// A stack refuses handlers if its interpreter is finalized, or if it is the process stack after its last drain.
///
/// ```
/// use exitstack::Interpreter;
///
/// let plugin = Interpreter::new("plugin");
/// plugin.finalize()?;
/// let refused = plugin.stack().try_register(|| println!("too late")).unwrap_err();
/// assert!(refused.to_string().contains("refused"));
/// let handler = refused.into_handler();
/// handler(); // run it now instead
/// # Ok::<(), exitstack::CloseError>(())
/// ```
#[derive(Clone, thiserror::Error)]
#[error("exit handler registered at {location} was refused: the stack no longer accepts handlers")]
pub struct Refused<H> {
    handler: H,
    location: &'static Location<'static>,
}

impl<H> Refused<H> {
    pub(crate) fn new(handler: H, location: &'static Location<'static>) -> Self {
        Self { handler, location }
    }

    pub(crate) fn handler(&self) -> &H {
        &self.handler
    }

    #[cfg(feature = "async")]
    pub(crate) fn map<G>(self, unwrap: impl FnOnce(H) -> G) -> Refused<G> {
        Refused { handler: unwrap(self.handler), location: self.location }
    }

    /// Returns the handler, unchanged.
    ///
    /// ```
    /// let plugin = exitstack::Interpreter::new("plugin");
    /// plugin.finalize()?;
    /// let refused = plugin.stack().try_register(|| println!("too late")).unwrap_err();
    /// (refused.into_handler())();
    /// # Ok::<(), exitstack::CloseError>(())
    /// ```
    #[doc(alias = "into_inner")]
    pub fn into_handler(self) -> H {
        self.handler
    }

    /// Returns where the handler would have been registered.
    ///
    /// ```
    /// let plugin = exitstack::Interpreter::new("plugin");
    /// plugin.finalize()?;
    /// let refused = plugin.stack().try_register(|| println!("too late")).unwrap_err();
    /// assert_eq!(refused.location().file(), file!());
    /// # Ok::<(), exitstack::CloseError>(())
    /// ```
    pub fn location(&self) -> &'static Location<'static> {
        self.location
    }
}

impl<H> fmt::Debug for Refused<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Refused").field("location", &self.location).finish_non_exhaustive()
    }
}
