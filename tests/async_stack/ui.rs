//! Code that must not compile, and the compiler's messages.

use crate::compiler::wrote_the_messages;

#[test]
fn what_must_not_compile_does_not() {
    if !wrote_the_messages() {
        return;
    }
    trybuild::TestCases::new().compile_fail("tests/async_stack/ui/*.rs");
}
