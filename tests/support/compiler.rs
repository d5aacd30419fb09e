//! The compiler whose messages the `ui` tests compare with.

use std::process::Command;

const RUSTC: &str = "rustc 1.95.";

/// Whether the messages in `tests/ui` and `tests/async_stack/ui` are those of the compiler in use; says so if not.
pub fn wrote_the_messages() -> bool {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let version = Command::new(rustc).arg("--version").output().expect("rustc runs");
    let version = String::from_utf8_lossy(&version.stdout).into_owned();
    let wrote_them = version.starts_with(RUSTC);
    if !wrote_them {
        println!("skipped: the expected messages are those of {RUSTC}x, this is {version}");
    }
    wrote_them
}
