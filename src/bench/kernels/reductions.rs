//! Reductions of two and of many vectors, and averages.

use super::Checked;
use super::arena::{Aligned, Arena, Bits, Tester};
use super::machine::Machine;
use super::numbers::{Kind, is_float, wide};
use crate::error::Result;
use crate::reduce::{
    ElementType, Operator, ReduceMany, Store, Target, Tree, reduce_into, reduce_many, scale_for_average,
};

/// Where a result goes.
const PLACES: [&str; 3] = ["apart", "into the first", "into the last"];

pub(super) fn check<M: Machine>(tester: &mut Tester<'_, M>, lengths: &[usize]) -> Result<Vec<Checked>> {
    let mut all = Vec::new();
    for element in ElementType::ALL {
        for operator in [Operator::Sum, Operator::Min, Operator::Max, Operator::Product] {
            all.push(reduce(tester, element, operator, lengths)?);
        }
        all.push(scale(tester, element, lengths)?);
        for operator in Operator::ALL {
            all.push(many(tester, element, operator, lengths)?);
        }
    }
    Ok(all)
}

/// Every residue of the result's address, and two of the operands': the same, and another.
fn residues(element: ElementType) -> impl Iterator<Item = [usize; 3]> {
    let size = element.size();
    (0..16 / size).flat_map(move |at| {
        let next = |by: usize| (at + by) % (16 / size) * size;
        [[next(0), next(0), next(0)], [next(0), next(1), next(0)], [next(0), next(0), next(1)]]
    })
}

fn reduce<M: Machine>(
    tester: &mut Tester<'_, M>,
    element: ElementType,
    operator: Operator,
    lengths: &[usize],
) -> Result<Checked> {
    let mut checked = Tally::of(format!("reduce {element} {operator}"), is_float(element));
    for &len in lengths {
        for (case, residues) in residues(element).enumerate() {
            let kind = Kind::ALL[case % 2];
            let place = case / 2 % PLACES.len();
            let left = kind.vector(&mut tester.random, element, len);
            let right = kind.vector(&mut tester.random, element, len);
            let mut arena = Arena::new(format!(
                "{} of {len}, {}, {kind:?} numbers, addresses {residues:?} beyond 16",
                checked.kernel, PLACES[place]
            ));
            let l = arena.vector(&left, residues[1]);
            let r = arena.vector(&right, residues[2]);
            let into = match place {
                0 => arena.output(left.len(), residues[0]),
                1 => l,
                _ => r,
            };
            let mut expected = Aligned::of(&left);
            let other = Aligned::of(&right);
            let target = Target::Left { left: expected.bytes_mut(), right: other.bytes() };
            reduce_into(element, operator, target);
            arena.expect(into, expected.bytes(), Bits::All);
            if kind == Kind::Ordinary && is_float(element) {
                let pairs = wide(element, &left).into_iter().zip(wide(element, &right));
                let exact = pairs.map(|(left, right)| match operator {
                    Operator::Min => (left.min(right), 0.0),
                    Operator::Max => (left.max(right), 0.0),
                    Operator::Product => (left * right, 0.0),
                    _ => (left + right, left.abs() + right.abs()),
                });
                arena.expect_near(into, element, f64_roundings(element), exact);
            }
            let error = tester.run(arena, |machine, stream, at| {
                // SAFETY: all vectors are in the arena, which waits for the kernel.
                unsafe { machine.reduce(stream, element, operator, at(into), at(l), at(r), len) }
            })?;
            checked.add(error);
        }
    }
    Ok(checked.done())
}

/// One rounding; two where the sum in f64 is rounded itself.
fn f64_roundings(element: ElementType) -> f64 {
    if element == ElementType::F64 { 2.0 } else { 1.0 }
}

fn scale<M: Machine>(tester: &mut Tester<'_, M>, element: ElementType, lengths: &[usize]) -> Result<Checked> {
    let mut checked = Tally::of(format!("scale_for_average {element}"), is_float(element));
    for &len in lengths {
        for (case, ranks) in [2, 3, 7, 8, 1000, 65537].into_iter().enumerate() {
            let (kind, residue) = (Kind::ALL[case % 2], case * element.size() % 16);
            let values = kind.vector(&mut tester.random, element, len);
            let mut arena = Arena::new(format!(
                "{} of {len}, {ranks} ranks, address {residue} beyond 16",
                checked.kernel
            ));
            let place = arena.vector(&values, residue);
            let mut expected = Aligned::of(&values);
            scale_for_average(element, expected.bytes_mut(), ranks);
            arena.expect(place, expected.bytes(), Bits::All);
            if kind == Kind::Ordinary && is_float(element) {
                // The factor is rounded too.
                let exact = wide(element, &values).into_iter().map(|value| (value / ranks as f64, 0.0));
                arena.expect_near(place, element, 3.0, exact);
            }
            let error = tester.run(arena, |machine, stream, at| {
                // SAFETY: the vector is in the arena, which waits for the kernel.
                unsafe { machine.scale_for_average(stream, element, at(place), len, ranks) }
            })?;
            checked.add(error);
        }
    }
    Ok(checked.done())
}

fn many<M: Machine>(
    tester: &mut Tester<'_, M>,
    element: ElementType,
    operator: Operator,
    lengths: &[usize],
) -> Result<Checked> {
    let is_sum = matches!(operator, Operator::Sum | Operator::Average);
    let compares = is_float(element) && operator != Operator::Product;
    let mut checked = Tally::of(format!("reduce_many {element} {operator}"), compares);
    let numbers_of_ranks = (1..=17).chain([23, 31, 32, 33, 47, 56, 63, 64]);
    for (case, ranks) in numbers_of_ranks.enumerate() {
        for (turn, tree) in [Tree::Canonical, Tree::RankOrder].into_iter().enumerate() {
            let kind = Kind::ALL[(case + turn) % 2];
            let len = lengths[(2 * case + turn) % lengths.len()];
            let place = (case + turn) % PLACES.len();
            let per_line = 16 / element.size();
            let residue = |at: usize| (case + if case % 3 == 0 { at } else { 0 }) % per_line * element.size();
            let sources: Vec<Vec<u8>> =
                (0..ranks).map(|_| kind.vector(&mut tester.random, element, len)).collect();
            let mut arena = Arena::new(format!(
                "{} of {len}, {ranks} ranks, {tree:?}, {}, {kind:?} numbers",
                checked.kernel, PLACES[place]
            ));
            let places: Vec<_> = sources
                .iter()
                .enumerate()
                .map(|(rank, source)| arena.vector(source, residue(rank)))
                .collect();
            let into = match place {
                0 => arena.output(len * element.size(), residue(ranks)),
                1 => places[0],
                _ => places[ranks - 1],
            };
            let expected = expected_of_many(element, operator, tree, &sources);
            arena.expect(into, expected.bytes(), Bits::All);
            if kind == Kind::Ordinary && compares {
                let operands: Vec<Vec<f64>> = sources.iter().map(|source| wide(element, source)).collect();
                let exact = (0..len).map(|index| {
                    let column = operands.iter().map(|operand| operand[index]);
                    let share = if operator == Operator::Average { 1.0 / ranks as f64 } else { 1.0 };
                    match operator {
                        Operator::Min => (column.fold(f64::INFINITY, f64::min), 0.0),
                        Operator::Max => (column.fold(f64::NEG_INFINITY, f64::max), 0.0),
                        _ => (column.clone().sum::<f64>() * share, column.map(f64::abs).sum::<f64>() * share),
                    }
                });
                let roundings = if is_sum { 2.0 * ranks as f64 + 2.0 } else { 1.0 };
                arena.expect_near(into, element, roundings, exact.collect::<Vec<_>>());
            }
            let error = tester.run(arena, |machine, stream, at| {
                let sources: Vec<_> = places.iter().map(|place| at(*place)).collect();
                // SAFETY: all vectors are in the arena, which waits for the kernel.
                unsafe { machine.reduce_many(stream, element, operator, tree, &sources, at(into), len) }
            })?;
            checked.add(error);
        }
    }
    Ok(checked.done())
}

fn expected_of_many(element: ElementType, operator: Operator, tree: Tree, sources: &[Vec<u8>]) -> Aligned {
    let bytes = sources[0].len();
    let aligned: Vec<Aligned> = sources.iter().map(|source| Aligned::of(source)).collect();
    let mut result = Aligned::of(&vec![0; bytes]);
    let addresses: Vec<*const u8> = aligned.iter().map(|source| source.bytes().as_ptr()).collect();
    let job = ReduceMany {
        element,
        operator,
        tree,
        sources: &addresses,
        targets: &[result.bytes_mut().as_mut_ptr()],
        bytes,
        store: Store::Ordinary,
    };
    // SAFETY: all vectors have so many bytes, are aligned, and live until the end of this function.
    unsafe { reduce_many(&job) };
    result
}

/// Counts starts, and keeps the largest error.
pub(super) struct Tally {
    pub(super) kernel: String,
    starts: usize,
    largest_error: Option<f64>,
}

impl Tally {
    pub(super) fn of(kernel: String, is_compared: bool) -> Self {
        Tally { kernel, starts: 0, largest_error: is_compared.then_some(0.0) }
    }

    pub(super) fn add(&mut self, error: f64) {
        self.starts += 1;
        if let Some(largest) = &mut self.largest_error {
            *largest = largest.max(error);
        }
    }

    pub(super) fn done(self) -> Checked {
        Checked { kernel: self.kernel, starts: self.starts, largest_error: self.largest_error }
    }
}
