//! Every algorithm's schedules are proven for 1 to 64 ranks and awkward lengths, and their costs are those of the
//! literature.

#[path = "common/proofs.rs"]
mod proofs;

use esync::Result;
use esync::collective::verify::{Flaw, Proof, canonical_tree, rank_order_tree, verify_schedules};
use esync::collective::{
    BinaryBlocks, Butterfly, Circulant, Collective, DoubleTree, Hierarchical, Kind, Operation, Order,
    ParameterServer, RecursiveDoubling, Ring, Schedule, Slice, Stage, Step, Topology, collective_by_name,
    part,
};
use proofs::{all_reduce, operations, prove, prove_all};

fn check_canonical(operation: Operation, n: usize, proof: &Proof) {
    let keeps_tree = operation.order != Order::Fastest || n.is_power_of_two();
    if operation.kind.reduces() && keeps_tree {
        assert!(proof.is_canonical(), "{operation}, {n} ranks: {proof}");
    }
    assert!(!operation.kind.reduces() || proof.is_uniform(), "{operation}, {n} ranks: {proof}");
}

#[test]
fn ring_is_proven() {
    prove_all(&Ring, |operation, _| has_no_given_order(operation), |_, _, _| {});
}

#[test]
fn butterfly_is_proven() {
    prove_all(
        &Butterfly,
        |operation, n| {
            operation.order != Order::Rank
                && match operation.kind {
                    Kind::AllReduce => true,
                    Kind::ReduceScatter => {
                        n.is_power_of_two() && (operation.order != Order::Canonical || n <= 2)
                    }
                    Kind::AllGather => n.is_power_of_two(),
                    Kind::Broadcast | Kind::Reduce => false,
                }
        },
        |operation, n, proof| match operation.kind {
            Kind::AllReduce => check_canonical(operation, n, proof),
            _ => assert!(!operation.kind.reduces() || proof.is_uniform()),
        },
    );
}

#[test]
fn binary_blocks_are_proven() {
    prove_all(
        &BinaryBlocks,
        |operation, _| operation.kind == Kind::AllReduce && operation.order != Order::Rank,
        |_, _, proof| assert!(proof.is_canonical(), "{proof}"),
    );
}

#[test]
fn recursive_doubling_is_proven() {
    prove_all(
        &RecursiveDoubling,
        |operation, _| operation.kind != Kind::ReduceScatter && operation.order != Order::Rank,
        check_canonical,
    );
}

fn has_no_given_order(operation: Operation) -> bool {
    !operation.kind.reduces() || matches!(operation.order, Order::Auto | Order::Fastest)
}

#[test]
fn circulant_is_proven() {
    prove_all(
        &Circulant,
        |operation, _| {
            has_no_given_order(operation) && !matches!(operation.kind, Kind::Broadcast | Kind::Reduce)
        },
        |_, _, _| {},
    );
}

#[test]
fn hierarchical_on_one_host_is_proven() {
    prove_all(
        &Hierarchical::default(),
        |operation, _| operation.order != Order::Rank,
        |operation, _, proof| assert!(!operation.kind.reduces() || proof.is_canonical(), "{proof}"),
    );
}

fn check_server(operation: Operation, proof: &Proof) {
    if operation.kind.reduces() {
        let expected = match operation.order {
            Order::Auto | Order::Canonical => proof.is_canonical(),
            Order::Rank | Order::Fastest => proof.is_rank_order(),
        };
        assert!(expected, "{operation}: {proof}");
    }
}

#[test]
fn parameter_server_is_proven() {
    prove_all(&ParameterServer::default(), |_, _| true, |operation, _, proof| check_server(operation, proof));
}

#[test]
fn few_servers_are_proven() {
    for servers in [1, 2, 5] {
        prove_all(
            &ParameterServer { servers: Some(servers) },
            |_, n| servers <= n,
            |operation, _, proof| check_server(operation, proof),
        );
    }
}

#[test]
fn wrong_numbers_of_servers_and_roots_are_refused_with_the_range() {
    for servers in [0, 5] {
        let server = ParameterServer { servers: Some(servers) };
        let Err(error) = server.schedule(&all_reduce(), &Topology::flat(4), 0, 8) else {
            panic!("{servers}")
        };
        assert!(error.to_string().contains("1 to 4"), "{error}");
    }
    for collective in [&Ring as &dyn Collective, &RecursiveDoubling, &ParameterServer::default()] {
        for kind in [Kind::Broadcast, Kind::Reduce] {
            let operation = Operation::new(kind).with_root(4);
            let Err(error) = collective.schedule(&operation, &Topology::flat(4), 0, 8) else {
                panic!("{operation}")
            };
            assert!(error.to_string().contains("4 ranks"), "{error}");
        }
    }
}

/// A refusal names the algorithm, the operation, and one that does it.
#[test]
fn refusals_name_what_to_use_instead() -> Result<()> {
    let names = [
        "ring",
        "butterfly",
        "binary-blocks",
        "recursive-doubling",
        "circulant",
        "double-tree",
        "hierarchical",
    ];
    for name in names {
        let collective = collective_by_name(name, None)?;
        let mut refused = 0;
        for operation in operations(6) {
            let Err(error) = collective.schedule(&operation, &Topology::flat(6), 0, 8) else { continue };
            refused += 1;
            let text = error.to_string();
            let (_, reason) = text.split_once(&operation.kind.to_string()).expect("the operation is named");
            let instead = reason.split('`').filter_map(|name| collective_by_name(name, None).ok());
            let does = |other: &dyn Collective| other.schedule(&operation, &Topology::flat(6), 0, 8).is_ok();
            assert!(instead.into_iter().any(|other| does(other.as_ref())), "{text}");
        }
        assert!(refused > 0, "{name}");
    }
    Ok(())
}

#[test]
fn trees_print_as_sums() {
    assert_eq!(canonical_tree(6).to_string(), "((0+1)+(2+3))+(4+5)");
    assert_eq!(canonical_tree(1).to_string(), "0");
    assert_eq!(canonical_tree(11).to_string(), "(((0+1)+(2+3))+((4+5)+(6+7)))+((8+9)+10)");
    assert_eq!(rank_order_tree(4).to_string(), "((0+1)+2)+3");
    let proof = prove(&Ring, all_reduce(), 3, 6);
    assert_eq!(proof.to_string(), "0..2: (0+1)+2\n2..4: (1+2)+0\n4..6: (2+0)+1");
    let reduce = Operation::new(Kind::Reduce).with_root(5);
    assert_eq!(prove(&RecursiveDoubling, reduce, 6, 1).tree(0), Some(canonical_tree(6)));
    assert_eq!(prove(&RecursiveDoubling, reduce, 6, 1).tree(1), None);
}

/// The verifier's own work does not grow with the length.
#[test]
fn long_vectors_are_proven_as_fast_as_short_ones() {
    let proof = prove(&BinaryBlocks, all_reduce(), 24, 1 << 40);
    assert!(proof.is_canonical());
}

#[test]
fn ring_costs_what_the_literature_says() {
    for n in 1..=64 {
        let len = 3 * n;
        let proof = prove(&Ring, all_reduce(), n, len);
        assert_eq!(proof.rounds(), 2 * (n - 1));
        for rank in proof.ranks() {
            assert_eq!((rank.sent, rank.received, rank.reduced), (6 * (n - 1), 6 * (n - 1), 3 * (n - 1)));
            assert_eq!(rank.stages, 2 * (n - 1));
            assert_eq!(rank.scratch, 3 * (n - 1).min(2), "two parts, and one where there is one round");
        }
        for kind in [Kind::ReduceScatter, Kind::AllGather] {
            let proof = prove(&Ring, Operation::new(kind), n, len);
            assert_eq!((proof.rounds(), proof.most_sent()), (n - 1, 3 * (n - 1)));
        }
        for kind in [Kind::Broadcast, Kind::Reduce] {
            let proof = prove(&Ring, Operation::new(kind).with_root(n / 2), n, len);
            let expected = if n == 1 { (0, 0) } else { (2 * n - 2, len) };
            assert_eq!((proof.rounds(), proof.most_sent()), expected, "{kind} over {n} ranks");
        }
    }
}

/// Part j is summed around the ring beginning at rank j and finished by rank j - 1.
#[test]
fn ring_follows_its_definition() -> Result<()> {
    let (n, len) = (5, 13);
    for rank in 0..n {
        let schedule = Ring.schedule(&all_reduce(), &Topology::flat(n), rank, len)?;
        for (round, stage) in schedule.stages.iter().take(n - 1).enumerate() {
            let sent = part(len, n, (rank + n - round) % n);
            assert_eq!(stage.steps[0], Step::Send { to: (rank + 1) % n, from: Slice::buffer(sent) });
        }
        let finished = part(len, n, (rank + 1) % n);
        assert_eq!(
            schedule.stages[n - 1].steps[0],
            Step::Send { to: (rank + 1) % n, from: Slice::buffer(finished) }
        );
    }
    Ok(())
}

#[test]
fn butterfly_costs_what_the_literature_says() {
    for k in 0..=6 {
        let n = 1 << k;
        let proof = prove(&Butterfly, all_reduce(), n, 3 * n);
        assert_eq!(proof.rounds(), 2 * k);
        for rank in proof.ranks() {
            assert_eq!((rank.sent, rank.received, rank.reduced), (6 * (n - 1), 6 * (n - 1), 3 * (n - 1)));
            assert!(rank.scratch <= 3 * n / 2);
        }
        for kind in [Kind::ReduceScatter, Kind::AllGather] {
            let proof = prove(&Butterfly, Operation::new(kind), n, 3 * n);
            assert_eq!((proof.rounds(), proof.most_sent()), (k, 3 * (n - 1)));
        }
    }
    for n in (3..=64_usize).filter(|n| !n.is_power_of_two()) {
        let k = n.ilog2() as usize;
        let (p, len) = (1 << k, 6 << k);
        let proof = prove(&Butterfly, all_reduce().with_order(Order::Fastest), n, len);
        assert!(proof.rounds() <= 2 * k + 3);
        assert_eq!(proof.most_sent(), 7 * len / 2 - 2 * len / p, "{n} ranks");
    }
}

/// The table of the bytes that a rank of each block sends.
#[test]
fn binary_blocks_cost_what_the_literature_says() {
    let sent_in_units = |n: usize| {
        let unit = 3;
        let len = unit << n.ilog2();
        let proof = prove(&BinaryBlocks, all_reduce(), n, len);
        proof.ranks().iter().map(|rank| rank.sent as f64 / unit as f64).collect::<Vec<_>>()
    };
    assert_eq!(sent_in_units(6), [7., 7., 7., 7., 6., 6.]);
    assert_eq!(sent_in_units(7), [7., 7., 7., 7., 8., 8., 4.]);
    assert_eq!(sent_in_units(11), [15., 15., 15., 15., 15., 15., 15., 15., 16., 16., 8.]);
    for n in 1..=64_usize {
        let largest = n.ilog2();
        let sizes: Vec<usize> =
            (0..=largest).rev().map(|log| 1 << log).filter(|size| n & size != 0).collect();
        let len = 2 << largest;
        let proof = prove(&BinaryBlocks, all_reduce(), n, len);
        let mut ranks = proof.ranks().iter();
        for (number, size) in sizes.iter().enumerate() {
            let hops = usize::from(number > 0) + usize::from(number + 1 < sizes.len());
            for rank in ranks.by_ref().take(*size) {
                let expected = 2 * (len - len / size) + hops * len / size;
                assert_eq!((rank.sent, rank.received), (expected, expected), "{n} ranks, block of {size}");
            }
        }
        let bound = 2 * largest as usize + 2 * (sizes.len() - 1);
        assert!(proof.rounds() <= bound, "{n} ranks: {} rounds of {bound}", proof.rounds());
    }
    assert_eq!(
        prove(&BinaryBlocks, all_reduce(), 6, 64).rounds(),
        4,
        "hops are hidden behind the larger block"
    );
}

#[test]
fn recursive_doubling_costs_what_the_literature_says() {
    for n in 1..=64_usize {
        let k = n.ilog2() as usize;
        let ceiling = n.next_power_of_two().ilog2() as usize;
        let proof = prove(&RecursiveDoubling, all_reduce(), n, 10);
        if n.is_power_of_two() {
            assert_eq!((proof.rounds(), proof.most_sent()), (k, 10 * k));
        } else {
            assert!(proof.rounds() <= k + n.count_ones() as usize, "{n} ranks: {}", proof.rounds());
            let logs: Vec<usize> = (0..=k).rev().filter(|log| n >> log & 1 == 1).collect();
            let hops = logs.windows(2).map(|pair| pair[1] + (1 << (pair[0] - pair[1])));
            assert_eq!(proof.most_sent(), 10 * hops.chain([k + 1]).max().unwrap_or(0));
            let folded = prove(&RecursiveDoubling, all_reduce().with_order(Order::Fastest), n, 10);
            assert_eq!((folded.rounds(), folded.most_sent()), (k + 2, 10 * (k + 1)));
        }
        for root in 0..n {
            for kind in [Kind::Broadcast, Kind::Reduce] {
                let proof = prove(&RecursiveDoubling, Operation::new(kind).with_root(root), n, 10);
                assert_eq!(proof.rounds(), ceiling, "{kind} to {root} over {n} ranks");
                assert!(kind == Kind::Broadcast || proof.is_canonical());
                assert_eq!(proof.ranks().iter().map(|rank| rank.sent).sum::<usize>(), 10 * (n - 1));
            }
        }
        let proof = prove(&RecursiveDoubling, Operation::new(Kind::AllGather), n, 3 * n);
        assert_eq!((proof.rounds(), proof.most_sent()), (ceiling, 3 * (n - 1)));
    }
}

#[test]
fn circulant_costs_what_the_literature_says() {
    for n in 1..=64_usize {
        let ceiling = n.next_power_of_two().ilog2() as usize;
        let len = 3 * n;
        let proof = prove(&Circulant, all_reduce(), n, len);
        assert_eq!(proof.rounds(), 2 * ceiling);
        for rank in proof.ranks() {
            assert_eq!((rank.sent, rank.received, rank.reduced), (6 * (n - 1), 6 * (n - 1), 3 * (n - 1)));
            assert_eq!(rank.stages, 2 * ceiling);
            assert!(rank.scratch <= len / 2 && rank.messages <= 4 * ceiling, "at most two ranges a message");
        }
        for kind in [Kind::ReduceScatter, Kind::AllGather] {
            let proof = prove(&Circulant, Operation::new(kind), n, len);
            assert_eq!((proof.rounds(), proof.most_sent()), (ceiling, 3 * (n - 1)));
        }
    }
}

#[test]
fn parameter_server_costs_what_the_literature_says() {
    for n in 2..=64 {
        let proof = prove(&ParameterServer::default(), all_reduce(), n, 3 * n);
        assert_eq!(proof.rounds(), 2);
        for rank in proof.ranks() {
            assert_eq!((rank.sent, rank.received, rank.reduced), (6 * (n - 1), 6 * (n - 1), 3 * (n - 1)));
            assert_eq!((rank.stages, rank.scratch), (2, 3 * (n - 1)));
        }
        let proof = prove(&ParameterServer::default(), Operation::new(Kind::ReduceScatter), n, 3 * n);
        assert_eq!((proof.rounds(), proof.most_sent()), (1, 3 * (n - 1)));
    }
    // Two servers among eight: 4 S for a server, S for the others.
    let proof = prove(&ParameterServer { servers: Some(2) }, all_reduce(), 8, 100);
    assert_eq!(
        proof.ranks().iter().map(|rank| rank.sent).collect::<Vec<_>>(),
        [400, 400, 100, 100, 100, 100, 100, 100]
    );
}

/// At step s rank r sends to r + s, so that no two ranks begin with the same server.
#[test]
fn pushes_and_pulls_are_staggered() -> Result<()> {
    let n = 7;
    let destinations = |stage: &Stage| -> Vec<usize> {
        stage
            .steps
            .iter()
            .filter_map(|step| if let Step::Send { to, .. } = step { Some(*to) } else { None })
            .collect()
    };
    for rank in 0..n {
        let schedule = ParameterServer::default().schedule(&all_reduce(), &Topology::flat(n), rank, 70)?;
        let expected: Vec<usize> = (1..n).map(|step| (rank + step) % n).collect();
        assert_eq!(
            schedule.stages.iter().map(destinations).collect::<Vec<_>>(),
            [expected.clone(), expected]
        );
    }
    Ok(())
}

/// None of the proofs holds because the verifier looks away: it misses every single step.
#[test]
fn no_step_of_any_algorithm_can_be_left_out() {
    let (n, len) = (6, 13);
    let collectives: [&dyn Collective; 8] = [
        &Ring,
        &Butterfly,
        &BinaryBlocks,
        &RecursiveDoubling,
        &ParameterServer::default(),
        &Circulant,
        &DoubleTree,
        &Hierarchical::default(),
    ];
    for collective in collectives {
        for n in [n, 4] {
            for operation in operations(n) {
                if collective.schedule(&operation, &Topology::flat(n), 0, len).is_err() {
                    continue;
                }
                let topology = Topology::flat(n);
                let schedule =
                    |rank| collective.schedule(&operation, &topology, rank, len).expect("not refused");
                let good: Vec<Schedule> = (0..n).map(schedule).collect();
                for rank in 0..n {
                    for stage in 0..good[rank].stages.len() {
                        for step in 0..good[rank].stages[stage].steps.len() {
                            let mut bad = good.clone();
                            let left_out = bad[rank].stages[stage].steps.remove(step);
                            let result = verify_schedules(&bad, &operation, len);
                            assert!(
                                result.is_err(),
                                "{}, {operation}: without {left_out}",
                                collective.name()
                            );
                            if !matches!(left_out, Step::Copy { .. } | Step::Reduce { .. }) {
                                assert!(matches!(result, Err(Flaw::Unmatched { .. })));
                            }
                        }
                    }
                }
            }
        }
    }
}
