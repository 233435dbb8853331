//! The kernels' twins (`twin.rs`) against the host's functions and against f64, and far beyond 2³¹ elements (`far.rs`).

mod device;
mod far;
#[path = "../common/process.rs"]
mod process;
#[path = "../common/software_device.rs"]
mod software_device;
mod twin;

use esync::bench::kernels::check;
use twin::{Twin, compiler};

/// Around every boundary: of an access, a block of the format `int8`, a block of threads.
const LENGTHS: [usize; 17] = [0, 1, 2, 3, 5, 8, 15, 16, 17, 33, 255, 256, 257, 511, 1000, 1025, 2049];

#[test]
fn every_kernel_has_the_hosts_bits() {
    // Grids of at most 8 blocks: some threads go on by the number of all threads.
    let Some(twin) = twin::start(1) else { return };
    let checked = check(&twin, &LENGTHS).unwrap_or_else(|error| panic!("{error}"));
    for checked in &checked {
        println!("{checked:?}");
        assert!(checked.starts > 0 && checked.largest_error.is_none_or(|error| error <= 1.0), "{checked:?}");
    }
    let compared = checked.iter().filter(|checked| checked.largest_error.is_some_and(|error| error > 0.0));
    assert!(compared.count() > 30, "results are compared with f64");
}

/// A fault that is planted in the sources must be found, or the comparison is worth nothing.
#[test]
fn a_planted_fault_is_found() {
    let Some(compiler) = compiler() else { return };
    type Change = fn(String) -> String;
    let faults: [(&str, Change); 3] = [
        ("the tail is forgotten", |source| source.replace("if (thread < ends)", "if (thread + 1 < ends)")),
        ("a group too many", |source| source.replace("group < groups;", "group <= groups;")),
        ("a NaN keeps the machine's bits", |source| {
            source.replace("return is_nan(value) ? canonical_nan<T>() : value;", "return value;")
        }),
    ];
    for (fault, change) in faults {
        let wrong = check(&Twin::with_change(compiler.clone(), 1, change), &LENGTHS[..9]);
        let error = wrong.expect_err(fault).to_string();
        assert!(error.contains("kernel reduce f32 sum"), "{fault}: {error}");
    }
}
