//! Casts and the narrow wire formats.

use super::Checked;
use super::arena::{Aligned, Arena, Bits, Tester};
use super::machine::Machine;
use super::numbers::{Kind, wide};
use super::reductions::Tally;
use crate::error::Result;
use crate::reduce::cuda::DequantiseReduce;
use crate::reduce::wire::{Arithmetic, Operands, Sums, combine};
use crate::reduce::{ElementType, Tree, WireFormat};
use rand::RngExt;

const F32: ElementType = ElementType::F32;

pub(super) fn check<M: Machine>(tester: &mut Tester<'_, M>, lengths: &[usize]) -> Result<Vec<Checked>> {
    let mut all = Vec::new();
    for (format, element) in [(WireFormat::F16, ElementType::F16), (WireFormat::Bf16, ElementType::BF16)] {
        all.push(narrow(tester, format, element, lengths)?);
        all.push(widen(tester, format, element, lengths)?);
    }
    for format in [WireFormat::F16, WireFormat::Bf16, WireFormat::Int8] {
        all.push(quantise(tester, format, lengths)?);
        all.push(dequantise(tester, format, lengths)?);
        all.push(dequantise_reduce(tester, format, lengths)?);
    }
    Ok(all)
}

/// Bytes between places at which an encoding can begin.
fn step_of(format: WireFormat) -> usize {
    if format == WireFormat::Int8 { 1 } else { 2 }
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytemuck::cast_slice(Aligned::of(bytes).bytes()).to_vec()
}

fn encoded(format: WireFormat, values: &[f32]) -> Vec<u8> {
    let mut bytes = vec![0; format.encoded_bytes(values.len())];
    format.encode(values, &mut bytes);
    bytes
}

/// The largest magnitude of each element's block, and by how much one way through the format may change an element.
fn allowed(format: WireFormat, values: &[f64]) -> Vec<f64> {
    let block = if format == WireFormat::Int8 { crate::reduce::wire::BLOCK } else { 1 };
    let bound = |largest: f64| format.error_bound(largest as f32);
    let largest = |block: &[f64]| block.iter().fold(0f64, |largest, value| largest.max(value.abs()));
    values.chunks(block).flat_map(|block| vec![bound(largest(block)); block.len()]).collect()
}

fn narrow<M: Machine>(
    tester: &mut Tester<'_, M>,
    format: WireFormat,
    element: ElementType,
    lengths: &[usize],
) -> Result<Checked> {
    let mut checked = Tally::of(format!("cast f32 to {element}"), true);
    for (case, &len) in lengths.iter().enumerate() {
        for residue in (0..16).step_by(2) {
            let kind = Kind::ALL[(case + residue / 2) % 2];
            let values = kind.vector(&mut tester.random, F32, len);
            let mut arena =
                Arena::new(format!("{} of {len}, {kind:?} numbers, address {residue}", checked.kernel));
            let from = arena.vector(&values, (case * 4 + residue * 2) % 16);
            let into = arena.output(2 * len, residue);
            arena.expect(into, &encoded(format, &floats(&values)), Bits::All);
            if kind == Kind::Ordinary {
                let exact = wide(F32, &values).into_iter().map(|value| (value, 0.0));
                arena.expect_near(into, element, 1.0, exact);
            }
            let error = tester.run(arena, |machine, stream, at| {
                // SAFETY: both vectors are in the arena, which waits for the kernel.
                unsafe { machine.cast(stream, (F32, at(from)), (element, at(into)), len) }
            })?;
            checked.add(error);
        }
    }
    Ok(checked.done())
}

fn widen<M: Machine>(
    tester: &mut Tester<'_, M>,
    format: WireFormat,
    element: ElementType,
    lengths: &[usize],
) -> Result<Checked> {
    let mut checked = Tally::of(format!("cast {element} to f32"), true);
    // The first time every number that there is.
    let every: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    for (case, len) in [every.len() / 2].into_iter().chain(lengths.iter().copied()).enumerate() {
        for residue in (0..16).step_by(4) {
            let kind = Kind::ALL[(case + residue / 4) % 2];
            let wire = if case == 0 { every.clone() } else { kind.vector(&mut tester.random, element, len) };
            let mut expected = vec![0f32; len];
            format.decode(&wire, &mut expected);
            let mut arena =
                Arena::new(format!("{} of {len}, {kind:?} numbers, address {residue}", checked.kernel));
            let from = arena.vector(&wire, (case * 2 + residue / 2) % 16);
            let into = arena.output(4 * len, residue);
            arena.expect(into, bytemuck::cast_slice(&expected), Bits::All);
            if case > 0 && kind == Kind::Ordinary {
                let exact = wide(element, &wire).into_iter().map(|value| (value, 0.0));
                arena.expect_within(into, F32, exact);
            }
            let error = tester.run(arena, |machine, stream, at| {
                // SAFETY: both vectors are in the arena, which waits for the kernel.
                unsafe { machine.cast(stream, (element, at(from)), (F32, at(into)), len) }
            })?;
            checked.add(error);
        }
    }
    Ok(checked.done())
}

/// Numbers for blocks with a scale: also blocks of zeros, of tiny and of huge numbers, of NaN.
fn blocks<M: Machine>(tester: &mut Tester<'_, M>, kind: Kind, len: usize) -> Vec<u8> {
    let mut values = floats(&kind.vector(&mut tester.random, F32, len));
    if kind == Kind::Awkward {
        for block in values.chunks_mut(crate::reduce::wire::BLOCK) {
            match tester.random.random_range(0..5u32) {
                0 => block.iter_mut().for_each(|value| *value = if value.is_finite() { *value } else { 1.0 }),
                1 => {
                    block.iter_mut().for_each(|value| *value = f32::from_bits(value.to_bits() & 0x83ff_ffff))
                }
                2 => block.iter_mut().for_each(|value| *value = f32::MAX.copysign(*value)),
                3 => block.iter_mut().for_each(|value| *value = (*value % 1000.0).clamp(-900.0, 900.0)),
                _ => {}
            }
        }
    }
    bytemuck::cast_slice(&values).to_vec()
}

fn finite_or_zero(error: f32) -> f32 {
    if error.is_finite() { error } else { 0.0 }
}

fn quantise<M: Machine>(
    tester: &mut Tester<'_, M>,
    format: WireFormat,
    lengths: &[usize],
) -> Result<Checked> {
    let mut checked = Tally::of(format!("quantise {format}"), false);
    for (case, &len) in lengths.iter().enumerate() {
        for residue in (0..16).step_by(step_of(format)) {
            let kind = Kind::ALL[(case + residue / step_of(format)) % 2];
            let has_feedback = residue % 3 == 0;
            let values = blocks(tester, kind, len);
            let before = Kind::Ordinary.vector(&mut tester.random, F32, len);
            let mut fed = floats(&values);
            if has_feedback {
                fed.iter_mut().zip(floats(&before)).for_each(|(value, before)| *value += before);
            }
            let bytes = encoded(format, &fed);
            let mut again = vec![0f32; len];
            format.decode(&bytes, &mut again);
            let mut arena = Arena::new(format!(
                "{} of {len}, {kind:?} numbers, feedback: {has_feedback}, address {residue}",
                checked.kernel
            ));
            let from = arena.vector(&values, (case + residue) * 4 % 16);
            let left = arena.vector(&before, residue * 4 % 16);
            let into = arena.output(bytes.len(), residue);
            arena.expect(into, &bytes, Bits::All);
            if has_feedback {
                let rounded_off: Vec<f32> =
                    fed.iter().zip(&again).map(|(value, again)| finite_or_zero(value - again)).collect();
                arena.expect(left, bytemuck::cast_slice(&rounded_off), Bits::All);
            }
            let error = tester.run(arena, |machine, stream, at| {
                let left = has_feedback.then(|| at(left));
                // SAFETY: all vectors are in the arena, which waits for the kernel.
                unsafe { machine.quantise(stream, format, at(from), left, at(into), len) }
            })?;
            checked.add(error);
        }
    }
    Ok(checked.done())
}

fn dequantise<M: Machine>(
    tester: &mut Tester<'_, M>,
    format: WireFormat,
    lengths: &[usize],
) -> Result<Checked> {
    let mut checked = Tally::of(format!("dequantise {format}"), true);
    for (case, &len) in lengths.iter().enumerate() {
        for residue in (0..16).step_by(step_of(format)) {
            let kind = Kind::ALL[(case + residue / step_of(format)) % 2];
            let values = blocks(tester, kind, len);
            let bytes = encoded(format, &floats(&values));
            let mut expected = vec![0f32; len];
            format.decode(&bytes, &mut expected);
            let mut arena =
                Arena::new(format!("{} of {len}, {kind:?} numbers, address {residue}", checked.kernel));
            let from = arena.vector(&bytes, residue);
            let into = arena.output(4 * len, (case + residue) * 4 % 16);
            arena.expect(into, bytemuck::cast_slice(&expected), Bits::All);
            if kind == Kind::Ordinary {
                // What was written, as far as the format keeps it.
                let exact = wide(F32, &values);
                let allowed = allowed(format, &exact);
                arena.expect_within(into, F32, exact.into_iter().zip(allowed));
            }
            let error = tester.run(arena, |machine, stream, at| {
                // SAFETY: both vectors are in the arena, which waits for the kernel.
                unsafe { machine.dequantise(stream, format, at(from), at(into), len) }
            })?;
            checked.add(error);
        }
    }
    Ok(checked.done())
}

fn dequantise_reduce<M: Machine>(
    tester: &mut Tester<'_, M>,
    format: WireFormat,
    lengths: &[usize],
) -> Result<Checked> {
    let mut checked = Tally::of(format!("dequantise_reduce {format}"), true);
    let step = step_of(format);
    for (case, ranks) in (1..=17).chain([23, 31, 32, 33, 64, 100]).enumerate() {
        for (turn, tree) in [Tree::Canonical, Tree::RankOrder].into_iter().enumerate() {
            let len = lengths[(2 * case + turn) % lengths.len()];
            let kind = Kind::ALL[(case + turn) % 2];
            let (has_feedback, is_average) = (case % 3 == 0, case % 4 < 2);
            let factor = is_average.then_some(1.0 / ranks as f32);
            let operands: Vec<Vec<u8>> = (0..ranks).map(|_| blocks(tester, kind, len)).collect();
            // Contributions stand a few bytes apart.
            let bytes = format.encoded_bytes(len);
            let stride = bytes + case % 5 * step;
            let mut contributions = vec![0xee; ranks * stride];
            for (rank, operand) in operands.iter().enumerate() {
                contributions[rank * stride..][..bytes].copy_from_slice(&encoded(format, &floats(operand)));
            }
            let before = Kind::Ordinary.vector(&mut tester.random, F32, len);

            let (mut result, mut values) = (vec![0; bytes], vec![0f32; len]);
            let (mut left, mut sums) = (floats(&before), Sums::default());
            sums.reserve(ranks);
            let arithmetic = Arithmetic { format, in_rank_order: tree == Tree::RankOrder, factor };
            let all = Operands { first: contributions.as_ptr(), stride, count: ranks };
            let feedback = has_feedback.then_some(&mut left[..]);
            // SAFETY: each contribution is as long as the result, and nobody else uses the vectors.
            unsafe { combine(arithmetic, all, &mut sums, feedback, &mut result, &mut values) };

            let mut arena = Arena::new(format!(
                "{} of {len}, {ranks} ranks {stride} bytes apart, {tree:?}, {kind:?} numbers, feedback: {has_feedback}",
                checked.kernel
            ));
            let residue = case * 4 % 16;
            let from = arena.vector(&contributions, case * step % 16);
            let l = arena.vector(&before, residue);
            let into = arena.output(bytes, (case + 1) * step % 16);
            let v = arena.output(4 * len, (turn * 4 + residue) % 16);
            arena.expect(into, &result, Bits::All);
            arena.expect(v, bytemuck::cast_slice(&values), Bits::All);
            arena.expect(l, bytemuck::cast_slice(&left), Bits::All);
            if kind == Kind::Ordinary && !has_feedback {
                let decoded: Vec<Vec<f64>> = (0..ranks)
                    .map(|rank| {
                        let mut decoded = vec![0f32; len];
                        format.decode(&contributions[rank * stride..][..bytes], &mut decoded);
                        decoded.into_iter().map(f64::from).collect()
                    })
                    .collect();
                let share = if is_average { 1.0 / ranks as f64 } else { 1.0 };
                let sum_of = |index: usize| decoded.iter().map(move |operand| operand[index] * share);
                let exact: Vec<f64> = (0..len).map(|index| sum_of(index).sum()).collect();
                // The sum's own roundings, and the way through the format.
                let format_allows = allowed(format, &exact);
                let near = exact.iter().zip(format_allows).enumerate().map(|(index, (sum, allowed))| {
                    let size: f64 = sum_of(index).map(f64::abs).sum();
                    (*sum, allowed * 1.001 + (ranks + 2) as f64 * size * 2f64.powi(-23))
                });
                arena.expect_within(v, F32, near.collect::<Vec<_>>());
            }
            let error = tester.run(arena, |machine, stream, at| {
                let reduction = DequantiseReduce {
                    format,
                    tree,
                    contributions: at(from),
                    stride,
                    ranks,
                    factor,
                    left: has_feedback.then(|| at(l)),
                    result: at(into),
                    values: at(v),
                    count: len,
                };
                // SAFETY: all vectors are in the arena, which waits for the kernel.
                unsafe { machine.dequantise_reduce(stream, &reduction) }
            })?;
            checked.add(error);
        }
    }
    Ok(checked.done())
}
