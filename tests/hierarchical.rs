//! Schedules over hosts with several ranks: proven for many layouts, with the fewest bytes between hosts.

#[path = "common/proofs.rs"]
mod proofs;

use esync::Result;
use esync::collective::verify::{Tree, canonical_tree, verify};
use esync::collective::{
    COLLECTIVE_NAMES, Collective, Hierarchical, Kind, Operation, Order, Schedule, Step, Topology,
    collective_by_name, part,
};
use proofs::{all_reduce, prove_all_on, prove_on};
use proptest::prelude::*;

/// Hosts of these sizes, one after the other.
fn consecutive(sizes: &[usize]) -> Topology {
    let hosts = sizes.iter().enumerate().flat_map(|(host, size)| vec![host as u32; *size]);
    Topology::with_hosts(hosts.collect())
}

/// Hosts of these sizes, whose ranks take turns until a host has no more.
fn interleaved(sizes: &[usize]) -> Topology {
    let largest = sizes.iter().max().copied().unwrap_or(0);
    let turn = |turn: usize| sizes.iter().enumerate().filter(move |(_, size)| turn < **size);
    let hosts = (0..largest).flat_map(|number| turn(number).map(|(host, _)| host as u32));
    Topology::with_hosts(hosts.collect())
}

/// 1 to 6 hosts, equal and unequal.
fn sizes() -> Vec<Vec<usize>> {
    let mut sizes: Vec<Vec<usize>> = Vec::new();
    for hosts in 1..=6 {
        sizes.extend((1..=4).map(|ranks| vec![ranks; hosts]));
    }
    let unequal: [&[usize]; 13] = [
        &[1, 2],
        &[3, 1],
        &[8, 1],
        &[4, 3],
        &[2, 3, 4],
        &[4, 2, 1],
        &[4, 2, 2],
        &[2, 2, 4],
        &[8, 4, 2, 1],
        &[5, 1, 7, 2],
        &[3, 3, 2, 2, 1],
        &[1, 6, 2, 4, 3, 5],
        &[16, 8, 4, 2, 2, 1],
    ];
    sizes.extend(unequal.map(<[usize]>::to_vec));
    sizes
}

/// The sets of ranks that some inner node or leaf of a tree sums.
fn sums(tree: &Tree, sets: &mut Vec<Vec<usize>>) -> Vec<usize> {
    let set = match tree {
        Tree::Leaf(rank) => vec![*rank],
        Tree::Sum(left, right) => [sums(left, sets), sums(right, sets)].concat(),
    };
    sets.push(set.clone());
    set
}

/// Whether every host is a block of the canonical tree, by its definition.
fn has_canonical_hosts(topology: &Topology) -> bool {
    let mut sets = Vec::new();
    sums(&canonical_tree(topology.size()), &mut sets);
    topology.ranks_by_host().iter().all(|ranks| sets.contains(ranks))
}

fn check_layout(topology: &Topology) {
    let canonical = has_canonical_hosts(topology);
    prove_all_on(
        &Hierarchical::default(),
        topology,
        |operation| match operation.order {
            Order::Canonical => canonical || !operation.kind.reduces(),
            Order::Rank => !operation.kind.reduces(),
            Order::Auto | Order::Fastest => true,
        },
        |operation, proof| {
            if operation.kind.reduces() && operation.order == Order::Auto && canonical {
                assert!(proof.is_canonical(), "{operation} over {topology:?}: {proof}");
            }
        },
    );
}

#[test]
fn layouts_of_consecutive_ranks_are_proven() {
    sizes().iter().for_each(|sizes| check_layout(&consecutive(sizes)));
}

#[test]
fn layouts_of_interleaved_ranks_are_proven() {
    sizes().iter().for_each(|sizes| check_layout(&interleaved(sizes)));
}

#[test]
fn many_hosts_are_proven() {
    for sizes in
        [vec![1; 64], vec![4; 16], vec![2; 32], vec![3; 9], vec![5; 12], vec![2, 1, 2, 1, 2, 1, 2, 1, 2, 1]]
    {
        check_layout(&consecutive(&sizes));
    }
}

#[test]
fn the_oracle_knows_blocks() {
    for (sizes, expected) in [
        (&[2, 2, 2][..], true),
        (&[4, 3], true),
        (&[4, 2, 1], true),
        (&[3, 3], false),
        (&[3, 4], false),
        (&[2, 2, 4], true),
        (&[6, 6], false),
    ] {
        assert_eq!(has_canonical_hosts(&consecutive(sizes)), expected, "{sizes:?}");
    }
    assert!(!has_canonical_hosts(&interleaved(&[2, 2])));
}

/// What each host sends to and receives from the others, in elements, and the most that one rank of it sends.
struct Traffic {
    sent: Vec<usize>,
    received: Vec<usize>,
    most_by_a_rank: Vec<usize>,
}

fn traffic(operation: &Operation, topology: &Topology, len: usize) -> Traffic {
    let hosts = topology.ranks_by_host();
    let host_of =
        |rank: usize| hosts.iter().position(|ranks| ranks.contains(&rank)).expect("every rank has one");
    let zeros = || vec![0; hosts.len()];
    let mut traffic = Traffic { sent: zeros(), received: zeros(), most_by_a_rank: zeros() };
    for rank in 0..topology.size() {
        let schedule = Hierarchical::default().schedule(operation, topology, rank, len).expect("not refused");
        let mut by_rank = 0;
        for step in schedule.steps() {
            if let Step::Send { to, from } = step
                && host_of(*to) != host_of(rank)
            {
                traffic.sent[host_of(rank)] += from.len();
                traffic.received[host_of(*to)] += from.len();
                by_rank += from.len();
            }
        }
        let most = &mut traffic.most_by_a_rank[host_of(rank)];
        *most = by_rank.max(*most);
    }
    traffic
}

/// A length that every cut divides: in halves, by the hosts' sizes, the number of hosts and that of ranks.
fn divisible(sizes: &[usize]) -> usize {
    let multiple =
        |a: usize, b: usize| (1..).map(|k| k * a).find(|m| m.is_multiple_of(b)).expect("a·b at most");
    2 * sizes.iter().copied().fold(1, multiple) * sizes.len() * sizes.iter().sum::<usize>()
}

/// 2(N−1)/N · S out of and into every host, shared alike by its ranks.
#[test]
fn an_all_reduce_moves_the_minimum_between_hosts() {
    let more = [vec![4; 16], vec![3; 9], vec![1; 11], vec![2; 12]];
    for sizes in sizes().into_iter().chain(more) {
        let (count, len) = (sizes.len(), divisible(&sizes));
        for topology in [consecutive(&sizes), interleaved(&sizes)] {
            for order in [Order::Auto, Order::Fastest] {
                let traffic = traffic(&all_reduce().with_order(order), &topology, len);
                let minimum = 2 * (count - 1) * len / count;
                assert_eq!(traffic.sent, vec![minimum; count], "{topology:?}");
                assert_eq!(traffic.received, vec![minimum; count], "{topology:?}");
                let by_a_rank: Vec<usize> =
                    topology.ranks_by_host().iter().map(|ranks| minimum / ranks.len()).collect();
                assert_eq!(traffic.most_by_a_rank, by_a_rank, "{topology:?}");
            }
        }
    }
}

#[test]
fn the_other_kinds_move_the_minimum_between_hosts() {
    for sizes in sizes() {
        let (count, len) = (sizes.len(), divisible(&sizes));
        for topology in [consecutive(&sizes), interleaved(&sizes)] {
            let hosts = topology.ranks_by_host();
            let own: Vec<usize> = hosts.iter().map(|ranks| ranks.len() * len / topology.size()).collect();
            let others: Vec<usize> = own.iter().map(|own| len - own).collect();
            let everywhere: Vec<usize> = own.iter().map(|own| own * (count - 1)).collect();
            let scatter = traffic(&Operation::new(Kind::ReduceScatter), &topology, len);
            assert_eq!(
                (scatter.sent, scatter.received),
                (others.clone(), everywhere.clone()),
                "{topology:?}"
            );
            let gather = traffic(&Operation::new(Kind::AllGather), &topology, len);
            assert_eq!((gather.sent, gather.received), (everywhere, others), "{topology:?}");
            if count == 1 {
                continue;
            }
            let root = topology.size() / 2;
            let is_root = |host: usize| hosts[host].contains(&root);
            let broadcast = traffic(&Operation::new(Kind::Broadcast).with_root(root), &topology, len);
            let fastest = Operation::new(Kind::Reduce).with_root(root).with_order(Order::Fastest);
            let reduce = traffic(&fastest, &topology, len);
            let canonical = traffic(&fastest.with_order(Order::Auto), &topology, len);
            for host in 0..count {
                assert_eq!(broadcast.received[host], if is_root(host) { 0 } else { len }, "{topology:?}");
                assert!(broadcast.sent[host] <= len, "{topology:?}");
                assert_eq!(reduce.sent[host], if is_root(host) { 0 } else { len }, "{topology:?}");
                assert!(reduce.received[host] <= len, "{topology:?}");
                assert!(canonical.sent[host] <= len, "{topology:?}");
                let most = if is_root(host) { 2 * (count - 1) * len / count } else { len };
                assert!(canonical.received[host] <= most, "{topology:?}: {:?}", canonical.received);
            }
        }
    }
}

#[test]
fn rounds_are_few() {
    let rounds = |sizes: &[usize], operation: Operation| {
        prove_on(&Hierarchical::default(), operation, &consecutive(sizes), divisible(sizes)).rounds()
    };
    assert_eq!(rounds(&[4], all_reduce()), 2);
    assert_eq!(rounds(&[1; 4], all_reduce()), 2);
    for sizes in [&[4, 4][..], &[2, 2, 2], &[8, 1], &[5, 1, 7, 2], &[2; 8]] {
        assert_eq!(rounds(sizes, all_reduce()), 4, "{sizes:?}");
        for kind in [Kind::ReduceScatter, Kind::AllGather] {
            assert_eq!(rounds(sizes, Operation::new(kind)), 2, "{kind}, {sizes:?}");
        }
    }
    let fastest = all_reduce().with_order(Order::Fastest);
    assert_eq!(rounds(&[4; 16], fastest), 2 + 2 * 4);
    assert_eq!(rounds(&[3; 9], fastest), 2 + 2 * 4);
    assert_eq!(rounds(&[2; 9], all_reduce()), 4, "directly, for the sake of the canonical tree");
}

fn refusal(hierarchical: &Hierarchical, operation: Operation, sizes: &[usize]) -> String {
    let refused: Result<Schedule> = hierarchical.schedule(&operation, &consecutive(sizes), 0, 100);
    refused.expect_err("refused").to_string()
}

#[test]
fn refusals_say_which_host_or_which_inner_algorithm() {
    let canonical = all_reduce().with_order(Order::Canonical);
    let own = Hierarchical::default();
    let text = refusal(&own, canonical, &[3, 3]);
    assert!(text.starts_with("collective `hierarchical` refuses all-reduce in order `canonical`"), "{text}");
    assert!(text.contains("host 0 has the ranks 0 to 2") && text.contains("`butterfly`"), "{text}");
    assert!(refusal(&own, all_reduce().with_order(Order::Rank), &[2, 2]).contains("grouped by host"));
    let by = |name| Hierarchical { between: collective_by_name(name, None).ok() };
    let text = refusal(&by("ring"), canonical, &[2, 2]);
    assert!(
        text.contains("collective `hierarchical`") && text.contains("between hosts, `ring` refuses"),
        "{text}"
    );
    let text = refusal(&by("butterfly"), canonical, &[4, 2, 1]);
    assert!(text.contains("3 hosts of unequal sizes") && text.contains("`butterfly` would need"), "{text}");
    assert!(refusal(&by("native"), all_reduce(), &[2, 2]).contains("it has no schedule"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any ranks on any hosts, and any algorithm between them.
    #[test]
    fn any_layout_and_any_inner_algorithm_is_proven(
        hosts in proptest::collection::vec(0u32..6, 1..24),
        kind in proptest::sample::select(&Kind::ALL[..]),
        order in proptest::sample::select(&[Order::Auto, Order::Canonical, Order::Fastest][..]),
        between in proptest::option::of(proptest::sample::select(COLLECTIVE_NAMES)),
        root in 0usize..24,
        len in 0usize..400,
    ) {
        let topology = Topology::with_hosts(hosts);
        let between = between.filter(|name| !matches!(*name, "native" | "hierarchical"));
        let between = between.map(|name| collective_by_name(name, None).expect("a name of the registry"));
        let hierarchical = Hierarchical { between: between.clone() };
        let operation = Operation::new(kind).with_order(order).with_root(root % topology.size());
        match verify(&hierarchical, &operation, &topology, len) {
            Ok(_) => {}
            Err(flaw) => {
                prop_assert!(flaw.to_string().contains("refuses"), "{flaw}");
                prop_assert!(order == Order::Canonical, "{flaw}");
                prop_assert!(between.is_some() || !has_canonical_hosts(&topology), "{flaw}");
            }
        }
    }
}

/// The parts that the definition of the kinds gives to ranks do not depend on their hosts.
#[test]
fn a_reduce_scatter_ends_where_a_flat_one_does() -> Result<()> {
    let topology = interleaved(&[3, 2, 1]);
    let len = 23;
    for rank in 0..6 {
        let operation = Operation::new(Kind::ReduceScatter);
        let schedule = Hierarchical::default().schedule(&operation, &topology, rank, len)?;
        let last = schedule.stages.last().and_then(|stage| stage.steps.last());
        let Some(Step::Reduce { into, .. }) = last else { panic!("ends with a sum: {last:?}") };
        assert_eq!(into.range, part(len, 6, rank));
    }
    Ok(())
}
