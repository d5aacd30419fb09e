//! The default report: whatever name, path and message a failure has, the report is one line, and nothing in it can
//! rewrite the terminal or pass for another line.

use std::fmt;
use std::panic::resume_unwind;

use exitstack::{Handler, Interpreter};

/// A failure to be reported.
#[derive(Clone, Debug)]
pub struct Failure {
    pub name: Option<String>,
    pub interpreter: Option<String>,
    pub message: String,
    /// The source of the handler's error, if any.
    pub cause: Option<String>,
    pub end: End,
}

/// How the handler ends, and its message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Fails,
    Panics,
    /// Fails with an error whose `Display` returns an error halfway.
    FormatFails,
    /// Fails with an error whose `Display` panics halfway.
    FormatPanics,
}

pub fn decode(bytes: &[u8]) -> Failure {
    let (kind, texts) = bytes.split_first().map_or((0, bytes), |(first, rest)| (*first, rest));
    let texts = &texts[..texts.len().min(3000)]; // so that the report fits in a pipe
    let texts = String::from_utf8_lossy(texts);
    let mut texts = texts.splitn(4, '|').map(str::to_owned);
    Failure {
        message: texts.next().unwrap_or_default(),
        name: texts.next().filter(|_| kind & 4 != 0),
        interpreter: texts.next().filter(|_| kind & 8 != 0),
        cause: texts.next().filter(|_| kind & 16 != 0),
        end: [End::Fails, End::Panics, End::FormatFails, End::FormatPanics][usize::from(kind & 3)],
    }
}

#[derive(Debug)]
struct Message {
    text: String,
    end: End,
    cause: Option<Box<Message>>,
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)?;
        match self.end {
            End::FormatFails => Err(fmt::Error),
            End::FormatPanics => resume_unwind(Box::new(())),
            End::Fails | End::Panics => Ok(()),
        }
    }
}

impl std::error::Error for Message {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.cause.as_deref().map(|cause| cause as _)
    }
}

/// Makes a handler fail where only the report hook learns of it. The default hook must be installed.
pub fn report(failure: &Failure) {
    let Failure { name, interpreter, message, cause, end } = failure.clone();
    let cause = cause.map(|text| Box::new(Message { text, end: End::Fails, cause: None }));
    let handler = Handler::new(move || match end {
        End::Panics => resume_unwind(Box::new(message)),
        _ => Err(Message { text: message, end, cause }),
    });
    let handler = if let Some(name) = name { handler.named(name) } else { handler };
    match interpreter {
        Some(interpreter) => {
            Interpreter::new(interpreter).stack().register(handler);
        }
        None => {
            exitstack::ExitStack::new().register(handler);
        }
    }
}

/// Whether this character has no place in a line of text.
fn unruly(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Checks what was written for `failure`.
pub fn check(failure: &Failure, written: &[u8]) {
    let text = std::str::from_utf8(written).expect("a report is text");
    let line = text.strip_suffix('\n').expect("a report ends with a newline");
    assert!(!line.contains(unruly), "unruly characters in {line:?}, of {failure:?}");
    let cause = failure.cause.as_ref().filter(|_| failure.end != End::Panics).map(|cause| format!(": {cause}"));
    let parts = [&failure.name, &failure.interpreter, &Some(failure.message.clone()), &cause];
    for part in parts.into_iter().flatten() {
        assert!(part.contains(unruly) || line.contains(part.as_str()), "{part:?} is not in {line:?}");
    }
    assert!(line.contains("registered at "), "no location in {line:?}");
    if failure.interpreter.is_some() {
        assert!(line.starts_with("process > "), "no path in {line:?}");
    }
    let word = if failure.end == End::Panics { "panicked: " } else { "failed: " };
    assert!(line.contains(word), "no word of what happened in {line:?}");
}
