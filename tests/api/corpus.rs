//! Runs the fuzz targets on the interesting inputs found so far, `fuzz/corpus`, without a fuzzer.

use std::fs;
use std::path::Path;

use crate::model;
use crate::stderr::Capture;
use crate::support::{alone, routed};

/// Calls `run` with the contents of each file in a target's corpus.
fn replay(target: &str, mut run: impl FnMut(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut count = 0;
    for file in fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
        let path = file.unwrap().path();
        println!("{}", path.display());
        run(&fs::read(path).unwrap());
        count += 1;
    }
    println!("replayed {count} inputs of `{target}`");
    assert!(count >= 20, "the corpus of `{target}` is not here");
}

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
