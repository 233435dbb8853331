//! `--mode easgd`: elastic averaging (Zhang, Choromanska, LeCun, *Deep Learning with Elastic Averaging SGD*, NIPS 2015).
//!
//! Every τ local steps (`--local-steps`, 10) a worker and the server's centre move towards each other by a share α of their
//! difference: `d = α (x_k − x̃)`, `x_k ← x_k − d`, `x̃ ← x̃ + d`. Workers explore on their own and never begin again from the
//! centre; nobody waits. α = β/K with β = 0.9 (`--elastic-beta`): the centre is stable while α K ≤ 1.
//!
//! Both sides use the difference from *before* the exchange. The server therefore answers first, with the centre as it is,
//! and applies the push afterwards; the worker mixes `(1 − α) x_k + α x̃`.
//!
//! With momentum in the local optimiser (this crate's default) it is the kin of the paper's EAMSGD, which takes Nesterov's with
//! 0.99. What is evaluated is the centre.
//!
//! If a worker dies, the centre keeps what it has given.

use super::pushing::{Cluster, PushingWorker, answer, reply};
use super::{Coordinator, Directive, Job, PolicyOptions, PushRule, Reply, Report, ServerReason};
use crate::error::{Error, Result};
use crate::transport::Rank;
use std::time::Duration;

/// Local steps between two exchanges if nothing else is chosen.
pub const DEFAULT_LOCAL_STEPS: u64 = 10;
/// The share of its difference to the workers' mean that the centre moves by, while each worker exchanges once.
pub const DEFAULT_BETA: f64 = 0.9;

/// α = β/K.
///
/// # Errors
/// `Usage` if β is not above 0 and at most 1: beyond, the centre is not stable.
pub fn alpha(beta: f64, size: usize) -> Result<f64> {
    if beta > 0.0 && beta <= 1.0 {
        Ok(beta / size.max(1) as f64)
    } else {
        Err(Error::Usage(format!("--elastic-beta is {beta}; it must be above 0 and at most 1")))
    }
}

/// The worker: `local_steps` steps, its parameters to the server, the centre mixed in, and again.
pub fn worker(local_steps: u64, alpha: f64) -> PushingWorker {
    PushingWorker::parameters("easgd", local_steps, 1.0 - alpha)
}

pub(super) fn worker_from_options(options: &PolicyOptions, job: &Job) -> Result<PushingWorker> {
    let alpha = alpha(options.elastic_beta.unwrap_or(DEFAULT_BETA), job.size)?;
    Ok(worker(options.local_steps.unwrap_or(DEFAULT_LOCAL_STEPS), alpha))
}

/// The server's rule: answer with the centre, then move it.
///
/// ```
/// use esync::policy::easgd::{EasgdServer, alpha};
/// use esync::policy::{Coordinator, Directive, LocalSteps, Payload, PushRule, Reply, Report, Versions};
/// use std::time::Duration;
///
/// let mut server = EasgdServer::new(2, alpha(0.5, 2)?);
/// let directives = server.on(Duration::ZERO, 1, Report::Pushed {
///     payload: Payload::Parameters, local_steps: LocalSteps(10), samples: 320, loss: 2.3, seconds_since_push: 0.1,
///     compute_seconds: 0.1, base: Versions(0), norm: 7.0,
/// });
/// assert!(matches!(directives[0], Directive::Reply { to: 1, reply: Reply::Pull, .. }));
/// assert!(matches!(directives[1], Directive::Apply { from: 1, rule: PushRule::Elastic { alpha: 0.25 }, .. }));
/// # Ok::<(), esync::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct EasgdServer {
    alpha: f64,
    cluster: Cluster,
}

impl EasgdServer {
    /// For `size` workers, with the same α as theirs.
    pub fn new(size: usize, alpha: f64) -> Self {
        EasgdServer { alpha, cluster: Cluster::new(size) }
    }

    pub(super) fn from_options(options: &PolicyOptions, job: &Job) -> Result<Self> {
        let beta = options.elastic_beta.unwrap_or(DEFAULT_BETA);
        Ok(EasgdServer::new(job.size, alpha(beta, job.size)?))
    }
}

impl Coordinator for EasgdServer {
    fn on(&mut self, _now: Duration, from: Rank, report: Report) -> Vec<Directive> {
        if !self.cluster.is_live(from) {
            return Vec::new();
        }
        let alpha = self.alpha;
        let applied = match report {
            Report::Pushed { .. } => {
                self.cluster.apply(from, PushRule::Elastic { alpha }, ServerReason::Elastic { alpha })
            }
            other => return answer(from, &other),
        };
        vec![reply(from, Reply::Pull, ServerReason::Elastic { alpha }), applied]
    }

    fn lost(&mut self, _now: Duration, rank: Rank) -> Vec<Directive> {
        self.cluster.leave(rank);
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::testing::{at, push, words};
    use crate::policy::{Action, Payload, Replica, Store, WorkerEvent, WorkerPolicy};

    #[test]
    fn both_sides_move_by_the_difference_of_before() {
        let alpha = alpha(0.9, 3).unwrap();
        let mut server = EasgdServer::new(3, alpha);
        let mut policy = worker(2, alpha);
        let (mut x, mut centre) = ([1.0_f64, -2.0], [0.5_f64, 0.5]);
        let mut store = Store::new(&[0.5, 0.5], 2, 3).unwrap();
        let mut parameters = [1.0_f32, -2.0];
        let mut replica = Replica::new(&parameters, 2).unwrap();
        let stepped = || WorkerEvent::Stepped { step_seconds: 1.0, samples: 1, loss: 1.0 };
        policy.next(WorkerEvent::Started { rank: 1, step_seconds: [1.0; 3].into() });
        for _ in 0..3 {
            assert!(matches!(policy.next(stepped()).0, Action::Step { .. }));
            let (action, _) = policy.next(stepped());
            assert!(matches!(action, Action::Push { payload: Payload::Parameters, .. }), "{action:?}");
            let requested = replica.request();
            let mut pulled = Vec::new();
            for directive in server.on(at(1), 1, push(0)) {
                match directive {
                    Directive::Reply { to, .. } => pulled = store.pull(to).0.to_vec(),
                    Directive::Apply { from, rule, .. } => {
                        store.apply(from, Payload::Parameters, &parameters, rule, &mut |_| Ok(0.0)).unwrap();
                    }
                    other => panic!("{other:?}"),
                }
            }
            let Action::Pull { install } = policy.next(WorkerEvent::Replied(Reply::Pull)).0 else { panic!() };
            replica.install(requested, &mut parameters, &pulled, install).unwrap();
            policy.next(WorkerEvent::Pulled { version: store.version() });
            for (x, centre) in x.iter_mut().zip(&mut centre) {
                let d = alpha * (*x - *centre);
                (*x, *centre) = (*x - d, *centre + d);
            }
            for index in 0..2 {
                assert!((f64::from(parameters[index]) - x[index]).abs() < 1e-6);
                assert!((f64::from(store.parameters()[index]) - centre[index]).abs() < 1e-6);
            }
        }
    }

    #[test]
    fn nobody_waits_and_an_unstable_share_is_refused() {
        let mut server = EasgdServer::new(2, 0.1);
        assert_eq!(words(&server.on(at(1), 0, push(0))), "0: Pull, elastic 0");
        assert_eq!(words(&server.on(at(1), 0, push(1))), "0: Pull, elastic 0");
        assert_eq!(words(&server.lost(at(1), 1)), "");
        for beta in [0.0, -1.0, 1.5, f64::NAN] {
            assert!(alpha(beta, 4).unwrap_err().to_string().contains("--elastic-beta"));
        }
    }
}
