//! A worker's side of Hermes.

use super::{Gate, HermesReason, Settings, Sizes};
use crate::policy::{
    Action, Fragment, Install, Job, LocalSteps, Payload, Reason, Reply, Report, Smoothed, Update,
    WorkerEvent, WorkerPolicy,
};
use crate::transport::Rank;

/// What the worker has asked for and not been told yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pending {
    Start,
    Batch,
    Step,
    NextSizes,
    HeldOut,
    Verdict,
    Parameters,
}

/// An epoch of local steps, the held-out loss, a push if it is a significant improvement, and again.
///
/// ```
/// use esync::policy::hermes::{HermesWorker, Settings};
/// use esync::policy::{Action, Job, PolicyOptions, Reply, WorkerEvent, WorkerPolicy};
///
/// let job = Job {
///     size: 2,
///     step_seconds: [0.1, 0.1].into(),
///     shard_samples: [64, 64].into(),
///     batch_size: 32,
///     learning_rate: 0.05,
///     budget_samples: None,
/// };
/// let mut policy = HermesWorker::new(Settings::from_options(&PolicyOptions::default(), &job), &job, 0);
/// policy.next(WorkerEvent::Started { rank: 0, step_seconds: job.step_seconds.clone() });
/// let stepped = WorkerEvent::Stepped { step_seconds: 0.1, samples: 32, loss: 2.3 };
/// let (action, reason) = policy.next(stepped.clone());
/// assert!(matches!(action, Action::Report(_)));
/// assert_eq!(
///     reason.to_string(),
///     "the next epoch's size is asked for before it is needed; steps left in this one: 1"
/// );
/// assert!(matches!(policy.next(WorkerEvent::Replied(Reply::Continue)).0, Action::Step { .. }));
/// assert_eq!(policy.next(stepped).0, Action::Evaluate);
/// let (action, reason) = policy.next(WorkerEvent::Evaluated { loss: 2.1, accuracy: 0.3 });
/// assert!(matches!(action, Action::Step { .. }));
/// assert!(reason.to_string().starts_with("minor"));
/// ```
#[derive(Debug, Clone)]
pub struct HermesWorker {
    settings: Settings,
    gate: Gate,
    sizes: Sizes,
    next_sizes: Option<Sizes>,
    /// The job's mini-batch, which the learner begins with.
    job_batch_size: u64,
    pending: Pending,
    epoch: u64,
    local_steps: u64,
    epoch_seconds: f64,
    step_seconds: Smoothed,
}

impl HermesWorker {
    /// The worker `rank` of a job.
    pub fn new(settings: Settings, job: &Job, rank: Rank) -> Self {
        HermesWorker {
            gate: Gate::new(settings.gate),
            sizes: settings.first_sizes(job, rank),
            settings,
            next_sizes: None,
            job_batch_size: job.batch_size as u64,
            pending: Pending::Start,
            epoch: 0,
            local_steps: 0,
            epoch_seconds: 0.0,
            step_seconds: Smoothed::default(),
        }
    }

    fn planned_steps(&self) -> u64 {
        self.settings.sizing.steps(self.sizes)
    }

    fn step(&mut self, reason: Reason) -> (Action, Reason) {
        self.pending = Pending::Step;
        (Action::Step { update: Update::Local }, reason)
    }

    fn set_batch(&mut self, reason: HermesReason) -> (Action, Reason) {
        self.pending = Pending::Batch;
        // Both were cut to what this worker has, in `usize`.
        let (batch_size, data_budget) =
            (self.sizes.batch_size as usize, Some(self.sizes.data_budget as usize));
        (Action::SetBatch { batch_size, data_budget }, Reason::Hermes(reason))
    }

    fn pull(&mut self, reason: Reason) -> (Action, Reason) {
        self.pending = Pending::Parameters;
        (Action::Pull { install: Install::Rebase }, reason)
    }

    fn stepped(&mut self, step_seconds: f64) -> (Action, Reason) {
        self.step_seconds.add(step_seconds);
        self.epoch_seconds += step_seconds;
        self.local_steps += 1;
        let planned = self.planned_steps();
        if self.local_steps == (planned * 4 / 5).max(1) {
            self.pending = Pending::NextSizes;
            let report = Report::Stepped {
                round: self.epoch,
                local_steps: LocalSteps(self.local_steps),
                step_seconds: self.step_seconds.get(),
                low_step_seconds: self.step_seconds.low(),
                transfer_seconds: 0.0,
                round_seconds: self.epoch_seconds,
            };
            let steps_left = planned.saturating_sub(self.local_steps);
            return (Action::Report(report), Reason::Hermes(HermesReason::AskForNextSize { steps_left }));
        }
        self.go_on()
    }

    /// The next step of the epoch, or its end.
    fn go_on(&mut self) -> (Action, Reason) {
        let (local_steps, planned_steps) = (self.local_steps, self.planned_steps());
        if local_steps < planned_steps {
            return self.step(Reason::PlannedStepsLeft { local_steps, planned_steps });
        }
        self.pending = Pending::HeldOut;
        (Action::Evaluate, Reason::Hermes(HermesReason::EpochOver { local_steps }))
    }

    fn evaluated(&mut self, loss: f64) -> (Action, Reason) {
        if !loss.is_finite() {
            self.gate.reset();
            return self.pull(Reason::Hermes(HermesReason::BeginAgain { loss }));
        }
        let verdict = self.gate.judge(loss);
        let reason = Reason::Hermes(HermesReason::Judged { loss, verdict });
        if !verdict.is_major {
            return self.next_epoch(reason);
        }
        self.pending = Pending::Verdict;
        (Action::Push { payload: Payload::Parameters, fragment: Fragment::Whole }, reason)
    }

    fn next_epoch(&mut self, reason: Reason) -> (Action, Reason) {
        self.epoch += 1;
        self.local_steps = 0;
        self.epoch_seconds = 0.0;
        match self.next_sizes.take().filter(|&sizes| sizes != self.sizes) {
            None => self.step(reason),
            Some(sizes) => {
                self.sizes = sizes;
                self.set_batch(HermesReason::NextSizes(sizes))
            }
        }
    }

    fn replied(&mut self, reply: Reply) -> (Action, Reason) {
        match (self.pending, reply) {
            (_, Reply::Stop) => (Action::Stop, Reason::StopRequested),
            (Pending::NextSizes, Reply::SetBatch { batch_size, data_budget }) => {
                let data_budget = data_budget.map_or(self.sizes.data_budget, |samples| samples as u64);
                self.next_sizes = Some(Sizes { batch_size: (batch_size as u64).max(1), data_budget });
                self.go_on()
            }
            (Pending::NextSizes, _) => self.go_on(),
            (Pending::Verdict, Reply::Pull) => self.pull(Reason::ServerDecided),
            (Pending::Verdict, _) => self.next_epoch(Reason::ServerDecided),
            (_, reply) => (Action::Stop, Reason::unexpected(&WorkerEvent::Replied(reply))),
        }
    }
}

impl WorkerPolicy for HermesWorker {
    fn name(&self) -> &'static str {
        "hermes"
    }

    fn next(&mut self, event: WorkerEvent) -> (Action, Reason) {
        match (self.pending, event) {
            (_, WorkerEvent::StopRequested) => (Action::Stop, Reason::StopRequested),
            (Pending::Start, WorkerEvent::Started { .. }) => {
                // What the learner holds by itself is its whole shard; an epoch is a part of it.
                if self.sizes.batch_size == self.job_batch_size {
                    return self.step(Reason::Started);
                }
                self.set_batch(HermesReason::FirstSizes(self.sizes))
            }
            (Pending::Batch, WorkerEvent::BatchSet) => {
                let planned_steps = self.planned_steps();
                self.step(Reason::PlannedStepsLeft { local_steps: 0, planned_steps })
            }
            (Pending::Step, WorkerEvent::Stepped { step_seconds, .. }) => self.stepped(step_seconds),
            (_, WorkerEvent::Replied(reply)) => self.replied(reply),
            (Pending::HeldOut, WorkerEvent::Evaluated { loss, .. }) => self.evaluated(loss),
            (Pending::Parameters, WorkerEvent::Pulled { version }) => {
                self.next_epoch(Reason::ServerParameters { version })
            }
            (_, other) => (Action::Stop, Reason::unexpected(&other)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{PolicyOptions, Versions};

    fn worker(shard: u64) -> HermesWorker {
        let job = Job {
            size: 2,
            step_seconds: [0.1, 0.1].into(),
            shard_samples: [shard, shard].into(),
            batch_size: 16,
            learning_rate: 0.1,
            budget_samples: None,
        };
        HermesWorker::new(Settings::from_options(&PolicyOptions::default(), &job), &job, 0)
    }

    /// Drives a worker; `losses` are the held-out ones, and `reply` answers reports.
    fn letters(policy: &mut HermesWorker, losses: &[f64], reply: Reply) -> String {
        let (mut losses, mut letters) = (losses.iter(), String::new());
        let mut event = WorkerEvent::Started { rank: 0, step_seconds: [0.1, 0.1].into() };
        loop {
            let (action, _) = policy.next(event);
            let (letter, answer) = match action {
                Action::Step { .. } => {
                    ('s', WorkerEvent::Stepped { step_seconds: 0.1, samples: 16, loss: 1.0 })
                }
                Action::Report(_) => ('r', WorkerEvent::Replied(reply.clone())),
                Action::Evaluate => match losses.next() {
                    Some(&loss) => ('e', WorkerEvent::Evaluated { loss, accuracy: 0.5 }),
                    None => return letters,
                },
                Action::Push { payload, .. } => {
                    assert_eq!(payload, Payload::Parameters);
                    ('P', WorkerEvent::Replied(Reply::Pull))
                }
                Action::Pull { .. } => ('L', WorkerEvent::Pulled { version: Versions(1) }),
                Action::SetBatch { .. } => ('b', WorkerEvent::BatchSet),
                other => panic!("{other:?}"),
            };
            letters.push(letter);
            event = answer;
        }
    }

    #[test]
    fn an_epoch_asks_early_and_only_major_updates_are_pushed() {
        let actions = letters(&mut worker(48), &[1.0, 1.01, 0.5, 0.5], Reply::Continue);
        assert_eq!(actions, ["ssrse", "ssrse", "ssrsePL", "ssrse", "ssrs"].concat());
    }

    #[test]
    fn a_new_size_counts_from_the_next_epoch_on_and_is_set_once() {
        let reply = Reply::SetBatch { batch_size: 8, data_budget: Some(16) };
        assert_eq!(letters(&mut worker(48), &[1.0, 1.0], reply), ["ssrse", "b", "srse", "srs"].concat());
    }

    #[test]
    fn a_loss_that_is_not_a_number_is_never_pushed() {
        let actions = letters(&mut worker(48), &[1.0, f64::NAN, 1.0], Reply::Continue);
        assert_eq!(actions, ["ssrse", "ssrseL", "ssrse", "ssrs"].concat());
    }

    #[test]
    fn a_shard_smaller_than_a_mini_batch_and_an_empty_one_still_begin() {
        assert_eq!(letters(&mut worker(4), &[], Reply::Continue), "bsr");
        assert_eq!(letters(&mut worker(0), &[], Reply::Continue), "bsr");
    }

    #[test]
    fn a_worker_stops_when_told() {
        let mut policy = worker(48);
        assert_eq!(policy.next(WorkerEvent::StopRequested).0, Action::Stop);
        assert_eq!(policy.next(WorkerEvent::Replied(Reply::Stop)).0, Action::Stop);
        assert!(matches!(policy.next(WorkerEvent::BatchSet), (Action::Stop, Reason::Unexpected { .. })));
    }
}
