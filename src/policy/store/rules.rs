//! What the push rules do to each element. Plain loops over slices of one length, which the compiler turns into vector
//! instructions; factors are rounded to `f32` once, before the loop.

/// `w += scale · u`.
pub(super) fn add(w: &mut [f32], u: &[f32], scale: f32) {
    for (w, &u) in w.iter_mut().zip(u) {
        *w += scale * u;
    }
}

/// `w += share · (x − w)`: a step towards `x`, and `x` itself (to rounding) for a share of 1.
pub(super) fn towards(w: &mut [f32], x: &[f32], share: f32) {
    for (w, &x) in w.iter_mut().zip(x) {
        *w += share * (x - *w);
    }
}

/// `w −= η (g + λ g⊙g⊙(w − backup))`.
pub(super) fn compensate(w: &mut [f32], g: &[f32], backup: &[f32], learning_rate: f32, lambda: f32) {
    for ((w, &g), &backup) in w.iter_mut().zip(g).zip(backup) {
        *w -= learning_rate * (g + lambda * g * g * (*w - backup));
    }
}

/// Added to the mean square before its root is taken, as the paper has it.
const MEAN_SQUARE_FLOOR: f32 = 1e-7;

/// As [`compensate`], with an own λ for each element: `s ← m·s + (1 − m) g⊙g`, `λ = λ₀ / √(s + 10⁻⁷)`.
pub(super) fn compensate_adaptively(
    w: &mut [f32],
    g: &[f32],
    backup: &[f32],
    mean_square: &mut [f32],
    learning_rate: f32,
    lambda: f32,
    decay: f32,
) {
    for (((w, &g), &backup), s) in w.iter_mut().zip(g).zip(backup).zip(mean_square) {
        *s = decay * *s + (1.0 - decay) * g * g;
        let lambda = lambda / (*s + MEAN_SQUARE_FLOOR).sqrt();
        *w -= learning_rate * (g + lambda * g * g * (*w - backup));
    }
}

/// The factors of one push under delayed Nesterov momentum.
pub(super) struct DelayedNesterovStep {
    /// η/N, of the pushed delta.
    pub(super) delta: f32,
    /// η·c·β, or η·(1 − cN + c)·β in a push that renews the momentum.
    pub(super) momentum: f32,
    /// β and 1/N if this push renews the momentum: M ← βM + B/N.
    pub(super) renew: Option<(f32, f32)>,
}

/// `B += Δ`; in every N-th push `M ← βM + B/N`, `B ← 0`; then `w += momentum·M + delta·Δ`.
pub(super) fn delayed_nesterov(
    w: &mut [f32],
    delta: &[f32],
    momentum: &mut [f32],
    buffer: &mut [f32],
    step: &DelayedNesterovStep,
) {
    let elements = w.iter_mut().zip(delta).zip(momentum).zip(buffer);
    match step.renew {
        Some((beta, share)) => {
            for (((w, &delta), momentum), buffer) in elements {
                *momentum = beta * *momentum + share * (*buffer + delta);
                *buffer = 0.0;
                *w += step.momentum * *momentum + step.delta * delta;
            }
        }
        None => {
            for (((w, &delta), momentum), buffer) in elements {
                *buffer += delta;
                *w += step.momentum * *momentum + step.delta * delta;
            }
        }
    }
}

/// Elements looked at between two decisions to go on.
const CHUNK: usize = 4096;

/// The first element that is no number or infinite.
pub(super) fn first_not_finite(values: &[f32]) -> Option<usize> {
    const EXPONENT: u32 = 0x7f80_0000;
    // Without a way out of the inner loop it becomes vector instructions.
    let is_bad =
        |chunk: &[f32]| chunk.iter().fold(false, |bad, value| bad | (value.to_bits() & EXPONENT == EXPONENT));
    let index = values.chunks(CHUNK).position(is_bad)?;
    let start = index * CHUNK;
    values[start..].iter().position(|value| !value.is_finite()).map(|within| start + within)
}
