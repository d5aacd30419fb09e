//! The inputs that a fuzz target was found to need: `fuzz/corpus`.

use std::fs;
use std::path::Path;

/// Calls `run` with each file of a target's corpus.
pub fn replay(target: &str, mut run: impl FnMut(&[u8])) {
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
