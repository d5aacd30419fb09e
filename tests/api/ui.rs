//! What must not compile, and the words with which it does not: `tests/ui`.

use std::process::Command;

/// The compiler whose words stand in `tests/ui/*.stderr`.
const RUSTC: &str = "rustc 1.95.";

// The compiler also lists what a feature adds.
#[cfg_attr(feature = "async", ignore = "the messages in tests/ui are those without features")]
#[test]
fn what_must_not_compile_does_not() {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let version = Command::new(rustc).arg("--version").output().expect("rustc runs");
    let version = String::from_utf8_lossy(&version.stdout).into_owned();
    if !version.starts_with(RUSTC) {
        println!("skipped: the messages in tests/ui are those of {RUSTC}x, this is {version}");
        return;
    }
    let cases = trybuild::TestCases::new();
    // Errors that come after type checking are found by a build only, and a case that passes makes trybuild build.
    cases.pass("tests/ui/pass/*.rs");
    cases.compile_fail("tests/ui/*.rs");
}
