//! What must not compile, and the words with which it does not: `tests/ui`.

use crate::compiler::wrote_the_messages;

// The compiler also lists what a feature adds.
#[cfg_attr(feature = "async", ignore = "the messages in tests/ui are those without features")]
#[test]
fn what_must_not_compile_does_not() {
    if !wrote_the_messages() {
        return;
    }
    let cases = trybuild::TestCases::new();
    // Errors that come after type checking are found by a build only, and a case that passes makes trybuild build.
    cases.pass("tests/ui/pass/*.rs");
    cases.compile_fail("tests/ui/*.rs");
}
