//! The delta that begins an exchange, and the update that ends it.

use super::Checked;
use super::arena::{Aligned, Arena, Bits, Tester};
use super::machine::Machine;
use super::numbers::{Kind, wide};
use super::reductions::Tally;
use crate::error::Result;
use crate::policy::{Float, Install, OuterOptimiser, Replica};
use crate::reduce::cuda::{AnchorStep, OuterUpdate, ParameterStep};
use crate::reduce::scale_for_average;
use half::{bf16, f16};

const LEARNING_RATE: f64 = 0.7;
const MOMENTUM: f64 = 0.9;
const ALPHA: f64 = 0.3;

pub(super) fn check<M: Machine>(tester: &mut Tester<'_, M>, lengths: &[usize]) -> Result<Vec<Checked>> {
    let mut all = Vec::new();
    all.extend(of_type::<f32, M>(tester, lengths)?);
    all.extend(of_type::<f64, M>(tester, lengths)?);
    all.extend(of_type::<f16, M>(tester, lengths)?);
    all.extend(of_type::<bf16, M>(tester, lengths)?);
    Ok(all)
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Rule {
    Sgd,
    Nesterov,
    Replace,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum How {
    Rebase,
    Merge,
    Mix,
}

fn of_type<T: Float, M: Machine>(tester: &mut Tester<'_, M>, lengths: &[usize]) -> Result<Vec<Checked>> {
    let mut all = vec![delta::<T, M>(tester, lengths)?];
    for how in [How::Rebase, How::Merge, How::Mix] {
        for rule in [Rule::Sgd, Rule::Nesterov, Rule::Replace] {
            all.push(update::<T, M>(tester, rule, how, lengths)?);
        }
    }
    Ok(all)
}

fn typed<T: Float>(bytes: &[u8]) -> Vec<T> {
    bytemuck::cast_slice(Aligned::of(bytes).bytes()).to_vec()
}

fn untyped<T: Float>(values: &[T]) -> &[u8] {
    bytemuck::cast_slice(values)
}

fn delta<T: Float, M: Machine>(tester: &mut Tester<'_, M>, lengths: &[usize]) -> Result<Checked> {
    let element = T::TYPE;
    let mut checked = Tally::of(format!("delta {element}"), true);
    for (case, &len) in lengths.iter().enumerate() {
        for (turn, kind) in Kind::ALL.into_iter().enumerate() {
            let residue = |at: usize| (case + turn * at) * element.size() % 16;
            let params = kind.vector(&mut tester.random, element, len);
            let anchor = kind.vector(&mut tester.random, element, len);
            // Statistics have no anchor.
            let is_anchored = (case + turn) % 3 > 0;
            let (weight, size) = (1.0 / 3.0, 3);
            let mut expected = vec![T::default(); len];
            let replica = Replica::<T>::new(&typed(&anchor), if is_anchored { len } else { 0 })?;
            replica.delta(&typed(&params), weight, size, &mut expected)?;
            let mut arena =
                Arena::new(format!("{} of {len}, {kind:?} numbers, anchor: {is_anchored}", checked.kernel));
            let p = arena.vector(&params, residue(1));
            let a = arena.vector(&anchor, residue(2));
            let into = arena.output(params.len(), residue(0));
            arena.expect(into, untyped(&expected), Bits::OfNumbers(element));
            if kind == Kind::Ordinary {
                let exact =
                    wide(element, &params).into_iter().zip(wide(element, &anchor)).map(|(param, anchor)| {
                        let anchor = if is_anchored { anchor } else { 0.0 };
                        (weight * (param - anchor), weight * (param.abs() + anchor.abs()))
                    });
                arena.expect_near(into, element, 4.0, exact);
            }
            let error = tester.run(arena, |machine, stream, at| {
                let anchor = is_anchored.then(|| at(a));
                // SAFETY: all vectors are in the arena, which waits for the kernel.
                unsafe { machine.delta(stream, element, at(into), at(p), anchor, weight, len) }
            })?;
            checked.add(error);
        }
    }
    Ok(checked.done())
}

/// What an exchange ends with on the host.
struct Ended<T> {
    anchor: Vec<T>,
    velocity: Vec<T>,
    params: Vec<T>,
}

/// All vectors before.
struct Vectors<T> {
    anchor: Vec<T>,
    velocity: Vec<T>,
    mean: Vec<T>,
    params: Vec<T>,
    submitted: Vec<T>,
}

fn on_the_host<T: Float>(rule: Rule, how: How, vectors: &Vectors<T>) -> Result<Ended<T>> {
    let len = vectors.anchor.len();
    let trainable = if rule == Rule::Replace { 0 } else { len };
    let mut outer = match rule {
        Rule::Nesterov => OuterOptimiser::nesterov(LEARNING_RATE, MOMENTUM),
        Rule::Sgd | Rule::Replace => OuterOptimiser::sgd(LEARNING_RATE),
    };
    if rule == Rule::Nesterov {
        outer.set_velocity(vectors.velocity.clone());
    }
    let mut replica = Replica::new(&vectors.anchor, trainable)?;
    let begun = replica.begin_overlapped(&vectors.submitted, 1.0, 1, &mut vec![T::default(); len])?;
    let install = match how {
        How::Rebase => Install::Rebase,
        How::Merge => Install::Merge,
        How::Mix => Install::Mix { alpha: ALPHA },
    };
    if how == How::Merge {
        replica.step_taken();
    }
    let mut params = vectors.params.clone();
    replica.finish(begun, &mut params, &vectors.mean, &mut outer, install)?;
    let velocity = if rule == Rule::Nesterov { outer.velocity().to_vec() } else { vectors.velocity.clone() };
    Ok(Ended { anchor: replica.anchor().to_vec(), velocity, params })
}

fn update<T: Float, M: Machine>(
    tester: &mut Tester<'_, M>,
    rule: Rule,
    how: How,
    lengths: &[usize],
) -> Result<Checked> {
    let element = T::TYPE;
    let mut checked = Tally::of(format!("outer_update {element} {rule:?} {how:?}"), true);
    for (case, &len) in lengths.iter().enumerate() {
        for (turn, kind) in Kind::ALL.into_iter().enumerate() {
            let residue = |at: usize| (case + turn * at) * element.size() % 16;
            let ranks = [1, 3][(case + turn) % 2];
            let mut draw = || kind.vector(&mut tester.random, element, len);
            let [anchor, velocity, sum, params, submitted] = [draw(), draw(), draw(), draw(), draw()];
            let mut mean = Aligned::of(&sum);
            scale_for_average(element, mean.bytes_mut(), ranks);
            let vectors = Vectors {
                anchor: typed(&anchor),
                velocity: typed(&velocity),
                mean: typed::<T>(mean.bytes()),
                params: typed(&params),
                submitted: typed(&submitted),
            };
            let ended = on_the_host(rule, how, &vectors)?;
            let mut arena =
                Arena::new(format!("{} of {len}, {ranks} ranks, {kind:?} numbers", checked.kernel));
            let a = arena.vector(&anchor, residue(0));
            let v = arena.vector(&velocity, residue(1));
            let s = arena.vector(&sum, residue(2));
            let p = arena.vector(&params, residue(3));
            let before = arena.vector(&submitted, residue(4));
            let bits = Bits::OfNumbers(element);
            arena.expect(a, untyped(&ended.anchor), bits);
            arena.expect(v, untyped(&ended.velocity), bits);
            arena.expect(p, untyped(&ended.params), bits);
            if kind == Kind::Ordinary {
                // The 16-bit mean is rounded before it is used, as on the host.
                let [anchor, velocity, mean, params, submitted] =
                    [&anchor[..], &velocity, mean.bytes(), &params, &submitted]
                        .map(|bytes| wide(element, bytes));
                let exact: Vec<_> = (0..len)
                    .map(|i| exactly(rule, how, anchor[i], velocity[i], mean[i], params[i], submitted[i]))
                    .collect();
                arena.expect_near(a, element, 8.0, exact.iter().map(|exact| exact.anchor));
                arena.expect_near(p, element, 12.0, exact.iter().map(|exact| exact.param));
            }
            let error = tester.run(arena, |machine, stream, at| {
                let update = OuterUpdate {
                    anchor: at(a),
                    sum: at(s),
                    ranks,
                    params: at(p),
                    count: len,
                    anchor_step: match rule {
                        Rule::Sgd => AnchorStep::Sgd { learning_rate: LEARNING_RATE },
                        Rule::Nesterov => AnchorStep::Nesterov {
                            learning_rate: LEARNING_RATE,
                            momentum: MOMENTUM,
                            velocity: at(v),
                        },
                        Rule::Replace => AnchorStep::Replace,
                    },
                    parameter_step: match how {
                        How::Rebase => ParameterStep::Rebase,
                        How::Merge => ParameterStep::Merge { submitted: at(before) },
                        How::Mix => ParameterStep::Mix { alpha: ALPHA },
                    },
                };
                // SAFETY: all vectors are in the arena, which waits for the kernel.
                unsafe { machine.outer_update(stream, element, &update) }
            })?;
            checked.add(error);
        }
    }
    Ok(checked.done())
}

/// A number in f64, and the magnitudes that were added.
struct Exact {
    anchor: (f64, f64),
    param: (f64, f64),
}

fn exactly(rule: Rule, how: How, anchor: f64, velocity: f64, mean: f64, param: f64, submitted: f64) -> Exact {
    let moved = match rule {
        Rule::Sgd => anchor + LEARNING_RATE * mean,
        Rule::Nesterov => anchor + LEARNING_RATE * (mean + MOMENTUM * (MOMENTUM * velocity + mean)),
        Rule::Replace => mean,
    };
    let size = anchor.abs() + 2.0 * mean.abs() + velocity.abs();
    let param = match (how, rule) {
        (How::Mix, _) => (1.0 - ALPHA) * moved + ALPHA * param,
        // Statistics have no steps.
        (How::Merge, Rule::Sgd | Rule::Nesterov) => moved + (param - submitted),
        _ => moved,
    };
    let all = size + param.abs() + submitted.abs() + 1.0;
    Exact { anchor: (moved, size), param: (param, all) }
}
