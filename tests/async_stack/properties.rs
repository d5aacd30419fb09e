//! Random operations, and those of the fuzz target's corpus, compared with the model. `PROPTEST_CASES` sets how many.

use proptest::collection::vec;
use proptest::prelude::*;

use crate::inputs::replay;
use crate::modelled;
use crate::support::install_hook;

proptest! {
    #[test]
    fn the_stack_does_what_the_model_does(bytes in vec(any::<u8>(), 0..400)) {
        install_hook();
        modelled::run(&bytes);
    }
}

#[test]
fn corpus() {
    install_hook();
    replay("async_stacks", modelled::run);
}
