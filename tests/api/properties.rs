//! Random operations, compared with the models. `PROPTEST_CASES` sets the number of cases.

use proptest::collection::vec;
use proptest::prelude::*;

use crate::model;
use crate::support::routed;

proptest! {
    #[test]
    fn a_stack_does_what_its_model_does(bytes in vec(any::<u8>(), 0..400)) {
        let _routed = routed();
        model::ops::run(&bytes);
    }

    #[test]
    fn interpreters_do_what_their_model_does(bytes in vec(any::<u8>(), 0..400)) {
        let _routed = routed();
        model::shared::run(&bytes);
    }
}
