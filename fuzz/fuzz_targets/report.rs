//! The default report of any failure is one line without unruly characters. `tests/api` replays the corpus.
#![no_main]

#[allow(dead_code, reason = "the other targets' models")]
#[path = "../../tests/model/mod.rs"]
mod model;
#[path = "../../tests/support/stderr.rs"]
mod stderr;

use std::cell::RefCell;

thread_local!(static CAPTURE: RefCell<stderr::Capture> = RefCell::new(stderr::Capture::new()));

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let failure = model::report::decode(bytes);
    let written = CAPTURE.with_borrow_mut(|capture| capture.during(|| model::report::report(&failure)));
    model::report::check(&failure, &written);
});
