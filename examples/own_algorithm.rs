//! An algorithm of your own is a function that returns a schedule. The verifier proves it, the executor runs it.
//!
//! This one is a star: rank 0 receives every vector, adds them in rank order, and sends the sum back.
//!
//! `cargo run --release --no-default-features --example own_algorithm`

use esync::collective::verify::verify;
use esync::collective::{
    Collective, Communicator, CommunicatorOptions, Kind, Operation, Schedule, Slice, Step, Topology,
};
use esync::reduce::Operator;
use esync::transport::threads;
use std::sync::Arc;

struct Star;

impl Collective for Star {
    fn name(&self) -> &'static str {
        "star"
    }

    fn schedule(
        &self,
        operation: &Operation,
        topology: &Topology,
        rank: usize,
        len: usize,
    ) -> esync::Result<Schedule> {
        if operation.kind != Kind::AllReduce {
            return Err(self.refuse(operation, "a star is drawn for all-reduce only"));
        }
        let mut schedule = Schedule::empty();
        let whole = || Slice::buffer(0..len);
        if rank > 0 {
            schedule.push([Step::Send { to: 0, from: whole() }]);
            schedule.push([Step::Recv { from: 0, into: whole() }]);
            return Ok(schedule);
        }
        // Everything is received at once; each addition runs as soon as its vector has arrived.
        let mut steps = Vec::new();
        for from in 1..topology.size() {
            let scratch = schedule.add_scratch(len);
            let theirs = Slice::scratch(scratch, 0..len);
            steps.push(Step::Recv { from, into: theirs.clone() });
            steps.push(Step::Reduce { into: whole(), left: whole(), right: theirs });
        }
        schedule.push(steps);
        schedule.push((1..topology.size()).map(|to| Step::Send { to, from: whole() }));
        Ok(schedule)
    }
}

pub(crate) fn main() -> esync::Result<()> {
    for ranks in 1..=16 {
        let proof = verify(&Star, &Operation::new(Kind::AllReduce), &Topology::flat(ranks), 100)
            .unwrap_or_else(|flaw| panic!("the star is wrong for {ranks} ranks: {flaw}"));
        assert!(proof.is_rank_order());
    }
    println!("proved for 1 to 16 ranks: every element is summed once, from left to right");

    let options = CommunicatorOptions { collective: Arc::new(Star), ..CommunicatorOptions::default() };
    let sums = threads::run(3, |transport| {
        let mut communicator = Communicator::new(Arc::new(transport), options.clone())?;
        let mut vector = vec![1 + communicator.rank() as i64; 5];
        communicator.all_reduce(&mut vector, Operator::Sum)?;
        Ok(vector)
    });
    for sum in sums {
        assert_eq!(sum?, [6; 5]);
    }
    println!("run on 3 ranks: 1 + 2 + 3 = 6 everywhere");
    Ok(())
}
