//! How errors are shown: on one line, with their causes.

use core::error::Error;
use core::fmt::{self, Display, Write};

/// The maximum number of causes that are shown: an error may be its own source.
const CAUSES: usize = 128;

/// An error that is shown with the whole chain of its causes, on one line.
pub(crate) struct Causes<'e> {
    pub(crate) error: &'e (dyn Error + 'static),
    /// Writes the text of one error, without its causes.
    pub(crate) show: fn(&dyn Error, &mut OneLine<'_>) -> fmt::Result,
}

impl Display for Causes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = OneLine(f);
        (self.show)(self.error, &mut line)?;
        let mut causes = 0;
        let mut next = self.error.source();
        while let Some(cause) = next {
            line.write_str(": ")?;
            if causes == CAUSES {
                return line.write_str("...");
            }
            (self.show)(cause, &mut line)?;
            causes += 1;
            next = cause.source();
        }
        Ok(())
    }
}

/// A writer that keeps text on one line: it escapes control characters and those that reorder or break lines, so that
/// no name or message can forge another line or rewrite a terminal.
pub(crate) struct OneLine<'w>(pub(crate) &'w mut dyn Write);

impl Write for OneLine<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            let unruly = c.is_control()
                || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
            if unruly {
                write!(self.0, "{}", c.escape_default())?;
            } else {
                self.0.write_char(c)?;
            }
        }
        Ok(())
    }
}
