//! What the vectors hold: small integers whose results are exact in any order, and random numbers whose results are not.

use crate::collective::{Kind, part};
use crate::reduce::{Element, ElementType, Operator, WireFormat};
use crate::transport::Rank;
use half::{bf16, f16};

/// An element type that the benchmark can fill.
pub(super) trait Number: Element {
    fn small(value: i64) -> Self;
    fn random(bits: u64) -> Self;
    /// What `Average` makes of a sum.
    fn mean(self, n: usize) -> Self;
}

macro_rules! numbers {
    ($($type:ty: $small:expr, $random:expr, $mean:expr;)+) => {$(
        impl Number for $type {
            fn small(value: i64) -> Self {
                ($small)(value)
            }
            fn random(bits: u64) -> Self {
                ($random)(bits)
            }
            fn mean(self, n: usize) -> Self {
                ($mean)(self, n)
            }
        }
    )+};
}
numbers! {
    f32: |v| v as f32, |bits| symmetric(bits) as f32, |sum, n| if n == 1 { sum } else { sum * (1.0 / n as f32) };
    f64: |v| v as f64, symmetric, |sum, n| if n == 1 { sum } else { sum * (1.0 / n as f64) };
    i32: |v| v as i32, |bits| bits as i32, |sum: i32, n| sum / n as i32;
    i64: |v| v, |bits| bits as i64, |sum: i64, n| sum / n as i64;
    f16: |v| f16::from_f32(v as f32), |bits| f16::from_f64(symmetric(bits)), |sum: f16, n| f16::from_f32(sum.to_f32().mean(n));
    bf16: |v| bf16::from_f32(v as f32), |bits| bf16::from_f64(symmetric(bits)), |sum: bf16, n| bf16::from_f32(sum.to_f32().mean(n));
}

/// Between −1 and 1.
fn symmetric(bits: u64) -> f64 {
    (bits >> 11) as f64 / (1u64 << 52) as f64 - 1.0
}

/// A well-mixed number for each rank and index (the finaliser of SplitMix64): the same on every machine.
fn mixed(rank: Rank, index: usize) -> u64 {
    let mut z = (rank as u64) << 48 ^ index as u64;
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Integers up to this are exact in every type.
const EXACT: usize = 256;

/// Values repeat after so many elements, a prime, so that the results are few and misplaced parts are still noticed.
const PERIOD: usize = 1021;

/// One operation's contributions on one rank, and what must come out.
pub(super) struct Contributions<T> {
    kind: Kind,
    rank: Rank,
    n: usize,
    operator: Operator,
    own: Vec<T>,
    results: Vec<T>,
    /// How far a result may be off: 0 but over a narrow wire.
    tolerance: f64,
}

impl<T: Number> Contributions<T> {
    pub(super) fn new(kind: Kind, operator: Operator, rank: Rank, n: usize) -> Self {
        let own = (0..PERIOD).map(|index| T::small(small(operator, rank, n, index))).collect();
        let result = |index| {
            let of_ranks = (0..n).map(|rank| small(operator, rank, n, index));
            let result = match operator {
                Operator::Sum | Operator::Average => of_ranks.sum(),
                Operator::Product => of_ranks.product(),
                Operator::Min => of_ranks.min().unwrap_or_default(),
                Operator::Max => of_ranks.max().unwrap_or_default(),
            };
            if operator == Operator::Average { T::small(result).mean(n) } else { T::small(result) }
        };
        let results = if kind.reduces() { (0..PERIOD).map(result).collect() } else { Vec::new() };
        Contributions { kind, rank, n, operator, own, results, tolerance: 0.0 }
    }

    /// The same where results come over `wire`. A narrow one carries contributions of −1, 0 and 1 as they are and rounds
    /// their sum, by less than half of what one wrong contribution changes (on up to a hundred ranks).
    pub(super) fn over(mut self, wire: WireFormat) -> Self {
        let (n, operator) = (self.n, self.operator);
        if self.kind != Kind::AllReduce || T::TYPE != ElementType::F32 || !wire.narrows(T::TYPE) || n == 1 {
            return self;
        }
        let unit = |rank, index| small(operator, rank, n, index).signum();
        let result = |index| {
            let sum = T::small((0..n).map(|rank| unit(rank, index)).sum());
            if operator == Operator::Average { sum.mean(n) } else { sum }
        };
        self.own = (0..PERIOD).map(|index| T::small(unit(self.rank, index))).collect();
        self.results = (0..PERIOD).map(result).collect();
        let largest = if operator == Operator::Average { 1.0 } else { n as f32 };
        // A sum that is a little off rounds a little further.
        self.tolerance = 1.01 * wire.error_bound(largest) + 1e-6 * f64::from(largest);
        self
    }

    fn is_near(&self, found: &T, expected: &T) -> bool {
        // Only vectors of f32 have a tolerance.
        let value = |value: &T| f64::from(bytemuck::pod_read_unaligned::<f32>(bytemuck::bytes_of(value)));
        self.tolerance > 0.0 && (value(found) - value(expected)).abs() <= self.tolerance
    }

    /// What this rank begins with.
    pub(super) fn fill(&self, vector: &mut [T]) {
        for chunk in vector.chunks_mut(PERIOD) {
            chunk.copy_from_slice(&self.own[..chunk.len()]);
        }
    }

    /// Overwrites what is to arrive from other ranks, so that it is not there before.
    pub(super) fn forget_others(&self, vector: &mut [T]) {
        if self.kind == Kind::AllGather {
            let own = part(vector.len(), self.n, self.rank);
            vector[..own.start].fill(T::small(77));
            vector[own.end..].fill(T::small(77));
        }
    }

    /// Which elements of this rank's result mean something.
    pub(super) fn defined(&self, len: usize, root: Rank) -> std::ops::Range<usize> {
        match self.kind {
            Kind::ReduceScatter => part(len, self.n, self.rank),
            Kind::Reduce if self.rank != root => 0..0,
            _ => 0..len,
        }
    }

    /// How many elements of this rank's result are wrong.
    pub(super) fn wrong(&self, vector: &[T], root: Rank) -> u64 {
        let differs = |found: &T, expected: &T| {
            let is_same = bytemuck::bytes_of(found) == bytemuck::bytes_of(expected);
            u64::from(!is_same && !self.is_near(found, expected))
        };
        let against_results = |range: std::ops::Range<usize>| -> u64 {
            range.map(|index| differs(&vector[index], &self.results[index % PERIOD])).sum()
        };
        let against_rank = |rank: Rank, range: std::ops::Range<usize>| -> u64 {
            let value = |index| T::small(small(self.operator, rank, self.n, index % PERIOD));
            range.map(|index| differs(&vector[index], &value(index))).sum()
        };
        match self.kind {
            Kind::AllReduce => against_results(0..vector.len()),
            Kind::Reduce if self.rank == root => against_results(0..vector.len()),
            Kind::Reduce => 0,
            Kind::ReduceScatter => against_results(part(vector.len(), self.n, self.rank)),
            Kind::AllGather => {
                (0..self.n).map(|rank| against_rank(rank, part(vector.len(), self.n, rank))).sum()
            }
            Kind::Broadcast => against_rank(root, 0..vector.len()),
        }
    }
}

/// A small integer. Every partial result of `n` of them is exact in every type.
fn small(operator: Operator, rank: Rank, n: usize, index: usize) -> i64 {
    let mixed = mixed(rank, index);
    match operator {
        // Beyond 256 ranks only the first contribute.
        Operator::Sum | Operator::Average if rank >= EXACT => 0,
        Operator::Sum | Operator::Average => {
            let largest = (EXACT / n).clamp(1, 8) as i64;
            mixed as i64 % (largest + 1)
        }
        Operator::Min | Operator::Max => mixed as i64 % EXACT as i64,
        Operator::Product if rank < 4 && mixed & 6 == 0 => 2,
        Operator::Product => {
            if mixed & 1 == 0 {
                1
            } else {
                -1
            }
        }
    }
}

/// Fills with numbers whose sums depend on the order of summation; the same in every run.
pub(super) fn fill_random<T: Number>(vector: &mut [T], rank: Rank) {
    vector.iter_mut().enumerate().for_each(|(index, value)| *value = T::random(mixed(rank, index)));
}

/// A hash of bits, the same on every machine of one byte order.
pub(super) fn hash(bytes: &[u8]) -> u64 {
    let words = bytes.chunks(8).map(|chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        u64::from_le_bytes(word)
    });
    words.fold(bytes.len() as u64, combine)
}

/// A hash that depends on both and on their order.
pub(super) fn combine(hash: u64, word: u64) -> u64 {
    let mixed = (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ (mixed >> 29)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_wrong_element_is_counted() {
        let contributions = Contributions::<f32>::new(Kind::AllReduce, Operator::Sum, 0, 1);
        let mut vector = vec![0.0; 3000];
        contributions.fill(&mut vector);
        assert_eq!(contributions.wrong(&vector, 0), 0);
        vector[17] += 1.0;
        vector[2999] = f32::NAN;
        assert_eq!(contributions.wrong(&vector, 0), 2);
    }

    #[test]
    fn over_a_narrow_wire_rounding_is_right_and_a_lost_contribution_wrong() {
        for wire in [WireFormat::F16, WireFormat::Bf16, WireFormat::Int8] {
            for operator in [Operator::Sum, Operator::Average] {
                let ranks = (0..8)
                    .map(|rank| Contributions::<f32>::new(Kind::AllReduce, operator, rank, 8).over(wire));
                let ranks: Vec<_> = ranks.collect();
                let share = if operator == Operator::Average { 0.125 } else { 1.0 };
                let sum = |index: usize| share * ranks.iter().map(|rank| rank.own[index]).sum::<f32>();
                let mut vector: Vec<f32> = (0..PERIOD).map(sum).collect();
                let rounding = 0.9 * wire.error_bound(8.0 * share) as f32;
                vector.iter_mut().for_each(|value| *value += rounding);
                assert_eq!(ranks[0].wrong(&vector, 0), 0, "{wire} {operator}");
                vector[5] += share;
                vector[6] -= share;
                assert_eq!(ranks[0].wrong(&vector, 0), 2, "{wire} {operator}");
            }
        }
    }

    #[test]
    fn a_hash_sees_each_bit_and_the_length() {
        assert_ne!(hash(&[0, 0]), hash(&[0]));
        assert_ne!(hash(&[0; 16]), hash(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 128, 0, 0, 0, 0]));
        assert_eq!(hash(&[1, 2, 3]), hash(&[1, 2, 3]));
    }
}
