//! Runs the fuzz targets on the interesting inputs found so far, `fuzz/corpus`, without a fuzzer.

use crate::inputs::replay;
use crate::model;
use crate::stderr::Capture;
use crate::support::{alone, routed};

#[test]
fn ops() {
    let _routed = routed();
    replay("ops", model::ops::run);
}

#[test]
fn shared() {
    let _routed = routed();
    replay("shared", model::shared::run);
}

/// A drain can be given up without a clock only in what is built with this flag.
#[cfg(fuzzing)]
#[test]
fn limits() {
    let _routed = routed();
    replay("limits", model::limits::run);
}

#[test]
fn report() {
    let _alone = alone();
    let mut capture = Capture::new();
    replay("report", |bytes| {
        let failure = model::report::decode(bytes);
        let written = capture.during(|| model::report::report(&failure));
        model::report::check(&failure, &written);
    });
}
