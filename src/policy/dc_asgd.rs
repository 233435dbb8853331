//! `--mode dc-asgd`: asynchronous SGD with delay compensation (Zheng et al., *Asynchronous Stochastic Gradient Descent with
//! Delay Compensation*, ICML 2017).
//!
//! Workers push raw gradients. The server remembers for every worker the parameters that it pulled, and corrects a late
//! gradient by what has changed since, with the squared gradient in place of the Hessian's diagonal:
//! `w ← w − η [g + λ g⊙g⊙(w − backup_k)]`.
//!
//! The constant form (DC-ASGD-c) is the default, with λ = 0.04. The adaptive form (DC-ASGD-a) is chosen by giving the decay of
//! its mean square (`--dc-mean-square-decay 0.95` is the paper's): `λ = λ₀ / √(s + 10⁻⁷)`, with λ₀ = 2.
//!
//! The server's step is plain SGD with the learning rate of the job, as in the paper: it knows no momentum and no weight
//! decay. A rate that changes follows the samples that the server was told of. A gradient counts whole by default (`--push-scale sum`).
//!
//! MXNet's optimiser of this name keeps one backup for all workers, overwritten by every update, so that it compensates only
//! for the last server step. Here each worker has its own, made at its pull, which costs the server K times the parameters.
//!
//! If a worker dies, the others go on.

use super::pushing::{Cluster, PushingWorker, answer, discard, reply};
use super::{
    Coordinator, Directive, Job, LearningRate, PolicyOptions, PushRule, PushScale, Reply, Report,
    ServerReason,
};
use crate::error::{Error, Result};
use crate::transport::Rank;
use std::time::Duration;

/// The worker: one gradient, one push, one pull, and again.
pub fn worker() -> PushingWorker {
    PushingWorker::gradients("dc-asgd")
}

/// How a late gradient is corrected.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Compensation {
    /// The server's learning rate η.
    pub learning_rate: f64,
    /// λ of the constant form, λ₀ of the adaptive one.
    pub lambda: f64,
    /// Decay of the moving mean square, from 0 to below 1, for the adaptive form; `None` for the constant one.
    pub mean_square_decay: Option<f64>,
}

impl Compensation {
    /// With the published λ of the form that `mean_square_decay` chooses.
    pub fn new(learning_rate: f64, mean_square_decay: Option<f64>) -> Self {
        let lambda = if mean_square_decay.is_some() { 2.0 } else { 0.04 };
        Compensation { learning_rate, lambda, mean_square_decay }
    }
}

/// The server's rule: correct what arrives, answer at once.
#[derive(Debug, Clone)]
pub struct DcAsgdServer {
    compensation: Compensation,
    scale: PushScale,
    cluster: Cluster,
    /// What the learning rate follows, if it changes, and how far that is.
    rates: Option<LearningRate>,
    samples: u64,
}

impl DcAsgdServer {
    /// What a gradient counts if nothing else is chosen.
    pub const DEFAULT_SCALE: PushScale = PushScale::Sum;

    /// For `size` workers.
    pub fn new(size: usize, scale: PushScale, compensation: Compensation) -> Self {
        DcAsgdServer { compensation, scale, cluster: Cluster::new(size), rates: None, samples: 0 }
    }

    pub(super) fn from_options(options: &PolicyOptions, job: &Job) -> Result<Self> {
        let decay = options.dc_mean_square_decay;
        if let Some(decay) = decay.filter(|decay| !(0.0..1.0).contains(decay)) {
            return Err(Error::Usage(format!(
                "--dc-mean-square-decay is {decay}; it must be from 0 to below 1 (the paper's is 0.95)"
            )));
        }
        let published = Compensation::new(job.learning_rate, decay);
        let lambda = options.dc_lambda.unwrap_or(published.lambda);
        if !(lambda >= 0.0 && lambda.is_finite()) {
            return Err(Error::Usage(format!("--dc-lambda is {lambda}; it must be 0 or more")));
        }
        let scale = options.push_scale.unwrap_or(Self::DEFAULT_SCALE);
        let rates = job.budget_samples.map(|budget_samples| LearningRate {
            base: job.learning_rate,
            schedule: options.schedule.clone().unwrap_or_default(),
            warmup: options.warmup,
            budget_samples,
        });
        let compensation = Compensation { lambda, ..published };
        Ok(DcAsgdServer { rates, ..DcAsgdServer::new(job.size, scale, compensation) })
    }
}

impl Coordinator for DcAsgdServer {
    fn on(&mut self, _now: Duration, from: Rank, report: Report) -> Vec<Directive> {
        if !self.cluster.is_live(from) {
            return Vec::new();
        }
        let applied = match report {
            Report::Pushed { loss, .. } if !loss.is_finite() => discard(from, loss),
            Report::Pushed { base, samples, .. } => {
                self.samples += samples;
                let staleness = self.cluster.staleness(base);
                let scale = self.scale.factor(self.cluster.live_count(), staleness);
                let Compensation { learning_rate, lambda, mean_square_decay } = self.compensation;
                let now = self.rates.as_ref().map_or(learning_rate, |rates| rates.after(self.samples));
                let learning_rate = now * scale;
                let rule = PushRule::DelayCompensated { learning_rate, lambda, mean_square_decay };
                self.cluster.apply(from, rule, ServerReason::Compensated { staleness })
            }
            other => return answer(from, &other),
        };
        vec![applied, reply(from, Reply::Pull, ServerReason::NobodyWaits)]
    }

    fn lost(&mut self, _now: Duration, rank: Rank) -> Vec<Directive> {
        self.cluster.leave(rank);
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::testing::{at, push};
    use crate::policy::{Action, Fragment, Install, Payload, Update, WorkerEvent, WorkerPolicy};

    #[test]
    fn a_worker_pushes_gradients_that_it_has_not_applied() {
        let mut policy = worker();
        let step = Action::Step { update: Update::Deferred };
        assert_eq!(policy.next(WorkerEvent::Started { rank: 0, step_seconds: [1.0].into() }).0, step);
        let (action, _) = policy.next(WorkerEvent::Stepped { step_seconds: 1.0, samples: 1, loss: 1.0 });
        assert_eq!(action, Action::Push { payload: Payload::Gradient, fragment: Fragment::Whole });
        let (action, _) = policy.next(WorkerEvent::Replied(Reply::Pull));
        assert_eq!(action, Action::Pull { install: Install::Rebase });
    }

    #[test]
    fn both_forms_have_their_published_constants() {
        for (decay, lambda) in [(None, 0.04), (Some(0.95), 2.0)] {
            let mut server = DcAsgdServer::new(2, PushScale::Mean, Compensation::new(0.1, decay));
            let directives = server.on(at(1), 1, push(0));
            let Directive::Apply { rule, reason, .. } = &directives[0] else { panic!("{directives:?}") };
            let learning_rate = 0.05;
            let expected = PushRule::DelayCompensated { learning_rate, lambda, mean_square_decay: decay };
            assert_eq!(*rule, expected);
            assert!(reason.to_string().starts_with("computed 0 versions ago"), "{reason}");
            assert!(matches!(directives[1], Directive::Reply { to: 1, reply: Reply::Pull, .. }));
        }
    }
}
