//! Code that must not compile, and the compiler's messages: `tests/ui`.

use crate::compiler::wrote_the_messages;

// With a feature enabled, the compiler's messages list more types.
#[cfg_attr(feature = "async", ignore = "the messages in tests/ui are those without features")]
#[test]
fn what_must_not_compile_does_not() {
    if !wrote_the_messages() {
        return;
    }
    let cases = trybuild::TestCases::new();
    // Some errors come after type checking and appear only in a full build; a case that passes makes trybuild do one.
    cases.pass("tests/ui/pass/*.rs");
    cases.compile_fail("tests/ui/*.rs");
}
