//! Instructions counted by valgrind's callgrind: the same on every run, however busy the machine is. Each case runs
//! [`ROUNDS`] times, with a warm heap.

use std::hint::black_box;

use exitstack::ExitStack;
use exitstack_benches::{
    Boxes, empty, one_on_a_shared_stack, register_and_run, written_out_as_an_array, written_out_as_guards,
    written_out_on_a_stack,
};
use gungraun::{library_benchmark, library_benchmark_group, main};

/// `table.rs` divides by this number.
const ROUNDS: usize = 100;

#[inline]
fn rounds(work: impl Fn()) {
    for _ in 0..ROUNDS {
        work();
    }
}

fn warm(count: usize) -> usize {
    for _ in 0..3 {
        register_and_run::<Boxes>(count);
        register_and_run::<ExitStack>(count);
    }
    count
}

#[library_benchmark(setup = warm)]
#[bench::h1(1)]
#[bench::h3(3)]
#[bench::h8(8)]
fn stack(count: usize) {
    rounds(|| register_and_run::<ExitStack>(black_box(count)));
}

#[library_benchmark(setup = warm)]
#[bench::h1(1)]
#[bench::h3(3)]
#[bench::h8(8)]
fn boxes(count: usize) {
    rounds(|| register_and_run::<Boxes>(black_box(count)));
}

#[library_benchmark]
fn nothing() {
    rounds(|| {
        black_box(0);
    });
}

#[library_benchmark]
fn none() {
    rounds(empty);
}

#[library_benchmark]
fn one_shared() {
    rounds(|| one_on_a_shared_stack(black_box(1), black_box(2)));
}

#[library_benchmark]
fn three_on_a_stack() {
    rounds(|| written_out_on_a_stack(black_box(1), black_box(2)));
}

#[library_benchmark]
fn three_as_guards() {
    rounds(|| written_out_as_guards(black_box(1), black_box(2)));
}

#[library_benchmark]
fn three_as_an_array() {
    rounds(|| written_out_as_an_array(black_box(1), black_box(2)));
}

library_benchmark_group!(
    name = counts,
    benchmarks = [stack, boxes, nothing, none, one_shared, three_on_a_stack, three_as_guards, three_as_an_array]
);
main!(library_benchmark_groups = counts);
