//! How far training has come: samples of all workers, measurements of the global parameters, and why to stop.

use super::options::Limits;
use super::record::EvaluationRecord;
use crate::error::{Error, Result};
use crate::learner::Learner;
use crate::train::StoppedBy;

/// Counts, measures, and says when training is over.
pub(super) struct Progress {
    limits: Limits,
    /// A learner that does not train: it measures parameters.
    evaluator: Box<dyn Learner>,
    pub(super) global_samples: u64,
    next_evaluation: u64,
    measured_at: Option<u64>,
    pub(super) evaluations: Vec<EvaluationRecord>,
    pub(super) time_to_target_seconds: Option<f64>,
    pub(super) stopped_by: Option<StoppedBy>,
}

impl Progress {
    pub(super) fn new(limits: Limits, evaluator: Box<dyn Learner>) -> Self {
        Progress {
            next_evaluation: limits.evaluate_every_samples.unwrap_or(u64::MAX),
            limits,
            evaluator,
            global_samples: 0,
            measured_at: None,
            evaluations: Vec::new(),
            time_to_target_seconds: None,
            stopped_by: None,
        }
    }

    /// The loss of these parameters, for a server that asks.
    pub(super) fn loss(&mut self, parameters: &[f32]) -> Result<f64> {
        self.evaluator.parameters().copy_from_slice(parameters);
        Ok(self.evaluator.held_out()?.loss())
    }

    /// Measures these parameters.
    pub(super) fn evaluate(
        &mut self,
        seconds: f64,
        global_bytes: u64,
        parameters: &[f32],
    ) -> Result<EvaluationRecord> {
        self.evaluator.parameters().copy_from_slice(parameters);
        let score = self.evaluator.evaluate(0, 1)?;
        let (accuracy, loss, global_samples) = (score.accuracy(), score.loss(), self.global_samples);
        if !loss.is_finite() {
            return Err(Error::Diverged { rank: 0, step: self.evaluations.len() as u64, loss });
        }
        let evaluation = EvaluationRecord { seconds, global_samples, global_bytes, accuracy, loss };
        self.evaluations.push(evaluation);
        self.measured_at = Some(global_samples);
        if self.limits.meets_target(accuracy, loss) && self.time_to_target_seconds.is_none() {
            self.time_to_target_seconds = Some(seconds);
        }
        Ok(evaluation)
    }

    /// Whether the next check measures.
    pub(super) fn is_due(&self) -> bool {
        self.global_samples >= self.next_evaluation || self.is_spent()
    }

    fn is_spent(&self) -> bool {
        self.limits.samples.is_some_and(|limit| self.global_samples >= limit)
    }

    /// Whether these parameters were measured last, and nothing has come since.
    pub(super) fn is_measured(&self) -> bool {
        self.measured_at == Some(self.global_samples)
    }

    /// After [`evaluate`](Self::evaluate), if that was due: whether a limit is reached, after `rounds` exchanges or updates.
    pub(super) fn should_stop(&mut self, seconds: f64, rounds: u64) -> bool {
        if let Some(every) = self.limits.evaluate_every_samples.filter(|_| self.is_due()) {
            self.next_evaluation = (self.global_samples / every + 1) * every;
        }
        self.stopped_by = self.stopped_by.or_else(|| {
            if self.time_to_target_seconds.is_some() {
                Some(StoppedBy::Target)
            } else if self.is_spent() || self.limits.rounds.is_some_and(|limit| rounds >= limit) {
                Some(StoppedBy::Samples)
            } else if self.limits.seconds.is_some_and(|limit| seconds >= limit) {
                Some(StoppedBy::Seconds)
            } else {
                None
            }
        });
        self.stopped_by.is_some()
    }
}
