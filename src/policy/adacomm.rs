//! `--mode adacomm`: local SGD whose rounds become shorter as the loss falls (Wang and Joshi, *Adaptive Communication Strategies
//! to Achieve the Best Error-Runtime Trade-off in Local-Update SGD*, MLSys 2019).
//!
//! Long rounds save transfers while the loss is high; short ones end closer to the minimum. At the end of every interval of T₀
//! seconds the number τ of local steps is chosen again from the loss F of all workers:
//!
//! ```text
//! candidate = ⌈ √( (η₀/η) · F/F₀ ) · τ₀ ⌉
//! τ ← candidate    if it is less than τ    (rule 1)
//! τ ← ⌈ γ · τ ⌉    otherwise, γ = 1/2      (rule 2)
//! ```
//!
//! # Where this differs from the paper and its implementations
//!
//! - All ranks decide alike, because they decide from the same figures: losses and step times travel with every exchange. Time
//!   is the sum of the rounds, each as long as its slowest worker's steps and the transfer, without anybody's clock. Rounds are
//!   counted, not steps, so that a change of τ cannot leave workers waiting for each other.
//! - F is the mean training loss over the samples of the interval, F₀ that of the first round; nothing is evaluated for it.
//! - τ₀ is an option, not the result of a search that restores the weights between candidates.
//! - A loss that is negative or not a number says nothing about a ratio: τ stays as it is.

use super::rounds::{Plan, Rounds};
use super::{Job, MemberReport, PolicyOptions, Preset, Reason, Schedule};

/// τ₀ of a job of about sixty steps.
const LOCAL_STEPS: u64 = 8;

/// T₀ as a multiple of the slowest worker's step.
const INTERVAL_STEPS: f64 = 16.0;

/// T₀ in the paper, and τ₀ in the implementation of ADSP's authors.
const PAPER: (f64, u64) = (60.0, 40);

/// What τ is multiplied by if the loss does not ask for a shorter round.
const GAMMA: f64 = 0.5;

/// The plan: τ, and what it is chosen from.
///
/// ```
/// use esync::policy::adacomm::AdaComm;
/// use esync::policy::WorkerPolicy;
/// assert_eq!(AdaComm::worker(20, 60.0).name(), "adacomm");
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct AdaComm {
    first_local_steps: u64,
    local_steps: u64,
    interval_seconds: f64,
    /// Seconds of the present interval.
    seconds: f64,
    loss: Mean,
    first_loss: Option<f64>,
    samples: u64,
    /// The learning rate's schedule and the budget that it is over.
    schedule: Option<(Schedule, u64)>,
}

/// A mean over samples.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
struct Mean {
    sum: f64,
    samples: u64,
}

impl AdaComm {
    /// A worker that begins with `local_steps` a round and chooses again every `interval_seconds`.
    pub fn worker(local_steps: u64, interval_seconds: f64) -> Rounds<AdaComm> {
        Rounds::new(AdaComm {
            first_local_steps: local_steps.max(1),
            local_steps: local_steps.max(1),
            interval_seconds,
            seconds: 0.0,
            loss: Mean::default(),
            first_loss: None,
            samples: 0,
            schedule: None,
        })
    }

    pub(super) fn from_options(options: &PolicyOptions, job: &Job) -> Rounds<AdaComm> {
        let straggler_seconds = job.step_seconds.iter().copied().fold(0.0, f64::max);
        let (interval_seconds, local_steps) = match options.preset() {
            Preset::Scaled => (INTERVAL_STEPS * straggler_seconds, LOCAL_STEPS),
            Preset::Paper => PAPER,
        };
        let mut worker = Self::worker(
            options.local_steps.unwrap_or(local_steps),
            options.adapt_seconds.unwrap_or(interval_seconds),
        );
        worker.plan_mut().schedule = options.schedule.clone().zip(job.budget_samples);
        worker
    }

    /// η/η₀ after what is done.
    fn rate_factor(&self) -> f64 {
        match &self.schedule {
            Some((schedule, budget)) => schedule.factor(self.samples as f64 / (*budget).max(1) as f64),
            None => 1.0,
        }
    }

    /// The end of an interval.
    fn choose(&mut self) -> Reason {
        let loss = std::mem::take(&mut self.loss).get();
        let (first_loss, from) = (self.first_loss.unwrap_or(f64::NAN), self.local_steps);
        let ratio = loss / first_loss / self.rate_factor();
        if ratio.is_nan() || loss < 0.0 || first_loss <= 0.0 {
            return Reason::LossSaysNothing { loss, first_loss, local_steps: from };
        }
        // The cast saturates.
        let candidate = (ratio.sqrt() * self.first_local_steps as f64).ceil() as u64;
        let follows_loss = candidate < from;
        self.local_steps = match follows_loss {
            true => candidate,
            false => (GAMMA * from as f64).ceil() as u64,
        }
        .max(1);
        Reason::RoundsAdapted { loss, first_loss, follows_loss, from, to: self.local_steps }
    }
}

impl Mean {
    fn get(self) -> f64 {
        self.sum / self.samples as f64
    }
}

impl Plan for AdaComm {
    fn name(&self) -> &'static str {
        "adacomm"
    }

    fn local_steps(&self) -> u64 {
        self.local_steps
    }

    fn round_ended(&mut self, round: u64, transfer_seconds: f64, members: &[MemberReport]) -> Reason {
        let seconds = members.iter().map(|member| member.local_steps.0 as f64 * member.step_seconds);
        self.seconds += seconds.fold(0.0, f64::max) + transfer_seconds;
        for member in members {
            self.loss.sum += member.loss * member.samples as f64;
            self.loss.samples += member.samples;
            self.samples += member.samples;
        }
        if self.first_loss.is_none() && self.loss.samples > 0 {
            self.first_loss = Some(self.loss.get());
        }
        if self.seconds < self.interval_seconds {
            return Reason::RoundBegins { round };
        }
        self.seconds = 0.0;
        self.choose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::rounds::script;

    /// Steps of 1 s; the loss of each round.
    fn run(worker: &mut Rounds<AdaComm>, losses: &[f64]) -> (Vec<u64>, Vec<String>) {
        script::run(worker, 2, losses.len() as u64, |round| {
            (losses[(round as usize).min(losses.len() - 1)], 1.0)
        })
    }

    #[test]
    fn rounds_follow_the_loss_or_are_halved() {
        let (steps, reasons) = run(&mut AdaComm::worker(16, 16.0), &[4.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.25]);
        // 16 s: F/F₀ = 1, so that rule 2 halves. 16 s of 8 + 8: √(1/4)·16 = 8 is not less, so that rule 2 halves again.
        assert_eq!(steps, [16, 8, 8, 4, 4, 4, 4]);
        assert_eq!(
            reasons[0],
            "the loss is 4.0000 and was 4.0000 at first: it asks for no shorter rounds, which are halved from 16 to 8 local steps"
        );
        assert_eq!(reasons[1], "round 2 begins");
        let (steps, reasons) = run(&mut AdaComm::worker(16, 32.0), &[4.0, 0.25, 0.25]);
        assert_eq!(steps, [16, 16, 12]);
        assert_eq!(
            reasons[1],
            "the loss is 2.1250 and was 4.0000 at first: rounds of 16 local steps become rounds of 12"
        );
    }

    #[test]
    fn a_loss_that_is_no_measure_changes_nothing() {
        for losses in [[-1.0, -2.0, -3.0], [0.0, 0.0, 0.0], [f64::NAN, 1.0, 1.0]] {
            let (steps, reasons) = run(&mut AdaComm::worker(4, 1.0), &losses);
            assert_eq!(steps, [4, 4, 4]);
            assert!(reasons[0].ends_with("rounds keep their 4 local steps"), "{reasons:?}");
        }
    }

    #[test]
    fn a_lower_learning_rate_allows_longer_rounds() {
        let plan = |schedule: &str| {
            let mut worker = AdaComm::worker(16, 32.0);
            worker.plan_mut().schedule = Some((schedule.parse().unwrap(), 512));
            run(&mut worker, &[4.0, 0.25, 0.25]).0
        };
        // The rate is a quarter after all 512 samples: the candidate is twice as long, and no less than 16.
        assert_eq!(plan("constant"), [16, 16, 12]);
        assert_eq!(plan("steps:0.9:0.25"), [16, 16, 8]);
        assert_eq!(plan("cosine"), [16, 16, 8], "a rate of 0 is no division by zero");
    }

    #[test]
    fn the_interval_is_scaled_to_the_straggler_unless_it_is_the_papers() {
        let job = Job {
            size: 2,
            step_seconds: [0.1, 0.5].into(),
            shard_samples: [50, 50].into(),
            batch_size: 8,
            learning_rate: 0.1,
            budget_samples: None,
        };
        let interval = |options: &PolicyOptions| AdaComm::from_options(options, &job).plan().interval_seconds;
        assert_eq!(interval(&PolicyOptions::default()), 8.0);
        let paper = PolicyOptions { preset: Some(Preset::Paper), ..PolicyOptions::default() };
        assert_eq!(interval(&paper), 60.0);
        assert_eq!(interval(&PolicyOptions { adapt_seconds: Some(3.0), ..paper }), 3.0);
    }
}
