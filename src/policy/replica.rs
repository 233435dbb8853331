//! A worker's parameters and what they are compared with.

use super::{Install, LocalSteps, OuterOptimiser};
use crate::error::{Error, Result};
use crate::reduce::Element;
use half::{bf16, f16};
use std::ops::{Add, Mul, Sub};

/// A floating-point element, and the type in which it is computed with.
///
/// 16-bit types are widened to `f32` and rounded once where a result is stored.
pub trait Float: Element {
    /// The type of intermediate results.
    type Wide: Copy + Add<Output = Self::Wide> + Sub<Output = Self::Wide> + Mul<Output = Self::Wide>;

    /// A factor in the wide type.
    fn wide(value: f64) -> Self::Wide;
    /// The element in the wide type, exactly.
    fn widen(self) -> Self::Wide;
    /// The nearest element.
    fn narrow(wide: Self::Wide) -> Self;
}

macro_rules! floats {
    ($($element:ty, $wide:ty, $widen:expr, $narrow:expr;)+) => {$(
        impl Float for $element {
            type Wide = $wide;
            #[inline]
            fn wide(value: f64) -> $wide {
                value as $wide
            }
            #[inline]
            fn widen(self) -> $wide {
                ($widen)(self)
            }
            #[inline]
            fn narrow(wide: $wide) -> Self {
                ($narrow)(wide)
            }
        }
    )+};
}
floats! {
    f32, f32, |value| value, |wide| wide;
    f64, f64, |value| value, |wide| wide;
    f16, f32, f16::to_f32, f16::from_f32;
    bf16, f32, bf16::to_f32, bf16::from_f32;
}

/// Elements that an exchange's end treats at a time, so that what the outer optimiser wrote is still in the cache when it
/// meets the parameters: one pass over memory for every combination of optimiser and [`Install`].
const CHUNK: usize = 4096;

/// Proof that an exchange or a pull was begun, and when. It is used up by putting the result in place, so that no result is
/// applied twice.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a result can only be put in place with what its request returned"]
pub struct Begun {
    generation: u64,
    request: u64,
}

/// The anchor of a worker's parameters, and the rules by which parameters, anchor and deltas change together.
///
/// The parameters themselves live in memory that a tensor library views, and are handed to each call. The range from
/// `trainable` on holds *statistics* (running means and variances of batch normalisation): they are averaged by value, with
/// equal weights, and no learning rate, weighting or outer optimiser touches them.
///
/// Three bugs of published implementations cannot be written with it:
/// - a delta that is sent twice: [`take_delta`](Self::take_delta) moves the anchor up, and between
///   [`begin`](Self::begin) and [`finish`](Self::finish) no other exchange begins;
/// - a step that is lost under a pull: [`Install::Rebase`] is refused if a step was taken since its request;
/// - an accumulator that is never reset: there is none, a delta is always parameters minus anchor.
///
/// Fragments (streaming DiLoCo) are one `Replica` each, over their ranges of the buffer.
///
/// ```
/// use esync::policy::{Install, OuterOptimiser, Replica};
///
/// # fn main() -> esync::Result<()> {
/// let mut params = [1.0_f32, 2.0];
/// let mut replica = Replica::new(&params, 2)?;
/// params[0] += 0.5; // a local step
/// replica.step_taken();
///
/// let mut delta = [0.0; 2];
/// let begun = replica.begin(&params, 0.5, 2, &mut delta)?;
/// assert_eq!(delta, [0.25, 0.0]);
/// let mean = delta; // here the workers' deltas are summed
/// let mut outer = OuterOptimiser::sgd(1.0);
/// replica.finish(begun, &mut params, &mean, &mut outer, Install::Rebase)?;
/// assert_eq!(params, [1.25, 2.0]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Replica<T> {
    anchor: Vec<T>,
    /// Parameters when the running exchange began, if it overlaps with steps. Allocated by the first such exchange.
    submitted: Vec<T>,
    trainable: usize,
    local_steps: u64,
    generation: u64,
    request: u64,
    exchange: Option<Exchange>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Exchange {
    request: u64,
    overlapped: bool,
    /// Local steps that its delta holds.
    steps: u64,
}

impl<T: Float> Replica<T> {
    /// Parameters and anchor begin equal. The first `trainable` elements are trained, the rest are statistics.
    ///
    /// # Errors
    /// `Usage` if `trainable` is more than there are.
    pub fn new(params: &[T], trainable: usize) -> Result<Self> {
        if trainable > params.len() {
            return Err(Error::Usage(format!(
                "{trainable} of {} parameters cannot be trainable",
                params.len()
            )));
        }
        Ok(Replica {
            anchor: params.to_vec(),
            submitted: Vec::new(),
            trainable,
            local_steps: 0,
            generation: 0,
            request: 0,
            exchange: None,
        })
    }

    /// The parameters at the last exchange or pull, as every rank has them after an exchange.
    pub fn anchor(&self) -> &[T] {
        &self.anchor
    }

    /// Exchanges parameters and anchor, so that the global parameters can be looked at, and saves the local ones. To be called
    /// again before anything else.
    pub fn swap_anchor(&mut self, params: &mut [T]) -> Result<()> {
        self.check_lengths(&[params.len()])?;
        self.anchor.swap_with_slice(params);
        Ok(())
    }

    /// How many elements are trained; the rest are statistics.
    pub fn trainable(&self) -> usize {
        self.trainable
    }

    /// Steps since the anchor last moved (with an overlapped exchange: since it began).
    pub fn local_steps(&self) -> LocalSteps {
        LocalSteps(self.local_steps)
    }

    /// To be called after every step that changed the parameters.
    pub fn step_taken(&mut self) {
        self.local_steps += 1;
        self.generation += 1;
    }

    /// `out = weight · (params − anchor)`, and for the statistics `out = params / size`, so that the sum over `size` ranks is
    /// the mean. Nothing changes; 16-bit deltas are rounded once.
    pub fn delta(&self, params: &[T], weight: f64, size: usize, out: &mut [T]) -> Result<()> {
        self.check_lengths(&[params.len(), out.len()])?;
        let weight = T::wide(weight);
        let (trained, _) = params.split_at(self.trainable);
        for ((out, &param), &anchor) in out.iter_mut().zip(trained).zip(&self.anchor) {
            *out = T::narrow(weight * (param.widen() - anchor.widen()));
        }
        self.statistics(params, size, out)
    }

    /// Only the statistics' part of [`delta`](Self::delta): for exchanges of gradients, whose buffer has the same shape.
    pub fn statistics(&self, params: &[T], size: usize, out: &mut [T]) -> Result<()> {
        self.check_lengths(&[params.len(), out.len()])?;
        let share = T::wide(1.0 / size.max(1) as f64);
        for (out, &param) in out[self.trainable..].iter_mut().zip(&params[self.trainable..]) {
            *out = T::narrow(share * param.widen());
        }
        Ok(())
    }

    /// Puts averaged statistics in place after an exchange of gradients; the trained part is the optimiser's.
    pub fn install_statistics(&mut self, params: &mut [T], mean: &[T]) -> Result<()> {
        self.check_lengths(&[params.len(), mean.len()])?;
        params[self.trainable..].copy_from_slice(&mean[self.trainable..]);
        self.anchor[self.trainable..].copy_from_slice(&mean[self.trainable..]);
        Ok(())
    }

    /// Begins an exchange: writes [`delta`](Self::delta) and remembers which steps it holds. No step may be taken until
    /// [`finish`](Self::finish), unless it installs by [`Install::Mix`].
    pub fn begin(&mut self, params: &[T], weight: f64, size: usize, out: &mut [T]) -> Result<Begun> {
        self.refuse_second_exchange()?;
        self.delta(params, weight, size, out)?;
        Ok(self.exchange_begun(false))
    }

    /// Begins an exchange during which steps go on: as [`begin`](Self::begin), and keeps a copy of the parameters, so that
    /// [`Install::Merge`] keeps exactly the steps that the delta does not hold.
    pub fn begin_overlapped(
        &mut self,
        params: &[T],
        weight: f64,
        size: usize,
        out: &mut [T],
    ) -> Result<Begun> {
        self.refuse_second_exchange()?;
        self.delta(params, weight, size, out)?;
        self.submitted.clear();
        self.submitted.extend_from_slice(params);
        let begun = self.exchange_begun(true);
        self.local_steps = 0;
        Ok(begun)
    }

    /// Ends an exchange: the outer optimiser moves the anchor by the `mean` of the deltas, and the new anchor meets the
    /// parameters as `install` says.
    ///
    /// # Errors
    /// `Training` if `install` would lose or repeat steps that were taken since [`begin`](Self::begin).
    pub fn finish(
        &mut self,
        begun: Begun,
        params: &mut [T],
        mean: &[T],
        outer: &mut OuterOptimiser<T>,
        install: Install,
    ) -> Result<()> {
        self.check_lengths(&[params.len(), mean.len()])?;
        let Some(exchange) = self.exchange.filter(|exchange| exchange.request == begun.request) else {
            return Err(Error::Internal("an exchange was finished that is not the one begun".into()));
        };
        let stepped = self.generation != begun.generation;
        match install {
            Install::Rebase => self.refuse_lost_steps(&begun, "exchange")?,
            Install::Merge if stepped && !exchange.overlapped => {
                return Err(Error::Training(
                    "merge would send steps twice: begin the exchange with begin_overlapped".into(),
                ));
            }
            Install::Merge | Install::Mix { .. } => {}
        }
        self.exchange = None;
        self.generation += 1;
        if !exchange.overlapped {
            self.local_steps = 0;
        }
        outer.prepare(self.trainable);
        for start in (0..self.trainable).step_by(CHUNK) {
            let range = start..self.trainable.min(start + CHUNK);
            let (anchor, params) = (&mut self.anchor[range.clone()], &mut params[range.clone()]);
            outer.apply_part(start, anchor, &mean[range.clone()]);
            match install {
                Install::Merge if stepped => {
                    for ((param, &submitted), &anchor) in
                        params.iter_mut().zip(&self.submitted[range]).zip(&*anchor)
                    {
                        *param = T::narrow(anchor.widen() + (param.widen() - submitted.widen()));
                    }
                }
                Install::Mix { alpha } => mix(params, anchor, alpha),
                Install::Rebase | Install::Merge => params.copy_from_slice(anchor),
            }
        }
        let statistics = &mean[self.trainable..];
        self.anchor[self.trainable..].copy_from_slice(statistics);
        match install {
            Install::Mix { alpha } => mix(&mut params[self.trainable..], statistics, alpha),
            Install::Rebase | Install::Merge => params[self.trainable..].copy_from_slice(statistics),
        }
        Ok(())
    }

    /// Gives up an exchange that failed: parameters and anchor stay as they are, and the next delta holds all steps since the
    /// anchor.
    pub fn abandon(&mut self, begun: Begun) {
        if let Some(exchange) = self.exchange.take_if(|exchange| exchange.request == begun.request)
            && exchange.overlapped
        {
            self.local_steps += exchange.steps;
        }
    }

    /// `out = params − anchor`, and the anchor moves up to the parameters: for pushes. Statistics are written by value.
    pub fn take_delta(&mut self, params: &[T], out: &mut [T]) -> Result<()> {
        self.refuse_second_exchange()?;
        self.delta(params, 1.0, 1, out)?;
        self.anchor.copy_from_slice(params);
        self.local_steps = 0;
        Ok(())
    }

    /// To be called when parameters are requested from a server, before the request leaves.
    pub fn request(&mut self) -> Begun {
        self.request += 1;
        Begun { generation: self.generation, request: self.request }
    }

    /// Puts a server's parameters `w` in place, as `install` says: [`Rebase`](Install::Rebase) makes parameters and anchor
    /// `w`; [`Merge`](Install::Merge) makes the parameters `w + (params − anchor)` and the anchor `w`, which keeps unsent
    /// steps; [`Mix`](Install::Mix) makes the parameters `(1 − α)·w + α·params` and the anchor `w`. Statistics become `w`'s,
    /// except under `Mix`.
    ///
    /// # Errors
    /// `Training` if `Rebase` would lose a step that was taken since [`request`](Self::request).
    pub fn install(&mut self, requested: Begun, params: &mut [T], w: &[T], install: Install) -> Result<()> {
        self.check_lengths(&[params.len(), w.len()])?;
        self.refuse_second_exchange()?;
        match install {
            Install::Rebase => {
                self.refuse_lost_steps(&requested, "pull")?;
                self.anchor.copy_from_slice(w);
                params.copy_from_slice(w);
                self.local_steps = 0;
            }
            Install::Merge => {
                let (trained, statistics) = params.split_at_mut(self.trainable);
                for ((param, anchor), &w) in trained.iter_mut().zip(&mut self.anchor).zip(w) {
                    *param = T::narrow(w.widen() + (param.widen() - anchor.widen()));
                    *anchor = w;
                }
                statistics.copy_from_slice(&w[self.trainable..]);
                self.anchor[self.trainable..].copy_from_slice(&w[self.trainable..]);
            }
            Install::Mix { alpha } => {
                self.anchor.copy_from_slice(w);
                mix(params, w, alpha);
            }
        }
        self.generation += 1;
        Ok(())
    }

    fn exchange_begun(&mut self, overlapped: bool) -> Begun {
        let begun = self.request();
        self.exchange = Some(Exchange { request: begun.request, overlapped, steps: self.local_steps });
        begun
    }

    fn refuse_second_exchange(&self) -> Result<()> {
        match self.exchange {
            None => Ok(()),
            Some(_) => Err(Error::Internal("an exchange of these parameters has not been finished".into())),
        }
    }

    fn refuse_lost_steps(&self, begun: &Begun, what: &str) -> Result<()> {
        match self.generation - begun.generation {
            0 => Ok(()),
            _ => Err(Error::Training(format!(
                "rebase would lose steps that were taken since the {what} began; merge keeps them"
            ))),
        }
    }

    fn check_lengths(&self, lengths: &[usize]) -> Result<()> {
        match lengths.iter().find(|&&length| length != self.anchor.len()) {
            None => Ok(()),
            Some(length) => Err(Error::Internal(format!(
                "a buffer of {length} elements for {} parameters",
                self.anchor.len()
            ))),
        }
    }
}

/// `params = (1 − alpha)·w + alpha·params`.
fn mix<T: Float>(params: &mut [T], w: &[T], alpha: f64) {
    let (local, global) = (T::wide(alpha), T::wide(1.0 - alpha));
    for (param, &w) in params.iter_mut().zip(w) {
        *param = T::narrow(global * w.widen() + local * param.widen());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stepped(params: &mut [f32], replica: &mut Replica<f32>, by: f32) {
        params[0] += by;
        replica.step_taken();
    }

    fn start(params: &[f32]) -> Replica<f32> {
        Replica::new(params, 1).expect("one is trainable")
    }

    #[test]
    fn an_exchange_moves_every_rank_to_the_same_place_and_averages_statistics_by_value() {
        let mut ranks = [[1.0_f32, 10.0], [1.0, 10.0]];
        let mut replicas = ranks.map(|params| start(&params));
        stepped(&mut ranks[0], &mut replicas[0], 2.0);
        stepped(&mut ranks[1], &mut replicas[1], 4.0);
        (ranks[0][1], ranks[1][1]) = (20.0, 40.0);
        let (mut sum, mut begun) = ([0.0; 2], Vec::new());
        for (params, replica) in ranks.iter().zip(&mut replicas) {
            let mut out = [f32::NAN; 2];
            begun.push(replica.begin(params, 0.25, 2, &mut out).unwrap());
            sum = [sum[0] + out[0], sum[1] + out[1]];
        }
        assert_eq!(sum, [1.5, 30.0], "weights count for the trained part only");
        for ((params, replica), begun) in ranks.iter_mut().zip(&mut replicas).zip(begun) {
            let mut outer = OuterOptimiser::sgd(2.0);
            replica.finish(begun, params, &sum, &mut outer, Install::Rebase).unwrap();
            assert_eq!(*params, [4.0, 30.0]);
            assert_eq!(replica.anchor(), params);
            assert_eq!(replica.local_steps(), LocalSteps(0));
        }
    }

    #[test]
    fn a_step_is_not_lost_under_a_rebase() {
        let mut params = [0.0_f32, 0.0];
        let mut replica = start(&params);
        let begun = replica.begin(&params, 1.0, 1, &mut [0.0; 2]).unwrap();
        stepped(&mut params, &mut replica, 1.0);
        let mut outer = OuterOptimiser::sgd(1.0);
        let error = replica.finish(begun, &mut params, &[0.0; 2], &mut outer, Install::Rebase).unwrap_err();
        let words = "rebase would lose steps that were taken since the exchange began; merge keeps them";
        assert_eq!(error.to_string(), words);

        let mut replica = start(&params);
        let requested = replica.request();
        stepped(&mut params, &mut replica, 1.0);
        let error = replica.install(requested, &mut params, &[5.0, 5.0], Install::Rebase).unwrap_err();
        assert!(error.to_string().contains("since the pull began"), "{error}");
        let requested = replica.request();
        replica.install(requested, &mut params, &[5.0, 5.0], Install::Merge).unwrap();
        assert_eq!(params, [6.0, 5.0]);
        let requested = replica.request();
        replica.install(requested, &mut params, &[7.0, 7.0], Install::Rebase).unwrap();
        assert_eq!(params, [7.0, 7.0]);
    }

    #[test]
    fn no_delta_is_sent_twice() {
        let mut params = [0.0_f32, 0.0];
        let mut replica = start(&params);
        let mut out = [0.0; 2];
        stepped(&mut params, &mut replica, 1.0);
        replica.take_delta(&params, &mut out).unwrap();
        assert_eq!(out[0], 1.0);
        stepped(&mut params, &mut replica, 2.0);
        replica.take_delta(&params, &mut out).unwrap();
        assert_eq!(out[0], 2.0, "only the new step");

        stepped(&mut params, &mut replica, 4.0);
        let begun = replica.begin(&params, 1.0, 1, &mut out).unwrap();
        assert!(replica.begin(&params, 1.0, 1, &mut out).is_err(), "a second exchange");
        assert!(replica.take_delta(&params, &mut out).is_err(), "a push during an exchange");
        stepped(&mut params, &mut replica, 8.0);
        let mut outer = OuterOptimiser::sgd(1.0);
        let error = replica.finish(begun, &mut params, &out, &mut outer, Install::Merge).unwrap_err();
        assert!(error.to_string().contains("begin_overlapped"), "{error}");
    }

    #[test]
    fn an_overlapped_exchange_keeps_exactly_the_steps_in_flight() {
        let mut params = [0.0_f32, 1.0];
        let mut replica = start(&params);
        let (mut out, mut outer) = ([0.0; 2], OuterOptimiser::sgd(1.0));
        stepped(&mut params, &mut replica, 1.0);
        let begun = replica.begin_overlapped(&params, 0.5, 2, &mut out).unwrap();
        stepped(&mut params, &mut replica, 8.0);
        // The other rank's delta was 3, weighed by one half.
        replica.finish(begun, &mut params, &[out[0] + 1.5, 3.0], &mut outer, Install::Merge).unwrap();
        assert_eq!((params, replica.anchor()), ([10.0, 3.0], &[2.0, 3.0][..]));
        assert_eq!(replica.local_steps(), LocalSteps(1));
        replica.delta(&params, 1.0, 1, &mut out).unwrap();
        assert_eq!(out[0], 8.0, "the next delta holds the step in flight and nothing else");

        let begun = replica.begin_overlapped(&params, 1.0, 1, &mut out).unwrap();
        replica.finish(begun, &mut params, &out, &mut outer, Install::Mix { alpha: 0.25 }).unwrap();
        assert_eq!(params[0], 10.0);
    }

    #[test]
    fn an_exchange_that_failed_can_be_given_up() {
        let mut params = [0.0_f32, 0.0];
        let mut replica = start(&params);
        stepped(&mut params, &mut replica, 1.0);
        let mut out = [0.0; 2];
        let begun = replica.begin(&params, 1.0, 1, &mut out).unwrap();
        replica.abandon(begun);
        stepped(&mut params, &mut replica, 2.0);
        let begun = replica.begin_overlapped(&params, 1.0, 1, &mut out).unwrap();
        assert_eq!(replica.local_steps(), LocalSteps(0));
        replica.abandon(begun);
        let begun = replica.begin(&params, 1.0, 1, &mut out).unwrap();
        assert_eq!((out[0], replica.local_steps()), (3.0, LocalSteps(2)));
        replica.finish(begun, &mut params, &out, &mut OuterOptimiser::sgd(1.0), Install::Rebase).unwrap();
    }

    #[test]
    fn long_vectors_are_treated_in_chunks() {
        let length = 2 * CHUNK + 17;
        let mut params = vec![1.0_f32; length];
        let mut replica = Replica::new(&params, length - 3).unwrap();
        let mut outer = OuterOptimiser::nesterov(0.7, 0.9);
        for _ in 0..2 {
            params.iter_mut().enumerate().for_each(|(index, param)| *param += index as f32);
            replica.step_taken();
            let mut mean = vec![0.0; length];
            let begun = replica.begin_overlapped(&params, 1.0, 1, &mut mean).unwrap();
            params.iter_mut().for_each(|param| *param += 0.5);
            replica.step_taken();
            let mut expected = replica.anchor().to_vec();
            outer.clone().apply(&mut expected[..length - 3], &mean[..length - 3]);
            expected[length - 3..].copy_from_slice(&mean[length - 3..]);
            replica.finish(begun, &mut params, &mean, &mut outer, Install::Merge).unwrap();
            assert_eq!(replica.anchor(), expected);
            let in_flight =
                |range: std::ops::Range<usize>| range.map(|index| params[index] - expected[index]);
            assert!(in_flight(0..length - 3).all(|steps| (steps - 0.5).abs() < 0.01));
            assert!(in_flight(length - 3..length).all(|steps| steps == 0.0));
        }
    }

    #[test]
    fn mixing_keeps_a_share_of_the_local_parameters() {
        let mut params = [4.0_f32, 8.0];
        let mut replica = start(&params);
        let requested = replica.request();
        replica.install(requested, &mut params, &[0.0, 0.0], Install::Mix { alpha: 0.25 }).unwrap();
        assert_eq!((params, replica.anchor()), ([1.0, 2.0], &[0.0, 0.0][..]));
    }

    #[test]
    fn narrow_types_are_rounded_once() {
        let anchor = [bf16::from_f32(1.0)];
        let replica = Replica::new(&anchor, 1).unwrap();
        let mut out = [bf16::ZERO];
        // 1.0078125 − 1 is exact in f32, and a third of it is rounded only when it is stored.
        replica.delta(&[bf16::from_f32(1.0078125)], 1.0 / 3.0, 1, &mut out).unwrap();
        assert_eq!(out[0], bf16::from_f32(0.0078125 / 3.0));
        assert!(Replica::new(&[1.0_f64], 2).is_err());
        assert!(Replica::new(&[f16::ONE], 1).unwrap().delta(&[], 1.0, 1, &mut []).is_err());
    }

    #[test]
    fn gradients_carry_statistics_along() {
        let mut params = [1.0_f32, 6.0];
        let mut replica = start(&params);
        let mut gradient = [0.5, 0.0];
        replica.statistics(&params, 2, &mut gradient).unwrap();
        assert_eq!(gradient, [0.5, 3.0]);
        replica.install_statistics(&mut params, &[9.0, 4.0]).unwrap();
        assert_eq!(params, [1.0, 4.0]);
    }
}
