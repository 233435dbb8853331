//! Proves schedules of every operation, for one layout of hosts or for 1 to 64 ranks on one.
#![allow(dead_code, reason = "each test program uses its own part")]

use esync::collective::verify::{Flaw, Proof, verify};
use esync::collective::{Collective, Kind, Operation, Order, Topology};
use std::collections::HashSet;

pub(crate) const ORDERS: [Order; 4] = [Order::Auto, Order::Canonical, Order::Rank, Order::Fastest];

/// 0 and a few, around the number of ranks, and a large length.
pub(crate) fn lengths(n: usize) -> Vec<usize> {
    vec![0, 1, 3, n - 1, n, 2 * n + 3, 64, 1_000_000]
}

/// Every operation that differs for some algorithm: three roots where there is one.
pub(crate) fn operations(n: usize) -> Vec<Operation> {
    let mut operations = Vec::new();
    for kind in Kind::ALL {
        let orders = if kind.reduces() { &ORDERS[..] } else { &ORDERS[..1] };
        let rooted = matches!(kind, Kind::Broadcast | Kind::Reduce);
        let roots = if rooted { HashSet::from([0, n / 2, n - 1]) } else { HashSet::from([0]) };
        for order in orders {
            operations
                .extend(roots.iter().map(|root| Operation::new(kind).with_order(*order).with_root(*root)));
        }
    }
    operations
}

pub(crate) fn all_reduce() -> Operation {
    Operation::new(Kind::AllReduce)
}

#[track_caller]
pub(crate) fn prove(collective: &dyn Collective, operation: Operation, n: usize, len: usize) -> Proof {
    prove_on(collective, operation, &Topology::flat(n), len)
}

#[track_caller]
pub(crate) fn prove_on(
    collective: &dyn Collective,
    operation: Operation,
    topology: &Topology,
    len: usize,
) -> Proof {
    verify(collective, &operation, topology, len).unwrap_or_else(|flaw| {
        panic!("{}, {operation}, {topology:?}, {len} elements: {flaw}", collective.name());
    })
}

/// Proves everything that the algorithm accepts; `accepts` says what that must be, `check` looks at each proof.
pub(crate) fn prove_all(
    collective: &dyn Collective,
    accepts: impl Fn(Operation, usize) -> bool,
    check: impl Fn(Operation, usize, &Proof),
) {
    for n in 1..=64 {
        let topology = Topology::flat(n);
        prove_all_on(
            collective,
            &topology,
            |operation| accepts(operation, n),
            |operation, proof| check(operation, n, proof),
        );
    }
}

/// The same on one layout of hosts.
pub(crate) fn prove_all_on(
    collective: &dyn Collective,
    topology: &Topology,
    accepts: impl Fn(Operation) -> bool,
    check: impl Fn(Operation, &Proof),
) {
    let n = topology.size();
    for operation in operations(n) {
        for len in lengths(n) {
            if accepts(operation) {
                check(operation, &prove_on(collective, operation, topology, len));
                continue;
            }
            match verify(collective, &operation, topology, len) {
                Err(Flaw::Refused(error)) => {
                    assert!(error.to_string().contains(collective.name()), "{error}")
                }
                other => panic!("{operation} over {topology:?} should be refused: {other:?}"),
            }
        }
    }
}
