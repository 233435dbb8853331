//! The kernels of [`reduce::cuda`](crate::reduce::cuda): whether they are right, and how fast they are.
//!
//! [`check`] runs each kernel on random and on awkward numbers, at awkward lengths and addresses, and compares with the
//! host's functions bit for bit and with sums in f64. [`bandwidth`] times each kernel beside the device's own copy.

mod arena;
mod bandwidth;
mod machine;
mod numbers;
mod reductions;
mod updates;
mod wires;

pub use bandwidth::{Bandwidth, bandwidth};
pub use machine::{GpuMachine, Machine, Memory};

use crate::error::Result;
use arena::Tester;

/// What was checked of one kernel. A kernel that is wrong is an error instead.
#[derive(Debug, Clone, PartialEq)]
pub struct Checked {
    /// The kernel and what it was compiled for: `reduce f32 sum`.
    pub kernel: String,
    /// How often it was started.
    pub starts: usize,
    /// The largest error beside f64, in units of what rounding allows; none if only bits were compared.
    pub largest_error: Option<f64>,
}

/// Checks every kernel with vectors of these lengths, at each address that an element can have within 16 bytes.
///
/// Outputs are poisoned before and guarded on both sides: what is not written, or written beside, is found. Every result
/// must have the bits of the host's function, but for the bits of a NaN where [`Launch`](crate::reduce::cuda::Launch) says so,
/// and results of ordinary numbers must lie as near to f64 as rounding allows.
///
/// # Errors
/// `Internal` at the first result that is wrong, with the kernel, the length, the addresses and the element; else those of
/// the machine.
pub fn check<M: Machine>(machine: &M, lengths: &[usize]) -> Result<Vec<Checked>> {
    let mut tester = Tester::new(machine);
    let mut all = Vec::new();
    all.extend(reductions::check(&mut tester, lengths)?);
    all.extend(updates::check(&mut tester, lengths)?);
    all.extend(wires::check(&mut tester, lengths)?);
    Ok(all)
}
