//! A tree of interpreters whose handlers change it, compared with a model. `tests/api` replays the corpus.
#![no_main]

#[allow(dead_code, reason = "the other targets' models")]
#[path = "../../tests/model/mod.rs"]
mod model;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| model::shared::run(bytes));
