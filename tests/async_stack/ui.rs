//! What must not compile, and the words with which it does not.

use std::process::Command;

/// The compiler whose words stand in `tests/async_stack/ui/*.stderr`.
const RUSTC: &str = "rustc 1.95.";

#[test]
fn what_must_not_compile_does_not() {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let version = Command::new(rustc).arg("--version").output().expect("rustc runs");
    let version = String::from_utf8_lossy(&version.stdout).into_owned();
    if !version.starts_with(RUSTC) {
        println!("skipped: the messages are those of {RUSTC}x, this is {version}");
        return;
    }
    trybuild::TestCases::new().compile_fail("tests/async_stack/ui/*.rs");
}
