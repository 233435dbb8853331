//! Every form against the same tree, on threads that treat each other as processes.

use super::super::{Call, Operation, Room};
use super::{Form, run_as};
use crate::collective::{Kind, Order};
use crate::error::{Error, Result};
use crate::reduce::{ElementType, Operator, ReduceMany, Store, reduce_many};
use crate::transport::{Deadline, Domain, Patience, Place, Publication, Wait};
use std::time::Duration;

/// Awkward numbers, others on each rank and at each place.
fn inputs(element: ElementType, ranks: usize, bytes: usize) -> Vec<Vec<u64>> {
    let word = |rank: usize, i: usize| {
        let hash = ((rank << 32 | i) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(31);
        match element {
            ElementType::F32 => (0..2).fold(0, |word, half| {
                let value = ((hash >> (half * 32)) as u32 % 20_011) as f32 / 97.0 - 100.0;
                let bits = if hash.is_multiple_of(101) { (hash >> 13) as u32 } else { value.to_bits() };
                word | u64::from(bits) << (32 * half)
            }),
            _ => hash,
        }
    };
    (0..ranks).map(|rank| (0..bytes.div_ceil(8)).map(|i| word(rank, i)).collect()).collect()
}

/// The sum in the order asked for, by the kernel that has tests of its own.
fn reduced(call: &Call, sources: &[Vec<u64>], bytes: usize) -> Vec<u64> {
    let mut result = vec![0u64; bytes.div_ceil(8)];
    let sources: Vec<*const u8> = sources.iter().map(|source| source.as_ptr().cast()).collect();
    let Call { element, operator, .. } = *call;
    let targets = &[result.as_mut_ptr().cast::<u8>()];
    let (tree, store) = (call.tree(), Store::Ordinary);
    let job = ReduceMany { element, operator, tree, sources: &sources, targets, bytes, store };
    // SAFETY: all vectors have `bytes` bytes, and are different ones.
    unsafe { reduce_many(&job) };
    result
}

/// One rank's operation, from arriving on, as `direct::run` does it but in a given form.
fn one(form: Form, domain: &Domain, call: &Call, room: &mut Room, deadline: Duration) -> Result<()> {
    until(form, domain, call, room, deadline, false)
}

/// The same by a rank that may leave when all have arrived.
fn until(
    form: Form,
    domain: &Domain,
    call: &Call,
    room: &mut Room,
    deadline: Duration,
    leaves: bool,
) -> Result<()> {
    let wait =
        Wait { operation: &"a test", deadline: Deadline::after(deadline), patience: Patience::Transfer };
    let mut session = domain.session()?;
    let said = Publication {
        hash: 1,
        header: &[],
        figures: &[],
        source: Place::private(call.input),
        target: Place::private(call.output),
        is_private: true,
        most_chunks: 0,
    };
    let round = session.arrive(&said, &wait)?;
    room.look_up(&mut session, &round, domain, &wait)?;
    if leaves {
        return Ok(());
    }
    // SAFETY: the caller's vectors have `count` elements, and all ranks do the same.
    unsafe { run_as(form, &mut session, domain, call, room, &wait) }
}

struct Case {
    form: Form,
    ranks: usize,
    element: ElementType,
    operator: Operator,
    order: Order,
    count: usize,
    in_place: bool,
}

/// Three operations in a row, so that the second finds windows and words of progress used.
fn check(case: Case) {
    let Case { form, ranks, element, operator, order, count, in_place } = case;
    let bytes = count * element.size();
    let what =
        format!("{form:?}, {ranks} ranks, {count} {element}, {operator}, {order:?}, in place: {in_place}");
    let operation = Operation { order, ..Operation::new(Kind::AllReduce) };
    let blank =
        Call { operation, element, operator, input: std::ptr::null(), output: std::ptr::null_mut(), count };
    let sources = inputs(element, ranks, bytes);
    let expected = reduced(&blank, &sources, bytes);
    let expected = &bytemuck::cast_slice::<u64, u8>(&expected)[..bytes];
    std::thread::scope(|scope| {
        for (domain, source) in Domain::of_pretended_processes(ranks).into_iter().zip(&sources) {
            let what = &what;
            scope.spawn(move || {
                let mut room = Room::new(ranks);
                for _ in 0..3 {
                    let mut input = source.clone();
                    let mut output = vec![0u64; source.len()];
                    let start = input.as_mut_ptr().cast::<u8>();
                    let into = if in_place { start } else { output.as_mut_ptr().cast() };
                    let call = Call { input: start, output: into, ..blank };
                    one(form, &domain, &call, &mut room, Duration::from_secs(60)).unwrap();
                    let result = if in_place { &input } else { &output };
                    let result = &bytemuck::cast_slice::<u64, u8>(result)[..bytes];
                    let wrong = (0..bytes).find(|&byte| result[byte] != expected[byte]);
                    assert_eq!(wrong, None, "the first wrong byte; {what}");
                    assert!(in_place || &input == source, "{what}");
                }
            });
        }
    });
}

const FORMS: [Form; 3] = [Form::Pull, Form::TwoShot, Form::Windows];

#[test]
fn every_form_gives_the_same_bits_at_every_length() {
    // Of a row, and of a piece: half of a window.
    const ELEMENTS: usize = 64 * 1024;
    assert!(Domain::of_pretended_processes(9).iter().all(|domain| domain.window_bytes() / 2 == 4 * ELEMENTS));
    for ranks in 2..=9 {
        for form in FORMS {
            for count in [1, 1037, ELEMENTS, 2 * ELEMENTS + 1, 9 * ELEMENTS + 77] {
                check(Case {
                    form,
                    ranks,
                    element: ElementType::F32,
                    operator: Operator::Sum,
                    order: Order::Canonical,
                    count,
                    in_place: count % 2 == 1,
                });
            }
        }
    }
}

#[test]
fn every_type_operator_and_order() {
    for (element, operator) in
        ElementType::ALL.into_iter().flat_map(|element| Operator::ALL.map(|operator| (element, operator)))
    {
        for form in FORMS {
            for order in [Order::Rank, Order::Fastest] {
                let count = 70_001;
                check(Case { form, ranks: 5, element, operator, order, count, in_place: true });
            }
        }
    }
}

#[test]
fn a_rank_that_leaves_after_all_have_arrived_is_named() {
    for form in FORMS {
        let results: Vec<Result<()>> = std::thread::scope(|scope| {
            let run = |domain: Domain| {
                scope.spawn(move || {
                    let mut vector = vec![0f32; 100_000];
                    let start = vector.as_mut_ptr().cast::<u8>();
                    let call = Call {
                        operation: Operation::new(Kind::AllReduce),
                        element: ElementType::F32,
                        operator: Operator::Sum,
                        input: start,
                        output: start,
                        count: vector.len(),
                    };
                    let leaves = domain.rank() == 1;
                    until(form, &domain, &call, &mut Room::new(3), Duration::from_secs(30), leaves)
                })
            };
            let ranks: Vec<_> = Domain::of_pretended_processes(3).into_iter().map(run).collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        });
        for error in [0, 2].map(|rank| results[rank].clone().unwrap_err()) {
            assert!(matches!(&error, Error::PeerLost { .. }), "{form:?}: {error}");
        }
    }
}

#[test]
fn the_kernel_names_a_process_that_is_gone() {
    let mut child = std::process::Command::new("true").spawn().unwrap();
    let pid = child.id();
    child.wait().unwrap();
    let domain = Domain::of_pretended_processes_with_pid(2, 1, pid).swap_remove(0);
    let wait = Wait {
        operation: &"a test",
        deadline: Deadline::after(Duration::from_secs(9)),
        patience: Patience::Transfer,
    };
    let mut into = [0u8; 8];
    // SAFETY: there is room for eight bytes.
    let error = unsafe { domain.read_peer(1, 4096, into.as_mut_ptr(), 8, &wait) }.unwrap_err();
    assert!(matches!(&error, Error::PeerLost { peer, .. } if peer.rank == 1 && peer.pid == pid), "{error}");
}

#[test]
fn all_ranks_find_the_same_out_about_reading() {
    let wait = || Wait {
        operation: &"a test",
        deadline: Deadline::after(Duration::from_secs(60)),
        patience: Patience::Transfer,
    };
    let find_out = |domain: &Domain| domain.session().unwrap().reading_pays(&wait());
    std::thread::scope(|scope| {
        let domains = Domain::of_pretended_processes(3);
        let ranks: Vec<_> = domains
            .into_iter()
            .map(|domain| scope.spawn(move || [find_out(&domain).unwrap(), find_out(&domain).unwrap()]))
            .collect();
        let answers: Vec<_> = ranks.into_iter().map(|rank| rank.join().unwrap()).collect();
        assert!(answers.iter().flatten().all(|answer| *answer == answers[0][0]), "{answers:?}");
    });
    // A process that is not there cannot be read.
    let mut child = std::process::Command::new("true").spawn().unwrap();
    child.wait().unwrap();
    let domains = Domain::of_pretended_processes_with_pid(2, 1, child.id());
    std::thread::scope(|scope| {
        for domain in domains {
            scope.spawn(move || assert!(!find_out(&domain).unwrap()));
        }
    });
}

#[test]
fn the_choice() {
    let call = |kind, order, count| Call {
        operation: Operation { order, ..Operation::new(kind) },
        element: ElementType::F32,
        operator: Operator::Sum,
        input: std::ptr::null(),
        output: std::ptr::null_mut(),
        count,
    };
    let all_reduce = |order, count| call(Kind::AllReduce, order, count);
    let (short, long) = (10_000, 16 << 20);
    let choose = |call: Call, ranks, pays| super::choose(&call, ranks, 2, || Ok(pays)).unwrap();
    assert_eq!(choose(all_reduce(Order::Auto, long), 2, true), Form::Pull);
    assert_eq!(choose(all_reduce(Order::Auto, long), 2, false), Form::TwoShot);
    assert_eq!(choose(all_reduce(Order::Auto, short), 2, true), Form::TwoShot);
    assert_eq!(choose(all_reduce(Order::Rank, long), 4, true), Form::TwoShot);
    assert_eq!(choose(all_reduce(Order::Fastest, long), 5, true), Form::Windows);
    assert_eq!(choose(call(Kind::Reduce, Order::Auto, long), 2, true), Form::Windows);
}
