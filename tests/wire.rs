//! Narrow wire formats: what each loses, what it never loses, and the all-reduce over them, bit for bit against a
//! sequential reference.

#[path = "common/number.rs"]
mod number;
#[path = "common/ranks.rs"]
mod ranks;

use esync::Error;
use esync::collective::{COLLECTIVE_NAMES, CommunicatorOptions, Feedback, Member, Order, TWO_SHOT};
use esync::reduce::wire::BLOCK;
use esync::reduce::{Operator, WireFormat};
use half::{bf16, f16};
use number::{Number, canonical, left_to_right, mixed};
use proptest::prelude::*;
use ranks::{on_ranks, options, try_ranks};

const NARROW: [WireFormat; 3] = [WireFormat::F16, WireFormat::Bf16, WireFormat::Int8];

/// There and back again.
fn through(format: WireFormat, values: &[f32]) -> Vec<f32> {
    let mut encoded = vec![0; format.encoded_bytes(values.len())];
    let mut decoded = vec![f32::MAX; values.len()];
    format.encode(values, &mut encoded);
    format.decode(&encoded, &mut decoded);
    decoded
}

/// The magnitude that decides the error of each element: its own, or its block's largest in `int8`.
fn magnitudes(format: WireFormat, values: &[f32]) -> Vec<f32> {
    let of_block = |block: &[f32]| {
        let largest = block.iter().fold(0f32, |largest, value| largest.max(value.abs()));
        let of = |value: &f32| if format == WireFormat::Int8 { largest } else { value.abs() };
        block.iter().map(of).collect::<Vec<_>>()
    };
    values.chunks(BLOCK).flat_map(of_block).collect()
}

fn bounds(format: WireFormat, values: &[f32]) -> Vec<f64> {
    magnitudes(format, values).into_iter().map(|magnitude| format.error_bound(magnitude)).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

// The formats.

#[test]
fn names_lead_to_formats_and_back() {
    for format in WireFormat::ALL {
        assert_eq!(format.to_string().parse::<WireFormat>().ok(), Some(format));
        assert_eq!(serde_json::to_value(format).unwrap(), format.name());
    }
    let error = "fp8".parse::<WireFormat>().unwrap_err();
    assert_eq!(error.exit_code(), 2);
    assert!(WireFormat::ALL.iter().all(|format| error.to_string().contains(format.name())), "{error}");
}

#[test]
fn sixteen_bits_are_those_of_the_types() {
    // Every exponent, both signs, every pattern of the bits around the cut: 2^23 numbers of all kinds.
    for high in (0..=u32::from(u16::MAX)).step_by(512) {
        let values: Vec<f32> = (0..1 << 16).map(|low| f32::from_bits((high << 16) + low * 512)).collect();
        let expect = |format, of: &dyn Fn(f32) -> f32| {
            let expected: Vec<f32> =
                values.iter().map(|&value| if value.is_nan() { f32::NAN } else { of(value) }).collect();
            assert_eq!(bits(&through(format, &values)), bits(&expected), "{format}");
        };
        expect(WireFormat::F16, &|value| f16::from_f32(value).to_f32());
        expect(WireFormat::Bf16, &|value| bf16::from_f32(value).to_f32());
        expect(WireFormat::F32, &|value| value);
    }
}

#[test]
fn int8_rounds_to_nearest_and_ties_to_even() {
    let values = [127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 3.49, -3.51, -127.0, 0.0];
    let expected = [127.0, 0.0, 2.0, 2.0, 0.0, -2.0, -2.0, 3.0, -4.0, -127.0, 0.0];
    assert_eq!(through(WireFormat::Int8, &values), expected);
}

#[test]
fn int8_keeps_zero_and_the_largest_of_a_block() {
    for largest in [1.0f32, 3.7e-30, f32::MAX, f32::MAX / 3.0, 128.0 * f32::MIN_POSITIVE] {
        let decoded = through(WireFormat::Int8, &[largest, -largest, 0.0, -0.0]);
        for (value, expected) in decoded.iter().zip([largest, -largest]) {
            assert!((value / expected - 1.0).abs() < 2e-6, "{value} for {expected}");
        }
        assert_eq!(decoded[2..], [0.0, 0.0]);
    }
}

#[test]
fn int8_blocks_of_tiny_numbers_become_zeros() {
    let below = f32::from_bits((128.0 * f32::MIN_POSITIVE).to_bits() - 1);
    for largest in [0.0, f32::from_bits(1), f32::MIN_POSITIVE, below] {
        assert_eq!(bits(&through(WireFormat::Int8, &[largest, -largest, 0.0])), [0, 0, 0]);
    }
}

#[test]
fn what_is_no_number_never_vanishes() {
    let odd_nan = f32::from_bits(0xff80_0001);
    for bad in [f32::NAN, odd_nan, f32::INFINITY, f32::NEG_INFINITY] {
        let mut values = vec![0.25; 3 * BLOCK + 5];
        values[BLOCK + 17] = bad;
        for format in WireFormat::ALL {
            let decoded = through(format, &values);
            let expected = if bad.is_nan() { f32::NAN } else { bad };
            for (index, value) in decoded.iter().enumerate() {
                let expected = match format {
                    WireFormat::Int8 if index / BLOCK == 1 => f32::NAN,
                    _ if index == BLOCK + 17 => expected,
                    _ => 0.25,
                };
                let is_right = if expected.is_finite() {
                    f64::from(value - expected).abs() <= format.error_bound(0.25)
                } else {
                    value.to_bits() == expected.to_bits()
                };
                assert!(is_right, "{format}: {value} at {index}, expected {expected}");
            }
        }
    }
}

proptest! {
    #[test]
    fn errors_keep_their_bound(seed: u64, len in 0usize..1200, exponent in -140i32..127) {
        let scale = 2f64.powi(exponent);
        let values: Vec<f32> = (0..len)
            .map(|index| {
                // Magnitudes within a block differ by up to a billion.
                let bits = mixed(seed, 0, index);
                (f64::from(f32::random(bits)) * 0.9 * scale * 2f64.powi(-((bits % 31) as i32))) as f32
            })
            .collect();
        for format in WireFormat::ALL {
            let (decoded, bounds) = (through(format, &values), bounds(format, &values));
            for ((value, decoded), bound) in values.iter().zip(&decoded).zip(bounds) {
                let error = (f64::from(*value) - f64::from(*decoded)).abs();
                prop_assert!(error <= bound, "{format}: {decoded} for {value}: {error:e} > {bound:e}");
            }
        }
    }

    #[test]
    fn any_bits_can_be_written_and_read(seed: u64, len in 0usize..600) {
        let values: Vec<f32> = (0..len).map(|index| f32::from_bits(mixed(seed, 0, index) as u32)).collect();
        for format in WireFormat::ALL {
            let decoded = through(format, &values);
            let (bounds, magnitudes) = (bounds(format, &values), magnitudes(format, &values));
            for (index, value) in values.iter().enumerate() {
                let (decoded, bound) = (decoded[index], bounds[index]);
                if value.is_finite() && bound.is_finite() && magnitudes[index].is_finite() {
                    let error = (f64::from(*value) - f64::from(decoded)).abs();
                    let is_spoilt = format == WireFormat::Int8 && decoded.is_nan();
                    prop_assert!(error <= bound || is_spoilt, "{format}: {decoded} for {value}");
                } else {
                    prop_assert!(!decoded.is_finite() || value.is_finite(), "{format}: {decoded} for {value}");
                }
            }
        }
    }
}

// All-reduce.

/// What all ranks must end with.
fn reference(format: WireFormat, order: Order, operator: Operator, vectors: &[Vec<f32>]) -> Vec<f32> {
    let n = vectors.len();
    if n == 1 {
        return vectors[0].clone();
    }
    let carried: Vec<Vec<f32>> = vectors.iter().map(|vector| through(format, vector)).collect();
    let sum = |index: usize| {
        let values: Vec<f32> = carried.iter().map(|vector| vector[index]).collect();
        let sum = match order {
            Order::Rank => left_to_right(&values, operator),
            _ => canonical(&values, operator),
        };
        sum.finish(operator, n)
    };
    let sums: Vec<f32> = (0..vectors[0].len()).map(sum).collect();
    through(format, &sums)
}

#[derive(Debug, Clone)]
struct Case {
    n: usize,
    len: usize,
    format: WireFormat,
    order: Order,
    operator: Operator,
    segment_bytes: usize,
    seed: u64,
    /// Of so many elements one is special; 0: none.
    specials: u64,
}

impl Case {
    fn vector(&self, rank: usize) -> Vec<f32> {
        let value = |index| {
            let bits = mixed(self.seed, rank, index);
            match self.specials {
                0 => f32::random(bits),
                often if bits.is_multiple_of(often) => f32::special(bits / often),
                _ => f32::random(bits),
            }
        };
        (0..self.len).map(value).collect()
    }

    fn options(&self, collective: &str) -> CommunicatorOptions {
        let Case { format: wire, order, segment_bytes, .. } = *self;
        CommunicatorOptions { wire, order, segment_bytes, ..options(collective) }
    }

    /// Two calls on each rank, the second to see that the first left nothing behind; both are compared.
    fn check(&self, collective: &str) {
        let vectors: Vec<Vec<f32>> = (0..self.n).map(|rank| self.vector(rank)).collect();
        let expected = reference(self.format, self.order, self.operator, &vectors);
        let results = on_ranks(self.n, &self.options(collective), |communicator| {
            let mut first = self.vector(communicator.rank());
            communicator.all_reduce(&mut first, self.operator)?;
            let mut second = self.vector(communicator.rank());
            communicator.all_reduce(&mut second, self.operator)?;
            Ok([first, second])
        });
        for (rank, result) in results.iter().flatten().enumerate() {
            assert_eq!(bits(result), bits(&expected), "rank {}, {self:?}", rank / 2);
        }
        if self.specials == 0 {
            self.check_error(&vectors, &expected);
        }
    }

    /// Each contribution is rounded once, the sum once for each addition in f32, the result once.
    fn check_error(&self, vectors: &[Vec<f32>], result: &[f32]) {
        if self.n == 1 {
            return;
        }
        let scale = if self.operator == Operator::Average { 1.0 / self.n as f64 } else { 1.0 };
        let rounding: Vec<Vec<f64>> = vectors.iter().map(|vector| bounds(self.format, vector)).collect();
        let last = bounds(self.format, result);
        for (index, found) in result.iter().enumerate() {
            let exact: f64 = scale * vectors.iter().map(|vector| vector[index].wide()).sum::<f64>();
            let inputs: f64 = scale * rounding.iter().map(|bounds| bounds[index]).sum::<f64>();
            let sums = 2.0 * self.n as f64 * f64::from(f32::EPSILON) * 2.0 * self.n as f64 * scale;
            // The result's bound is taken from what arrived, which is itself a little off.
            let bound = inputs + 1.02 * last[index] + sums;
            let error = (exact - f64::from(*found)).abs();
            assert!(error <= bound, "element {index}: {found} for {exact}, {error:e} > {bound:e}, {self:?}");
        }
    }
}

#[test]
fn every_format_order_and_length_on_one_to_nine_ranks() {
    for n in 1..=9 {
        for len in [0, 1, 2, 255, 256, 257, 1000, 256 * n, 256 * n + 1, 5003] {
            for format in NARROW {
                for (order, operator) in [(Order::Auto, Operator::Sum), (Order::Rank, Operator::Average)] {
                    let segment_bytes = if len % 2 == 0 { 256 * 1024 } else { 1040 };
                    let seed = len as u64;
                    Case { n, len, format, order, operator, segment_bytes, seed, specials: 0 }
                        .check("parameter-server");
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn random_cases(
        n in 1usize..=9, len in 0usize..6000, format in prop::sample::select(&NARROW[..]),
        order in prop::sample::select(vec![Order::Auto, Order::Canonical, Order::Rank, Order::Fastest]),
        operator in prop::sample::select(vec![Operator::Sum, Operator::Average]),
        segment_bytes in prop::sample::select(vec![8usize, 264, 1000, 4096, 256 * 1024]),
        specials in prop::sample::select(vec![0u64, 0, 3, 50, 1000]), seed: u64,
    ) {
        Case { n, len, format, order, operator, segment_bytes, seed, specials }.check("parameter-server");
    }
}

#[test]
fn the_bits_do_not_depend_on_the_collective() {
    for collective in COLLECTIVE_NAMES {
        let case = Case {
            n: 5,
            len: 3001,
            format: WireFormat::Int8,
            order: Order::Auto,
            operator: Operator::Sum,
            segment_bytes: 256 * 1024,
            seed: 3,
            specials: 0,
        };
        case.check(collective);
    }
}

#[test]
fn bytes_are_counted_as_they_are_sent() {
    for format in NARROW {
        for (n, len) in [(2, 512), (3, 10_000), (8, 100_003), (5, 100)] {
            let options = CommunicatorOptions { wire: format, ..options("ring") };
            let counts = on_ranks(n, &options, |communicator| {
                communicator.all_reduce(&mut vec![1f32; len], Operator::Sum)?;
                Ok([communicator.bytes_sent(), communicator.bytes_received()])
            });
            let all = 2 * (n as u64 - 1) * format.encoded_bytes(len) as u64;
            for direction in [0, 1] {
                assert_eq!(
                    counts.iter().map(|count| count[direction]).sum::<u64>(),
                    all,
                    "{format} {n} {len}"
                );
            }
        }
    }
}

#[test]
fn a_wire_as_wide_as_the_vector_changes_nothing() {
    let sum = |wire, order| {
        on_ranks(5, &CommunicatorOptions { wire, order, ..options("binary-blocks") }, |communicator| {
            let rank = communicator.rank();
            let mut vector: Vec<f16> = (0..777).map(|index| f16::random(mixed(1, rank, index))).collect();
            communicator.all_reduce(&mut vector, Operator::Max)?;
            communicator.all_reduce(&mut vector, Operator::Sum)?;
            Ok(vector)
        })
    };
    assert_eq!(sum(WireFormat::F16, Order::Canonical), sum(WireFormat::F32, Order::Canonical));
}

#[test]
fn what_cannot_be_narrowed_is_refused_by_name_and_nothing_breaks() {
    let options = CommunicatorOptions { wire: WireFormat::Int8, ..options("ring") };
    let texts = on_ranks(3, &options, |communicator| {
        let refusals = [
            communicator.all_reduce(&mut [1f64; 9], Operator::Sum),
            communicator.all_reduce(&mut [1i32; 9], Operator::Sum),
            communicator.all_reduce(&mut [f16::ONE; 9], Operator::Sum),
            communicator.all_reduce(&mut [1f32; 9], Operator::Min),
            communicator.all_reduce(&mut [1f32; 9], Operator::Product),
            communicator.reduce_scatter(&mut [1f32; 9], Operator::Sum).map(drop),
            communicator.reduce(&mut [1f32; 9], Operator::Sum, 0),
        ];
        let texts: Vec<String> = refusals
            .into_iter()
            .map(|refusal| match refusal {
                Err(error @ Error::Refused { .. }) => error.to_string(),
                other => panic!("{other:?}"),
            })
            .collect();
        // What only moves data is exact, and what can be narrowed still works.
        let mut exact = [0.1f32; 5];
        communicator.broadcast(&mut exact, 1)?;
        assert_eq!(exact, [0.1; 5]);
        assert_eq!(communicator.gather_bytes(b"abc")?, vec![b"abc"; 3]);
        let mut ones = [1f32; 300];
        communicator.all_reduce(&mut ones, Operator::Sum)?;
        assert!(ones.iter().all(|one| (one - 3.0).abs() < 1e-5));
        Ok(texts)
    });
    for texts in texts {
        let words = ["f64", "i32", "f16", "min", "product", "reduce-scatter", "reduce with root 0"];
        for (text, word) in texts.iter().zip(words) {
            assert!(text.contains(word) && text.contains("int8") && text.contains(TWO_SHOT), "{text}");
        }
    }
}

#[test]
fn what_must_not_be_rounded_travels_as_it_is() {
    let sum = |wire, exact: bool| {
        let options = CommunicatorOptions { wire, ..options("binary-blocks") };
        on_ranks(6, &options, |communicator| {
            let rank = communicator.rank();
            let mut vector: Vec<f32> = (0..600).map(|index| f32::random(mixed(9, rank, index))).collect();
            communicator.enter(vector.len(), Operator::Sum, Member::default())?;
            match exact {
                true => communicator.all_reduce_entered_exact(&mut vector, Operator::Sum)?,
                false => communicator.all_reduce_entered(&mut vector, Operator::Sum)?,
            }
            // The wire is back afterwards.
            assert_eq!(communicator.options().wire, wire);
            Ok(bits(&vector))
        })
    };
    let expected = sum(WireFormat::F32, false);
    assert_eq!(sum(WireFormat::Int8, true), expected);
    assert_ne!(sum(WireFormat::Int8, false), expected);
}

#[test]
fn ranks_with_different_wires_all_see_it() {
    let results = ranks_with_wires(&[WireFormat::Int8, WireFormat::Int8, WireFormat::Bf16]);
    for (rank, result) in results.into_iter().enumerate() {
        let Err(error @ Error::Mismatch { .. }) = result else { panic!("rank {rank}: {result:?}") };
        assert!(
            error.to_string().contains("wire format: rank 0 has int8, rank 2 has bf16"),
            "rank {rank}: {error}"
        );
    }
}

fn ranks_with_wires(wires: &[WireFormat]) -> Vec<esync::Result<()>> {
    use esync::collective::Communicator;
    use esync::transport::{Transport, threads};
    threads::run(wires.len(), |transport| {
        let options = CommunicatorOptions { wire: wires[transport.rank()], ..options("ring") };
        Communicator::new(std::sync::Arc::new(transport), options)?
            .all_reduce(&mut [1f32; 600], Operator::Sum)
    })
}

#[test]
fn a_rank_that_ends_is_named_with_the_operation() {
    let options = CommunicatorOptions { wire: WireFormat::Bf16, ..options("ring") };
    let results = try_ranks(4, &options, |communicator| {
        if communicator.rank() == 2 {
            // It says that it will take part, and does not.
            communicator.enter(70_000, Operator::Sum, Member::default())?;
            return Ok(());
        }
        communicator.enter(70_000, Operator::Sum, Member::default())?;
        let result = communicator.all_reduce_entered(&mut vec![1f32; 70_000], Operator::Sum);
        // Failed once, failed for good.
        assert!(communicator.barrier().is_err());
        result
    });
    let mut named = 0;
    for (rank, result) in results.into_iter().enumerate().filter(|(rank, _)| *rank != 2) {
        let Err(error @ Error::PeerLost { .. }) = result else { panic!("rank {rank}: {result:?}") };
        assert!(error.to_string().contains("70000 f32 by `two-shot`"), "{error}");
        named += usize::from(error.to_string().contains("rank 2"));
    }
    assert!(named > 0);
}

// Error feedback.

/// The mean of what `rounds` all-reduces of the same vectors gave, without and with error feedback.
fn long_run_means(format: WireFormat, inputs: &[Vec<f32>], rounds: usize) -> [Vec<f64>; 2] {
    [false, true].map(|with_feedback| {
        let options = CommunicatorOptions { wire: format, ..options("parameter-server") };
        let means = on_ranks(inputs.len(), &options, |communicator| {
            let mut feedback = Feedback::default();
            let mut sums = vec![0.0; inputs[0].len()];
            for _ in 0..rounds {
                let mut vector = inputs[communicator.rank()].clone();
                communicator.enter(vector.len(), Operator::Sum, Member::default())?;
                match with_feedback {
                    true => communicator.all_reduce_entered_with_feedback(
                        &mut vector,
                        Operator::Sum,
                        &mut feedback,
                    )?,
                    false => communicator.all_reduce_entered(&mut vector, Operator::Sum)?,
                }
                sums.iter_mut().zip(vector).for_each(|(sum, value)| *sum += f64::from(value));
            }
            Ok(sums.into_iter().map(|sum| sum / rounds as f64).collect::<Vec<f64>>())
        });
        assert!(means.iter().all(|mean| *mean == means[0]), "all ranks read the same");
        means.into_iter().next().unwrap()
    })
}

#[test]
fn with_error_feedback_the_long_run_mean_is_right_and_without_it_is_biased() {
    const ROUNDS: usize = 400;
    for format in NARROW {
        for n in [1, 2, 3, 5] {
            // One large number in each block, beside which the others are less than a rounding step; and the other way round
            // for the sum, whose rounding is another.
            let input = |rank: usize| {
                let small = |index: usize| 1e-4 * (1.0 + ((index * 7 + rank * 3) % 11) as f32);
                (0..3 * BLOCK + 50).map(|index| if index % 50 == rank { 1.0 } else { small(index) }).collect()
            };
            let inputs: Vec<Vec<f32>> = (0..n).map(input).collect();
            let exact: Vec<f64> = (0..inputs[0].len())
                .map(|index| inputs.iter().map(|input| f64::from(input[index])).sum())
                .collect();
            let worst = |means: &[f64]| {
                means.iter().zip(&exact).map(|(mean, exact)| (mean - exact).abs()).fold(0.0, f64::max)
            };
            let [without, with] = long_run_means(format, &inputs, ROUNDS).map(|means| worst(&means));
            if n == 1 {
                assert!(without < 1e-6 && with < 1e-6, "nothing travels, nothing is rounded");
                continue;
            }
            // What is still owed after the last round is at most a rounding step of each contribution and one of the sum.
            let owed = 2.0 * (n as f64 * format.error_bound(1.1) + format.error_bound(1.1 * n as f32));
            assert!(with <= owed / ROUNDS as f64 + 1e-6, "{format}, {n} ranks: {with}");
            assert!(without > 3.0 * with, "{format}, {n} ranks: {without} without, {with} with");
        }
    }
}

#[test]
fn a_rank_that_diverged_leaves_nothing_behind() {
    for format in NARROW {
        let options = CommunicatorOptions { wire: format, ..options("parameter-server") };
        let results = on_ranks(2, &options, |communicator| {
            let mut feedback = Feedback::default();
            let mut last = Vec::new();
            for round in 0..2 {
                let mut vector = vec![if round == 0 { f32::INFINITY } else { 1.0 }; 300];
                communicator.enter(vector.len(), Operator::Sum, Member::default())?;
                communicator.all_reduce_entered_with_feedback(&mut vector, Operator::Sum, &mut feedback)?;
                last = vector;
            }
            Ok(last)
        });
        assert!(results.iter().flatten().all(|&value| value == 2.0), "{format}");
    }
}
