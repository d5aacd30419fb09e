//! Drains with handlers that are given up, compared with a model. There is no clock: a handler gives itself up. `tests/api`
//! replays the corpus if it is built with `--cfg fuzzing`, too.
#![no_main]

#[allow(dead_code, reason = "the other targets' models")]
#[path = "../../tests/model/mod.rs"]
mod model;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    model::limits::run(bytes);
    assert!(exitstack::shutdown::running().is_empty(), "something still runs");
});
