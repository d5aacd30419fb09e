//! Async stacks and scopes, polled by hand, compared with a model; `tests/async_stack` replays the corpus.
#![no_main]

#[allow(dead_code, reason = "the other targets' models")]
#[path = "../../tests/model/mod.rs"]
mod model;
#[path = "../../tests/model/async_stacks.rs"]
mod modelled;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| modelled::run(bytes));
