//! `--mode local-sgd`: an exchange after every H local steps (Stich, *Local SGD Converges Fast and Communicates Little*,
//! ICLR 2019). `--mode post-local-sgd`: one after every step until a switch, then after every H (Lin et al., *Don't Use Large
//! Mini-Batches, Use Local SGD*, ICLR 2020).
//!
//! Parameters become the mean of all workers' parameters; the state of the local optimiser stays each worker's own. Both save
//! transfers, not waiting: a round lasts as long as the slowest worker's H steps.

use super::rounds::{Plan, Rounds};
use super::{Job, MemberReport, PolicyOptions, Preset, Reason};
use crate::error::{Error, Result};

/// Local steps of a round, if nothing is said: of a job of about sixty steps.
const LOCAL_STEPS: u64 = 4;

/// H of the second phase in the paper's experiments.
const PAPER_LOCAL_STEPS: u64 = 16;

/// Where post-local SGD switches if nothing is said.
const SWITCH_AT: f64 = 0.5;

/// Every round has the same number of local steps.
///
/// ```
/// use esync::policy::local_sgd::LocalSgd;
/// use esync::policy::{WorkerEvent, WorkerPolicy};
///
/// let mut policy = LocalSgd::worker(2);
/// policy.next(WorkerEvent::Started { rank: 0, step_seconds: [0.1].into() });
/// let (_, reason) = policy.next(WorkerEvent::Stepped { step_seconds: 0.1, samples: 32, loss: 2.3 });
/// assert_eq!(reason.to_string(), "1 of 2 planned local steps are done");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalSgd {
    name: &'static str,
    local_steps: u64,
}

impl LocalSgd {
    /// A worker with this many local steps a round.
    pub fn worker(local_steps: u64) -> Rounds<LocalSgd> {
        Self::named("local-sgd", local_steps)
    }

    /// The same rule under another name.
    pub(super) fn named(name: &'static str, local_steps: u64) -> Rounds<LocalSgd> {
        Rounds::new(LocalSgd { name, local_steps })
    }

    pub(super) fn from_options(options: &PolicyOptions) -> Rounds<LocalSgd> {
        Self::worker(options.local_steps.unwrap_or(LOCAL_STEPS))
    }
}

impl Plan for LocalSgd {
    fn name(&self) -> &'static str {
        self.name
    }

    fn local_steps(&self) -> u64 {
        self.local_steps
    }
}

/// One local step a round until all workers together have had `switch_samples` samples, then `local_steps`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PostLocalSgd {
    local_steps: u64,
    switch_samples: u64,
    samples: u64,
}

impl PostLocalSgd {
    /// A worker that switches to `local_steps` a round after `switch_samples` samples of all workers.
    pub fn worker(local_steps: u64, switch_samples: u64) -> Rounds<PostLocalSgd> {
        Rounds::new(PostLocalSgd { local_steps, switch_samples, samples: 0 })
    }

    /// The switch is a share of the sample budget: the one given, or that of the schedule's first decay.
    pub(super) fn from_options(options: &PolicyOptions, job: &Job) -> Result<Rounds<PostLocalSgd>> {
        let Some(budget) = job.budget_samples else {
            return Err(Error::Usage(
                "--mode post-local-sgd switches at a share of the sample budget, and there is none: give --epochs or \
                 --max-samples"
                    .into(),
            ));
        };
        let decay = options.schedule.as_ref().and_then(|schedule| schedule.first_decay());
        let share = options.switch_at.or(decay).unwrap_or(SWITCH_AT);
        let local_steps = match options.preset() {
            Preset::Scaled => LOCAL_STEPS,
            Preset::Paper => PAPER_LOCAL_STEPS,
        };
        let switch_samples = (share * budget as f64).ceil() as u64;
        Ok(Self::worker(options.local_steps.unwrap_or(local_steps), switch_samples))
    }

    fn has_switched(&self) -> bool {
        self.samples >= self.switch_samples
    }
}

impl Plan for PostLocalSgd {
    fn name(&self) -> &'static str {
        "post-local-sgd"
    }

    fn local_steps(&self) -> u64 {
        if self.has_switched() { self.local_steps } else { 1 }
    }

    fn round_ended(&mut self, round: u64, _: f64, members: &[MemberReport]) -> Reason {
        let had_switched = self.has_switched();
        self.samples += members.iter().map(|member| member.samples).sum::<u64>();
        if self.has_switched() && !had_switched {
            return Reason::RoundsGrow { samples: self.samples, local_steps: self.local_steps };
        }
        Reason::RoundBegins { round }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::rounds::script;

    #[test]
    fn every_round_has_the_steps_asked_for() {
        let (steps, reasons) = script::run(&mut LocalSgd::worker(3), 2, 4, |_| (1.0, 0.1));
        assert_eq!(steps, [3, 3, 3, 3]);
        assert_eq!(reasons[0], "round 1 begins");
        assert_eq!(reasons[3], "all ranks agreed to stop");
    }

    #[test]
    fn rounds_grow_once_after_the_switch() {
        // Two ranks with 8 samples a step: 16 a round; the switch at 40 comes with the third.
        let (steps, reasons) = script::run(&mut PostLocalSgd::worker(5, 40), 2, 6, |_| (1.0, 0.1));
        assert_eq!(steps, [1, 1, 1, 5, 5, 5]);
        assert_eq!(reasons[1], "round 2 begins");
        assert_eq!(reasons[2], "48 samples are done: rounds have 5 local steps from now on");
    }

    #[test]
    fn the_switch_follows_the_schedule_unless_it_is_given() {
        let job = |budget_samples| Job {
            size: 2,
            step_seconds: [0.1, 0.1].into(),
            shard_samples: [50, 50].into(),
            batch_size: 8,
            learning_rate: 0.1,
            budget_samples,
        };
        let options =
            PolicyOptions { schedule: "steps:0.25,0.5:0.1".parse().ok(), ..PolicyOptions::default() };
        let plan =
            |options: &PolicyOptions| *PostLocalSgd::from_options(options, &job(Some(1000))).unwrap().plan();
        assert_eq!(plan(&options).switch_samples, 250);
        assert_eq!(plan(&PolicyOptions { switch_at: Some(0.75), ..options.clone() }).switch_samples, 750);
        assert_eq!(plan(&PolicyOptions::default()).switch_samples, 500);
        assert_eq!(plan(&PolicyOptions { preset: Some(Preset::Paper), ..options.clone() }).local_steps, 16);
        let error = PostLocalSgd::from_options(&options, &job(None)).unwrap_err();
        assert!(error.to_string().contains("--max-samples"), "{error}");
    }
}
