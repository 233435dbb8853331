//! What a parameter server holds: the parameters, and what the push rules keep beside them.

mod rules;
#[cfg(test)]
mod tests;

use super::{Payload, PushRule, Versions};
use crate::error::{Error, Result};
use crate::transport::Rank;
use rules::DelayedNesterovStep;

/// The Euclidean norm of what is pushed, for [`Report::Pushed`](super::Report::Pushed): of the trained part alone, whose
/// length the caller cuts it to.
///
/// ```
/// assert_eq!(esync::policy::norm(&[3.0, -4.0]), 5.0);
/// ```
pub fn norm(trained: &[f32]) -> f64 {
    trained.iter().map(|&value| f64::from(value) * f64::from(value)).sum::<f64>().sqrt()
}

/// The parameters of a server (or of one of its shards), and how pushes change them.
///
/// The first `trainable` elements are trained. The rest are *statistics* (running means and variances of batch
/// normalisation): they travel with every push by value, and the store's own move towards them,
/// `s ← s + (s_k − s) / workers`; under [`PushRule::LossWeighted`], which merges whole models, by the push's own weight.
///
/// What only some rules need (a buffer, momentum, a mean square) is allocated by their first push, and nothing after that.
///
/// ```
/// use esync::policy::{Payload, PushRule, Store, Versions};
///
/// # fn main() -> esync::Result<()> {
/// let mut store = Store::new(&[1.0, 2.0], 2, 4)?;
/// let rule = PushRule::Add { scale: 0.25 };
/// store.apply(3, Payload::Delta, &[4.0, 0.0], rule, &mut |_| unreachable!("this rule measures nothing"))?;
/// assert_eq!(store.pull(3), (&[2.0, 2.0][..], Versions(1)));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Store {
    parameters: Vec<f32>,
    trainable: usize,
    workers: usize,
    version: u64,
    /// The trained parameters as each worker pulled them last, if a rule needs them.
    backups: Option<Vec<Vec<f32>>>,
    /// The moving mean square of the gradients (DC-ASGD's adaptive form).
    mean_square: Vec<f32>,
    /// Deltas that wait: for [`publish`](Self::publish), or for the next momentum step of delayed Nesterov.
    buffer: Vec<f32>,
    /// Delayed Nesterov's momentum.
    momentum: Vec<f32>,
    /// Pushes since the momentum was renewed.
    since_momentum: u32,
    /// Loss of the merged parameters, from the first loss-weighted push on.
    merged_loss: Option<f64>,
}

impl Store {
    /// A store at version 0, whose workers begin with the same parameters.
    ///
    /// # Errors
    /// `Usage` if `trainable` is more than there are, or nobody works.
    pub fn new(parameters: &[f32], trainable: usize, workers: usize) -> Result<Store> {
        if trainable > parameters.len() {
            return Err(Error::Usage(format!(
                "{trainable} of {} parameters cannot be trainable",
                parameters.len()
            )));
        }
        if workers == 0 {
            return Err(Error::Usage("a parameter server needs at least one worker".into()));
        }
        Ok(Store {
            parameters: parameters.to_vec(),
            trainable,
            workers,
            version: 0,
            backups: None,
            mean_square: Vec::new(),
            buffer: Vec::new(),
            momentum: Vec::new(),
            since_momentum: 0,
            merged_loss: None,
        })
    }

    /// The same with a backup of the trained parameters for every worker, renewed at its pulls:
    /// [`PushRule::DelayCompensated`] needs them.
    pub fn with_backups(mut self) -> Store {
        self.backups = Some(vec![self.parameters[..self.trainable].to_vec(); self.workers]);
        self
    }

    /// How many pushes were applied, and how often what was buffered was published.
    pub fn version(&self) -> Versions {
        Versions(self.version)
    }

    /// The parameters of this version, the statistics behind the trained ones.
    pub fn parameters(&self) -> &[f32] {
        &self.parameters
    }

    /// How many elements are trained; the rest are statistics.
    pub fn trainable(&self) -> usize {
        self.trainable
    }

    /// Applies what worker `from` has pushed. The version goes up by one, except under [`PushRule::Discard`].
    ///
    /// `loss` measures parameters on the server's held-out data; only [`PushRule::LossWeighted`] calls it.
    ///
    /// # Errors
    /// The store is unchanged if it refuses a push: `DivergedPush` if a value is not a finite number, `Internal` for another
    /// length or for a payload that the rule cannot use, `Training` for losses that cannot weigh.
    pub fn apply(
        &mut self,
        from: Rank,
        payload: Payload,
        values: &[f32],
        rule: PushRule,
        loss: &mut dyn FnMut(&[f32]) -> Result<f64>,
    ) -> Result<()> {
        if rule == PushRule::Discard {
            return Ok(());
        }
        self.check(from, payload, values, rule)?;
        let (pushed, statistics) = values.split_at(self.trainable);
        let (w, own_statistics) = self.parameters.split_at_mut(self.trainable);
        let mut statistics_share = 1.0 / self.workers as f32;
        match rule {
            PushRule::Add { scale } => rules::add(w, pushed, scale as f32),
            PushRule::Buffer { scale } => {
                self.buffer.resize(self.trainable, 0.0);
                rules::add(&mut self.buffer, pushed, scale as f32);
            }
            PushRule::DelayCompensated { learning_rate, lambda, mean_square_decay } => {
                let Some(backup) = self.backups.as_ref().and_then(|backups| backups.get(from)) else {
                    return Err(Error::Internal(format!("the server keeps no backup for rank {from}")));
                };
                let (learning_rate, lambda) = (learning_rate as f32, lambda as f32);
                match mean_square_decay {
                    None => rules::compensate(w, pushed, backup, learning_rate, lambda),
                    Some(decay) => {
                        self.mean_square.resize(self.trainable, 0.0);
                        let s = &mut self.mean_square;
                        let decay = decay as f32;
                        rules::compensate_adaptively(w, pushed, backup, s, learning_rate, lambda, decay);
                    }
                }
            }
            PushRule::LossWeighted => {
                let share = match self.merged_loss {
                    None => 1.0,
                    Some(merged) => merge_share(from, merged, loss(values)?)?,
                };
                statistics_share = share;
                rules::towards(w, pushed, share);
            }
            PushRule::DelayedNesterov { period, learning_rate, momentum, carry } => {
                self.buffer.resize(self.trainable, 0.0);
                self.momentum.resize(self.trainable, 0.0);
                let step = self.since_momentum + 1;
                let (pushes, renews) = (f64::from(period.max(1)), step >= period);
                self.since_momentum = if renews { 0 } else { step };
                let share_of_momentum = if renews { 1.0 - carry * pushes + carry } else { carry };
                let factors = DelayedNesterovStep {
                    delta: (learning_rate / pushes) as f32,
                    momentum: (learning_rate * share_of_momentum * momentum) as f32,
                    renew: renews.then_some((momentum as f32, (1.0 / pushes) as f32)),
                };
                rules::delayed_nesterov(w, pushed, &mut self.momentum, &mut self.buffer, &factors);
            }
            PushRule::Elastic { alpha } => rules::towards(w, pushed, alpha as f32),
            PushRule::Discard => {}
        }
        rules::towards(own_statistics, statistics, statistics_share);
        self.version += 1;
        if rule == PushRule::LossWeighted {
            self.merged_loss = Some(loss(&self.parameters)?);
        }
        Ok(())
    }

    /// Adds what was buffered ([`PushRule::Buffer`]) to the parameters, and empties the buffer. The version goes up by one.
    ///
    /// # Errors
    /// None today: the result leaves room for stores whose parameters are not in memory.
    pub fn publish(&mut self) -> Result<()> {
        if !self.buffer.is_empty() {
            rules::add(&mut self.parameters[..self.trainable], &self.buffer, 1.0);
            self.buffer.fill(0.0);
        }
        self.version += 1;
        Ok(())
    }

    /// What worker `to` pulls now; remembered as its backup if there are backups.
    pub fn pull(&mut self, to: Rank) -> (&[f32], Versions) {
        if let Some(backup) = self.backups.as_mut().and_then(|backups| backups.get_mut(to)) {
            backup.copy_from_slice(&self.parameters[..self.trainable]);
        }
        (&self.parameters, Versions(self.version))
    }

    fn check(&self, from: Rank, payload: Payload, values: &[f32], rule: PushRule) -> Result<()> {
        if values.len() != self.parameters.len() {
            return Err(Error::Internal(format!(
                "rank {from} pushed {} elements to a server of {}",
                values.len(),
                self.parameters.len()
            )));
        }
        let (fits, needs) = match rule {
            PushRule::Add { .. } | PushRule::Buffer { .. } => {
                (payload != Payload::Parameters, "a delta or a gradient")
            }
            PushRule::DelayCompensated { .. } => (payload == Payload::Gradient, "a gradient"),
            PushRule::DelayedNesterov { .. } => (payload == Payload::Delta, "a delta"),
            PushRule::LossWeighted | PushRule::Elastic { .. } => {
                (payload == Payload::Parameters, "parameters")
            }
            PushRule::Discard => (true, "anything"),
        };
        if !fits {
            return Err(Error::Internal(format!("{rule:?} needs {needs}; rank {from} pushed {payload:?}")));
        }
        match rules::first_not_finite(values) {
            None => Ok(()),
            Some(element) => Err(Error::DivergedPush { rank: from, element, value: values[element] }),
        }
    }
}

/// Hermes' weight of a push: `(1/ℓ_k) / (1/ℓ_G + 1/ℓ_k)`.
///
/// The published rule merges total displacements, `w₀ + (G/ℓ_G + G_k/ℓ_k) / (1/ℓ_G + 1/ℓ_k)`. Its weights sum to one, so that
/// `w₀` cancels out, and the result is a step of this share from w towards the pushed parameters.
fn merge_share(from: Rank, merged: f64, pushed: f64) -> Result<f32> {
    match (merged, pushed) {
        (0.0, 0.0) => Ok(0.5),
        _ if merged >= 0.0 && pushed >= 0.0 && merged.is_finite() && pushed.is_finite() => {
            Ok((merged / (merged + pushed)) as f32)
        }
        _ => Err(Error::Training(format!(
            "losses weigh pushes only if they are finite and not negative: the server's is {merged}, that of rank {from}'s \
             parameters is {pushed}; use a loss without negative values, or lower the learning rate"
        ))),
    }
}
