//! Executed collectives on threads: results against a sequential reference, bits, and in-place semantics.
//!
//! What can go wrong between ranks (mismatch, stragglers, deaths) is in `collective_failures.rs`.

#[path = "common/number.rs"]
mod number;
#[path = "common/ranks.rs"]
mod ranks;

use esync::Result;
use esync::collective::{COLLECTIVE_NAMES, Communicator, CommunicatorOptions, Order, part};
use esync::reduce::Operator;
use half::{bf16, f16};
use number::{Number, canonical, left_to_right, mixed};
use proptest::prelude::*;
use ranks::{on_ranks, options, try_ranks};

const RANKS: std::ops::RangeInclusive<usize> = 1..=17;
const ORDERS: [Order; 4] = [Order::Auto, Order::Canonical, Order::Rank, Order::Fastest];

/// Options of a communicator with an order.
fn ordered(collective: &str, order: Order) -> CommunicatorOptions {
    CommunicatorOptions { order, ..options(collective) }
}

fn bits<T: Number>(values: &[T]) -> &[u8] {
    bytemuck::cast_slice(values)
}

/// Compares bitwise and names the first difference.
fn same<T: Number>(what: impl FnOnce() -> String, found: &[T], expected: impl Fn(usize) -> T) {
    for (index, &found) in found.iter().enumerate() {
        let expected = expected(index);
        assert!(
            bits(&[found]) == bits(&[expected]),
            "{}: element {index} is {found:?}, not {expected:?}",
            what()
        );
    }
}

// Exact: small integers, whose results every type holds exactly in any order.

/// Contributions and results, by operator and index; the largest length is `len`.
struct Exact {
    n: usize,
    values: Vec<Vec<Vec<i64>>>,
    results: Vec<Vec<i64>>,
}

impl Exact {
    fn new(n: usize, len: usize) -> Exact {
        let value = |operator: Operator, rank: usize, index: usize| {
            let mixed = mixed(1, rank, index);
            match operator {
                Operator::Sum | Operator::Average => (mixed % 15) as i64 - 7,
                Operator::Min | Operator::Max => (mixed % 201) as i64 - 100,
                // Few twos, so that 17 of them still fit the narrowest type.
                Operator::Product if (rank + index).is_multiple_of(5) => 2,
                Operator::Product => {
                    if mixed.is_multiple_of(2) {
                        1
                    } else {
                        -1
                    }
                }
            }
        };
        let column = |operator, rank| (0..len).map(|index| value(operator, rank, index)).collect();
        let values: Vec<Vec<Vec<i64>>> =
            Operator::ALL.map(|operator| (0..n).map(|rank| column(operator, rank)).collect()).into();
        let result = |operator: Operator, index| {
            let of_ranks = values[operator as usize].iter().map(|rank| rank[index]);
            of_ranks.reduce(|left: i64, right| left.combine(operator, right)).expect("at least one rank")
        };
        let results =
            Operator::ALL.map(|operator| (0..len).map(|index| result(operator, index)).collect()).into();
        Exact { n, values, results }
    }

    fn value<T: Number>(&self, operator: Operator, rank: usize, index: usize) -> T {
        T::small(self.values[operator as usize][rank][index])
    }

    fn vector<T: Number>(&self, operator: Operator, rank: usize, len: usize) -> Vec<T> {
        (0..len).map(|index| self.value(operator, rank, index)).collect()
    }

    fn result<T: Number>(&self, operator: Operator, index: usize) -> T {
        T::small(self.results[operator as usize][index]).finish(operator, self.n)
    }

    /// One kind after the other, on one rank, for one type and length.
    fn check<T: Number>(&self, communicator: &mut Communicator, len: usize) -> Result<()> {
        let (rank, n) = (communicator.rank(), self.n);
        let root = len % n;
        let own = part(len, n, rank);
        let text = |kind: &str, detail: &str| format!("{kind} {detail} of {len} {} on rank {rank}", T::TYPE);
        for operator in Operator::ALL {
            let mut vector: Vec<T> = self.vector(operator, rank, len);
            communicator.all_reduce(&mut vector, operator)?;
            same(|| text("all-reduce", operator.name()), &vector, |index| self.result(operator, index));

            let mut vector: Vec<T> = self.vector(operator, rank, len);
            let scattered = communicator.reduce_scatter(&mut vector, operator)?;
            assert_eq!(scattered.len(), own.len());
            same(
                || text("reduce-scatter", operator.name()),
                scattered,
                |i| self.result(operator, own.start + i),
            );

            let mut vector: Vec<T> = self.vector(operator, rank, len);
            communicator.reduce(&mut vector, operator, root)?;
            if rank == root {
                same(|| text("reduce", operator.name()), &vector, |index| self.result(operator, index));
            }
        }
        let mut vector = vec![T::small(99); len];
        for index in own {
            vector[index] = self.value(Operator::Min, 0, index);
        }
        communicator.all_gather(&mut vector)?;
        same(|| text("all-gather", ""), &vector, |index| self.value(Operator::Min, 0, index));

        let mut vector: Vec<T> = self.vector(Operator::Min, rank, len);
        communicator.broadcast(&mut vector, root)?;
        same(|| text("broadcast", ""), &vector, |index| self.value(Operator::Min, root, index));
        Ok(())
    }

    fn check_types(&self, communicator: &mut Communicator, len: usize) -> Result<()> {
        self.check::<f32>(communicator, len)?;
        self.check::<f64>(communicator, len)?;
        self.check::<i32>(communicator, len)?;
        self.check::<i64>(communicator, len)?;
        self.check::<f16>(communicator, len)?;
        self.check::<bf16>(communicator, len)
    }
}

/// Every kind, type, operator and number of ranks.
fn check_exact(collective: &str) {
    for n in RANKS {
        let exact = Exact::new(n, 1000);
        on_ranks(n, &options(collective), |communicator| {
            for len in [0, 1, n - 1, n, n + 1, 101, 1000] {
                exact.check_types(communicator, len)?;
            }
            Ok(())
        });
        let segmented = CommunicatorOptions { segment_bytes: 64, ..options(collective) };
        on_ranks(n, &segmented, |communicator| exact.check_types(communicator, 307));
    }
}

#[test]
fn ring_is_exact() {
    check_exact("ring");
}

#[test]
fn butterfly_is_exact() {
    check_exact("butterfly");
}

#[test]
fn binary_blocks_is_exact() {
    check_exact("binary-blocks");
}

#[test]
fn parameter_server_is_exact() {
    check_exact("parameter-server");
}

#[test]
fn recursive_doubling_is_exact() {
    check_exact("recursive-doubling");
}

#[test]
fn circulant_is_exact() {
    check_exact("circulant");
}

#[test]
fn double_tree_is_exact() {
    check_exact("double-tree");
}

#[test]
fn hierarchical_is_exact() {
    check_exact("hierarchical");
}

#[test]
fn native_is_exact() {
    check_exact("native");
}

#[test]
fn every_root_works() {
    for collective in COLLECTIVE_NAMES {
        for n in RANKS {
            let exact = Exact::new(n, 37);
            on_ranks(n, &options(collective), |communicator| {
                for root in 0..n {
                    let rank = communicator.rank();
                    let mut vector: Vec<f32> = exact.vector(Operator::Sum, rank, 37);
                    communicator.reduce(&mut vector, Operator::Sum, root)?;
                    if rank == root {
                        same(|| format!("reduce to {root}"), &vector, |i| exact.result(Operator::Sum, i));
                    }
                    let mut vector: Vec<i64> = exact.vector(Operator::Max, rank, 37);
                    communicator.broadcast(&mut vector, root)?;
                    same(|| format!("broadcast of {root}"), &vector, |i| exact.value(Operator::Max, root, i));
                }
                Ok(())
            });
        }
    }
}

#[test]
fn a_root_that_does_not_exist_is_a_usage_error_and_harms_nothing() {
    on_ranks(3, &options("ring"), |communicator| {
        let error = communicator.broadcast(&mut [0f32], 3).expect_err("there is no rank 3");
        assert_eq!(error.exit_code(), 2, "{error}");
        communicator.barrier()
    });
}

// Bits: random numbers and the special ones, on every rank, in every order.

/// Every third element is a special value on some ranks.
fn awkward<T: Number>(rank: usize, index: usize) -> T {
    let bits = mixed(2, rank, index);
    if index.is_multiple_of(3) && bits & 3 == 0 { T::special(bits >> 8) } else { T::random(bits) }
}

/// The results of all operators one after the other, on this rank.
fn reduce_awkward<T: Number>(communicator: &mut Communicator, len: usize) -> Result<Vec<T>> {
    let rank = communicator.rank();
    let mut results = Vec::new();
    for operator in Operator::ALL {
        let mut vector: Vec<T> = (0..len).map(|index| awkward(rank, index)).collect();
        communicator.all_reduce(&mut vector, operator)?;
        results.extend(vector);
    }
    Ok(results)
}

/// All that contracts.md, "Bits", promises, for one type.
fn check_bits<T: Number>(n: usize, options: &CommunicatorOptions, len: usize) {
    let (collective, order) = (options.collective.name(), options.order);
    let what =
        |detail: &str| format!("{collective}, order {order}, {n} ranks, {} {}, {detail}", len, T::TYPE);
    let run = || on_ranks(n, options, |communicator| reduce_awkward::<T>(communicator, len));
    let results = run();
    for (rank, result) in results.iter().enumerate() {
        same(|| what(&format!("rank {rank} against rank 0")), result, |index| results[0][index]);
    }
    same(|| what("a second run"), &run()[0], |index| results[0][index]);

    // By itself, an algorithm that can evaluate the canonical tree does.
    let takes_canonical = !matches!(collective, "ring" | "circulant" | "double-tree");
    for (number, &found) in results[0].iter().enumerate() {
        let (operator, index) = (Operator::ALL[number / len], number % len);
        let values: Vec<T> = (0..n).map(|rank| awkward(rank, index)).collect();
        let expected = match order {
            // These do not depend on an order.
            _ if matches!(operator, Operator::Min | Operator::Max) => left_to_right(&values, operator),
            Order::Rank => left_to_right(&values, operator),
            Order::Canonical => canonical(&values, operator),
            Order::Auto if takes_canonical => canonical(&values, operator),
            Order::Auto | Order::Fastest => {
                check_bound(|| what(&format!("{operator}, element {index}")), &values, operator, found);
                continue;
            }
        };
        let expected = expected.finish(operator, n);
        let detail = || what(&format!("{operator} of {values:?}, element {index}"));
        same(detail, &[found], |_| expected);
    }
}

/// Whatever the order of a sum: |error| ≤ 2(n−1)u·Σ|v|. The other operators and the special values have no such bound.
fn check_bound<T: Number>(what: impl FnOnce() -> String, values: &[T], operator: Operator, found: T) {
    let everyday = values.iter().all(|value| value.wide().abs() <= 1000.0);
    if operator == Operator::Sum && everyday && T::ROUNDOFF > 0.0 {
        let exact: f64 = values.iter().map(|value| value.wide()).sum();
        let size: f64 = values.iter().map(|value| value.wide().abs()).sum();
        let bound = 2.0 * (values.len() - 1) as f64 * T::ROUNDOFF * size;
        let error = (found.wide() - exact).abs();
        assert!(error <= bound, "{}: {found:?} is {error} away from {exact}, more than {bound}", what());
    }
}

fn check_all_bits(collective: &str) {
    for n in RANKS {
        for order in ORDERS {
            for (len, segment_bytes) in [(n + 1, 256 * 1024), (97, 256 * 1024), (97, 32)] {
                let options = CommunicatorOptions { segment_bytes, ..ordered(collective, order) };
                if try_ranks(n, &options, |_| Ok(())).iter().any(|result| result.is_err()) {
                    continue;
                }
                check_bits::<f32>(n, &options, len);
                check_bits::<f64>(n, &options, len);
                check_bits::<f16>(n, &options, len);
                check_bits::<bf16>(n, &options, len);
                check_bits::<i32>(n, &options, len);
            }
        }
    }
}

#[test]
fn bits_of_ring() {
    check_all_bits("ring");
}

#[test]
fn bits_of_butterfly() {
    check_all_bits("butterfly");
}

#[test]
fn bits_of_binary_blocks() {
    check_all_bits("binary-blocks");
}

#[test]
fn bits_of_parameter_server() {
    check_all_bits("parameter-server");
}

#[test]
fn bits_of_recursive_doubling() {
    check_all_bits("recursive-doubling");
}

#[test]
fn bits_of_circulant() {
    check_all_bits("circulant");
}

#[test]
fn bits_of_double_tree() {
    check_all_bits("double-tree");
}

#[test]
fn bits_of_hierarchical() {
    check_all_bits("hierarchical");
}

#[test]
fn bits_of_native() {
    check_all_bits("native");
}

#[test]
fn orders_are_accepted_and_refused_as_documented() {
    let accepted = |collective: &str| -> Vec<Order> {
        let accepts = |order: &Order| {
            let results = try_ranks(5, &ordered(collective, *order), |_| Ok(()));
            if let Some(Err(error)) = results.iter().find(|result| result.is_err()) {
                assert!(error.exit_code() == 2 && error.to_string().contains(collective), "{error}");
                return false;
            }
            true
        };
        ORDERS.into_iter().filter(accepts).collect()
    };
    for collective in COLLECTIVE_NAMES {
        let expected = match *collective {
            "ring" | "circulant" | "double-tree" => vec![Order::Auto, Order::Fastest],
            // Threads share memory, so `native` is not another library's.
            "parameter-server" | "native" => ORDERS.to_vec(),
            _ => vec![Order::Auto, Order::Canonical, Order::Fastest],
        };
        assert_eq!(accepted(collective), expected, "{collective}");
    }
}

#[test]
fn subnormals_survive() {
    // Nobody flushes them to zero, nor leaves the processor in a state that does.
    let tiny = f32::from_bits(3);
    for collective in COLLECTIVE_NAMES {
        let sums = on_ranks(4, &options(collective), |communicator| {
            let mut vector = [tiny; 9];
            communicator.all_reduce(&mut vector, Operator::Sum)?;
            Ok(vector)
        });
        assert_eq!(sums, [[f32::from_bits(12); 9]; 4], "{collective}");
    }
}

// Everything else that a caller may vary, at random.

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_mixture_of_arguments_is_exact(
        collective in proptest::sample::select(COLLECTIVE_NAMES),
        n in RANKS,
        lengths in proptest::collection::vec(0usize..300, 1..4),
        segment_words in 1usize..40,
    ) {
        let exact = Exact::new(n, 300);
        let options = CommunicatorOptions { segment_bytes: 8 * segment_words, ..options(collective) };
        on_ranks(n, &options, |communicator| {
            for (number, &len) in lengths.iter().enumerate() {
                match (len + number) % 6 {
                    0 => exact.check::<f32>(communicator, len)?,
                    1 => exact.check::<f64>(communicator, len)?,
                    2 => exact.check::<i32>(communicator, len)?,
                    3 => exact.check::<i64>(communicator, len)?,
                    4 => exact.check::<f16>(communicator, len)?,
                    _ => exact.check::<bf16>(communicator, len)?,
                }
            }
            Ok(())
        });
    }
}
