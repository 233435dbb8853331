//! All-reduce in ten lines: four ranks as threads add their vectors.
//!
//! `cargo run --release --no-default-features --example all_reduce` prints `every rank has [6.0, 4.0]`.

use esync::collective::{Communicator, CommunicatorOptions};
use esync::reduce::Operator;
use esync::transport::threads;
use std::sync::Arc;

pub(crate) fn main() -> esync::Result<()> {
    let sums = threads::run(4, |transport| {
        let mut communicator = Communicator::new(Arc::new(transport), CommunicatorOptions::default())?;
        let mut vector = [communicator.rank() as f32, 1.0];
        communicator.all_reduce(&mut vector, Operator::Sum)?;
        Ok(vector)
    });
    for sum in sums {
        assert_eq!(sum?, [6.0, 4.0]);
    }
    println!("every rank has [6.0, 4.0]");
    Ok(())
}
