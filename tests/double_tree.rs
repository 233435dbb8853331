//! The double tree's schedules are proven for 1 to 64 ranks and any number of segments, and cost what they should.

#[path = "common/proofs.rs"]
mod proofs;

use esync::collective::double_tree::segments;
use esync::collective::{Collective, DoubleTree, Kind, Operation, Order, Topology};
use proofs::{all_reduce, prove, prove_all};

fn height(n: usize) -> usize {
    n.next_power_of_two().ilog2() as usize
}

#[test]
fn double_tree_is_proven() {
    prove_all(
        &DoubleTree,
        |operation, _| match operation.kind {
            Kind::AllReduce | Kind::Reduce => matches!(operation.order, Order::Auto | Order::Fastest),
            Kind::Broadcast => true,
            Kind::ReduceScatter | Kind::AllGather => false,
        },
        |_, _, proof| assert!(proof.trees().len() <= 2, "one tree for each half: {proof}"),
    );
}

#[test]
fn every_root_and_number_of_segments_is_proven() {
    for n in [2, 3, 6, 7, 17, 32] {
        for len in [5, 40_000, 333_333, 1 << 24] {
            for root in 0..n {
                for kind in [Kind::Broadcast, Kind::Reduce] {
                    prove(&DoubleTree, Operation::new(kind).with_root(root), n, len);
                }
            }
            prove(&DoubleTree, all_reduce(), n, len);
        }
    }
}

/// 2S and 2h + g − 1 rounds for an all-reduce, S and h + g − 1 for half of it.
#[test]
fn bandwidth_is_full_and_latency_logarithmic() {
    for n in 2..=64 {
        for len in [40, 1 << 17, 1 << 20] {
            let segments = segments(n, len);
            let proof = prove(&DoubleTree, all_reduce(), n, len);
            for (rank, cost) in proof.ranks().iter().enumerate() {
                assert!(cost.sent <= 2 * len && cost.received <= 2 * len, "rank {rank} of {n}: {cost:?}");
                assert!(cost.reduced <= len && cost.scratch <= 2 * len.div_ceil(segments) + 4, "{cost:?}");
            }
            assert!(proof.rounds() < 2 * height(n) + segments, "{n} ranks: {} rounds", proof.rounds());
            for kind in [Kind::Broadcast, Kind::Reduce] {
                let proof = prove(&DoubleTree, Operation::new(kind).with_root(n / 2), n, len);
                for (rank, cost) in proof.ranks().iter().enumerate() {
                    assert!(cost.sent <= len && cost.received <= len, "{kind}, rank {rank} of {n}: {cost:?}");
                }
                assert!(
                    proof.rounds() < height(n) + segments,
                    "{kind}, {n} ranks: {} rounds",
                    proof.rounds()
                );
            }
        }
    }
}

#[test]
fn orders_that_it_cannot_keep_are_refused() {
    let operation = all_reduce().with_order(Order::Canonical);
    let Err(error) = DoubleTree.schedule(&operation, &Topology::flat(4), 0, 8) else { panic!("not refused") };
    assert!(
        error.to_string().starts_with("collective `double-tree` refuses all-reduce in order `canonical`"),
        "{error}"
    );
}
