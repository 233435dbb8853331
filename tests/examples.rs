//! The examples are programs that check themselves: here they run.

#[path = "../examples/all_reduce.rs"]
mod all_reduce;
#[path = "../examples/own_algorithm.rs"]
mod own_algorithm;
#[cfg(feature = "torch")]
#[path = "../examples/tch_loop.rs"]
mod tch_loop;

#[test]
fn all_reduce_runs() {
    all_reduce::main().unwrap();
}

#[test]
fn own_algorithm_is_proved_and_runs() {
    own_algorithm::main().unwrap();
}

#[cfg(feature = "torch")]
#[test]
fn a_tch_loop_learns() {
    tch_loop::main().unwrap();
}
