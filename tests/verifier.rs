//! The verifier finds what is wrong with good schedules that were damaged, and says where.

use esync::Result;
use esync::collective::verify::{Flaw, Proof, verify, verify_schedules};
use esync::collective::{
    Butterfly, Collective, Kind, Operation, Order, ParameterServer, RecursiveDoubling, Ring, Schedule, Slice,
    Stage, Step, Topology,
};

fn all_reduce() -> Operation {
    Operation::new(Kind::AllReduce)
}

fn schedules(collective: &dyn Collective, operation: Operation, n: usize, len: usize) -> Vec<Schedule> {
    let topology = Topology::flat(n);
    let schedule = |rank| collective.schedule(&operation, &topology, rank, len).expect("not refused");
    (0..n).map(schedule).collect()
}

/// Damages a good set of schedules and proves it again.
fn damaged(
    collective: &dyn Collective,
    operation: Operation,
    n: usize,
    len: usize,
    damage: impl FnOnce(&mut [Schedule]),
) -> Result<Proof, Flaw> {
    let mut schedules = schedules(collective, operation, n, len);
    damage(&mut schedules);
    verify_schedules(&schedules, &operation, len)
}

macro_rules! assert_flaw {
    ($result:expr, $pattern:pat $(if $guard:expr)?) => {
        match $result {
            Err($pattern) $(if $guard)? => {}
            Err(flaw) => panic!("another flaw: {flaw}"),
            Ok(proof) => panic!("no flaw: {proof}"),
        }
    };
}

/// The index of the first step of a stage that `wanted` accepts.
fn find(stage: &Stage, wanted: impl Fn(&Step) -> bool) -> usize {
    stage.steps.iter().position(wanted).expect("there is such a step")
}

fn is_send(step: &Step) -> bool {
    matches!(step, Step::Send { .. })
}

fn is_receive(step: &Step) -> bool {
    matches!(step, Step::Recv { .. })
}

fn is_reduce(step: &Step) -> bool {
    matches!(step, Step::Reduce { .. })
}

#[test]
fn a_lost_send_is_found() {
    let result = damaged(&Ring, all_reduce(), 4, 8, |schedules| {
        schedules[1].stages[2].steps.retain(|step| !is_send(step));
    });
    assert_flaw!(&result, Flaw::Unmatched { from: 1, to: 2, sends: 5, receives: 6, at } if at.rank == 2);
    let result = damaged(&Ring, all_reduce(), 4, 8, |schedules| {
        schedules[1].stages[5].steps.retain(|step| !is_receive(step));
    });
    assert_flaw!(&result, Flaw::Unmatched { from: 0, to: 1, sends: 6, receives: 5, at } if (at.rank, at.stage) == (0, 5));
}

#[test]
fn swapped_operands_are_another_tree() {
    let swap = |step: &mut Step| {
        if let Step::Reduce { left, right, .. } = step {
            std::mem::swap(left, right);
        }
    };
    let proof = damaged(&ParameterServer::default(), all_reduce(), 4, 1, |schedules| {
        let stage = &mut schedules[0].stages[0];
        stage.steps.iter_mut().for_each(swap);
    });
    let proof = proof.expect("still a sum of all");
    assert!(!proof.is_canonical());
    assert_eq!(proof.to_string(), "(3+2)+(1+0)");
    // Where several ranks make the same sum, they must make it alike.
    let result = damaged(&RecursiveDoubling, all_reduce(), 4, 1, |schedules| {
        schedules[3].stages[0].steps.iter_mut().for_each(swap);
    });
    assert_flaw!(&result, Flaw::RanksDiffer { rank: 1, element: 0, other: 0, found, .. } if found.to_string() == "(0+1)+(3+2)");
    // An order that was asked for must be kept.
    let result =
        damaged(&ParameterServer::default(), all_reduce().with_order(Order::Rank), 4, 1, |schedules| {
            schedules[0].stages[0].steps.iter_mut().for_each(swap);
        });
    assert_flaw!(&result, Flaw::WrongOrder { order: Order::Rank, element: 0, .. });
}

#[test]
fn a_contribution_added_twice_is_found() {
    let result = damaged(&Ring, all_reduce(), 4, 8, |schedules| {
        let stage = &mut schedules[2].stages[1];
        let reduce = stage.steps[find(stage, is_reduce)].clone();
        stage.steps.push(reduce);
    });
    assert_flaw!(&result, Flaw::Duplicate { at, contribution: 0, .. } if (at.rank, at.stage, at.step) == (2, 1, 3));
}

#[test]
fn a_missing_contribution_is_found() {
    let result =
        damaged(&ParameterServer::default(), all_reduce().with_order(Order::Fastest), 4, 8, |schedules| {
            schedules[0].stages[0].steps.pop();
        });
    assert_flaw!(&result, Flaw::Missing { rank: 0, element: 0, missing, .. } if missing == &[3]);
}

#[test]
fn shifted_ranges_are_found() {
    fn shift(step: &mut Step, by: usize) {
        let (Step::Send { from: slice, .. } | Step::Recv { into: slice, .. }) = step else {
            panic!("{step}")
        };
        slice.range = slice.range.start + by..slice.range.end + by;
    }
    let gather = Operation::new(Kind::AllGather);
    let result = damaged(&Ring, gather, 4, 8, |schedules| {
        let stage = &mut schedules[0].stages[0];
        let receive = find(stage, is_receive);
        shift(&mut stage.steps[receive], 1);
    });
    assert_flaw!(&result, Flaw::OutOfRange { at, len: Some(8), slice } if at.rank == 0 && slice.range == (7..9));
    let result = damaged(&Ring, gather, 4, 8, |schedules| shift(&mut schedules[0].stages[0].steps[0], 1));
    assert_flaw!(&result, Flaw::Undefined { at, position: 2, .. } if at.rank == 0);
    let result =
        damaged(&Ring, all_reduce(), 4, 8, |schedules| shift(&mut schedules[0].stages[0].steps[0], 1));
    assert_flaw!(&result, Flaw::WritesWhatIsSent { .. } | Flaw::MixedElements { .. });
    let result = damaged(&Ring, Operation::new(Kind::ReduceScatter), 4, 9, |schedules| {
        shift(&mut schedules[0].stages[0].steps[0], 0);
        let Step::Send { from, .. } = &mut schedules[0].stages[0].steps[0] else { panic!("a send") };
        from.range.end -= 1;
    });
    assert_flaw!(&result, Flaw::MessageLength { send, receive, .. } if (send.rank, receive.rank) == (0, 1));
    // The part arrives complete, but one place too far: the values are all there, at the wrong elements.
    let result = damaged(&RecursiveDoubling, Operation::new(Kind::Broadcast), 2, 3, |schedules| {
        let receive = &mut schedules[1].stages[0].steps[0];
        let Step::Recv { from, .. } = *receive else { panic!("a receive") };
        schedules[1].scratch = vec![3];
        schedules[1].push([Step::Copy { into: Slice::buffer(0..2), from: Slice::scratch(0, 1..3) }]);
        schedules[1].push([Step::Copy { into: Slice::buffer(2..3), from: Slice::scratch(0, 0..1) }]);
        schedules[1].stages[0].steps = vec![Step::Recv { from, into: Slice::scratch(0, 0..3) }];
    });
    assert_flaw!(&result, Flaw::Misplaced { rank: 1, element: 0, found: 1 });
}

#[test]
fn elements_that_do_not_belong_together_are_found() {
    let result = damaged(&RecursiveDoubling, Operation::new(Kind::Reduce), 2, 4, |schedules| {
        let receive = Step::Recv { from: 1, into: Slice::scratch(0, 0..4) };
        let reduce = Step::Reduce {
            into: Slice::buffer(0..3),
            left: Slice::buffer(0..3),
            right: Slice::scratch(0, 1..4),
        };
        schedules[0].stages[0].steps = vec![receive, reduce];
    });
    assert_flaw!(&result, Flaw::MixedElements { left: 0, right: 1, at, .. } if at.step == 1);
}

/// Every stage cut into one that sends and one that receives: fine with buffered sends, a deadlock with synchronous ones.
#[test]
fn a_circle_of_waits_is_found() {
    let send_first = |schedule: &mut Schedule| {
        let stages = std::mem::take(&mut schedule.stages);
        for stage in stages {
            let (sends, rest): (Vec<Step>, Vec<Step>) = stage.steps.into_iter().partition(is_send);
            schedule.push(sends);
            schedule.push(rest);
        }
    };
    let result = damaged(&Ring, all_reduce(), 5, 20, |schedules| schedules.iter_mut().for_each(send_first));
    assert_flaw!(&result, Flaw::Deadlock { cycle } if cycle.len() == 5);
    // One rank that receives first breaks the circle.
    let result =
        damaged(&Ring, all_reduce(), 5, 20, |schedules| schedules[1..].iter_mut().for_each(send_first));
    assert!(result.is_ok(), "{result:?}");
    // Two ranks that begin with their second partner: 0 waits for 2, 2 for 3, 3 for 1, and 1 for 0.
    let result = damaged(&Butterfly, all_reduce(), 4, 20, |schedules| {
        [0, 3].into_iter().for_each(|rank: usize| schedules[rank].stages.swap(0, 1));
    });
    assert_flaw!(&result, Flaw::Deadlock { cycle } if cycle.len() == 4);
}

#[test]
fn rules_of_a_stage_are_checked() {
    let whole = || Slice::buffer(0..4);
    // The textbook's recursive doubling, which reduces into what it sends.
    let result = damaged(&RecursiveDoubling, all_reduce(), 2, 4, |schedules| {
        let stage = &mut schedules[1].stages[0];
        let reduce = find(stage, is_reduce);
        let Step::Reduce { into, .. } = &mut stage.steps[reduce] else { panic!("a reduction") };
        *into = whole();
    });
    assert_flaw!(&result, Flaw::WritesWhatIsSent { at, send: 0, .. } if (at.rank, at.step) == (1, 2));
    let result = damaged(&ParameterServer::default(), all_reduce(), 4, 8, |schedules| {
        let stage = &mut schedules[0].stages[0];
        let receive = find(stage, is_receive);
        let Step::Recv { into: first, .. } = stage.steps[receive].clone() else { panic!("a receive") };
        let Step::Recv { into: second, .. } = &mut stage.steps[receive + 1] else { panic!("a receive") };
        *second = first;
    });
    assert_flaw!(&result, Flaw::OverlappingReceives { at, .. } if at.rank == 0);
    let result = damaged(&Ring, Operation::new(Kind::ReduceScatter), 2, 4, |schedules| {
        let copy = Step::Copy { into: Slice::scratch(0, 0..1), from: Slice::buffer(0..1) };
        let stage = &mut schedules[0].stages[0];
        let reduce = find(stage, is_reduce);
        stage.steps.insert(reduce, copy);
    });
    assert_flaw!(&result, Flaw::Race { at, slice, .. } if at.rank == 0 && slice.range == (0..1));
    // After the reduction has waited for the message, its place may be used again.
    let result = damaged(&Ring, Operation::new(Kind::ReduceScatter), 2, 4, |schedules| {
        let copy = Step::Copy { into: Slice::scratch(0, 0..1), from: Slice::buffer(0..1) };
        schedules[0].stages[0].steps.push(copy);
    });
    assert!(result.is_ok(), "{result:?}");
    let single = |step: Step| {
        let schedule = Schedule { stages: vec![Stage { steps: vec![step] }], scratch: vec![4] };
        verify_schedules(&[schedule], &all_reduce(), 4)
    };
    let result = single(Step::Reduce {
        into: Slice::buffer(0..2),
        left: Slice::buffer(1..3),
        right: Slice::buffer(2..4),
    });
    assert_flaw!(&result, Flaw::PartialOverlap { operand, .. } if operand.range == (1..3));
    assert_flaw!(single(Step::Copy { into: whole(), from: whole() }), Flaw::PartialOverlap { .. });
    assert_flaw!(
        single(Step::Copy { into: whole(), from: Slice::scratch(0, 0..3) }),
        Flaw::OperandLength { .. }
    );
    assert_flaw!(
        single(Step::Copy { into: whole(), from: Slice::scratch(1, 0..4) }),
        Flaw::OutOfRange { len: None, .. }
    );
    assert_flaw!(
        single(Step::Copy { into: whole(), from: Slice::scratch(0, 0..4) }),
        Flaw::Undefined { position: 0, .. }
    );
    assert_flaw!(single(Step::Send { to: 0, from: whole() }), Flaw::NoSuchPeer { peer: 0, size: 1, .. });
    assert_flaw!(single(Step::Send { to: 1, from: whole() }), Flaw::NoSuchPeer { peer: 1, size: 1, .. });
}

#[test]
fn results_of_moves_are_checked() {
    let gather = Operation::new(Kind::AllGather);
    let result = damaged(&Ring, gather, 4, 8, |schedules| {
        schedules.iter_mut().for_each(|schedule| {
            schedule.stages.pop();
        });
    });
    assert_flaw!(&result, Flaw::NoResult { rank: 0, element: 2 });
    let result = damaged(&Ring, gather, 2, 4, |schedules| {
        schedules[0].stages[0].steps[1] = Step::Recv { from: 1, into: Slice::buffer(2..4) };
        schedules[0].push([Step::Copy { into: Slice::buffer(0..1), from: Slice::buffer(3..4) }]);
    });
    assert_flaw!(&result, Flaw::Misplaced { rank: 0, element: 0, found: 3 });
    // Only the root has what is broadcast.
    let broadcast = Operation::new(Kind::Broadcast);
    let good = schedules(&Ring, broadcast, 3, 6);
    assert_flaw!(verify_schedules(&good, &broadcast.with_root(1), 6), Flaw::Undefined { .. });
    assert_flaw!(verify_schedules(&good, &broadcast.with_root(3), 6), Flaw::NoSuchRoot { root: 3, size: 3 });
    // A reduction is no all-gather: the ranks have only their own part.
    let reduce = schedules(&RecursiveDoubling, Operation::new(Kind::Reduce), 2, 2);
    assert_flaw!(verify_schedules(&reduce, &Operation::new(Kind::AllGather), 2), Flaw::Undefined { .. });
}

/// A user's algorithm that accepts an order and does not keep it.
#[test]
fn an_order_that_is_not_kept_is_found() {
    struct Careless;
    impl Collective for Careless {
        fn name(&self) -> &'static str {
            "careless"
        }
        fn schedule(
            &self,
            operation: &Operation,
            topology: &Topology,
            rank: usize,
            len: usize,
        ) -> Result<Schedule> {
            Ring.schedule(&operation.with_order(Order::Auto), topology, rank, len)
        }
    }
    let canonical = all_reduce().with_order(Order::Canonical);
    assert_flaw!(
        verify(&Careless, &canonical, &Topology::flat(4), 4),
        Flaw::WrongOrder { order: Order::Canonical, element: 0, found } if found.to_string() == "((0+1)+2)+3"
    );
    assert_flaw!(verify(&Ring, &canonical, &Topology::flat(4), 4), Flaw::Refused(_));
}

/// Flaws read as sentences that say where.
#[test]
fn flaws_are_sentences() {
    let result = damaged(&Ring, all_reduce(), 2, 2, |schedules| {
        schedules[1].stages[0].steps.retain(|step| !is_send(step));
    });
    let text = result.err().map(|flaw| flaw.to_string());
    assert_eq!(
        text.as_deref(),
        Some(
            "rank 0, stage 1, step 1 has no counterpart: rank 1 sends 1 messages to rank 0, which receives 2"
        )
    );
}
