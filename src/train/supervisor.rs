//! What `esync-train` does at the head of a parameter server: budgets, evaluation beside training, metrics, progress.

use super::evaluate::Score;
use super::metrics::Metrics;
use super::report::{Line, Reporter};
use super::watcher::{Limits, SAMPLES, TARGET};
use crate::error::{Error, Result};
use crate::learner::Learner;
use crate::policy::{Directive, Versions};
use crate::runtime::server::{Due, Ending, Handle, Overseer, Progress, Snapshot, WorkerFigures};
use crate::transport::Rank;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

/// Makes a learner of the server's own: for the test set, and with its held-out samples.
pub(super) type MakeLearner = Arc<dyn Fn() -> Result<Box<dyn Learner>> + Send + Sync>;

/// What every rank is told at the end.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Verdict {
    /// Why all were stopped: a number of the watcher's.
    pub(super) stop: Option<u64>,
    /// From the beginning to the last worker's last word.
    pub(super) train_seconds: f64,
    /// When all were stopped.
    pub(super) stop_seconds: f64,
    /// The samples that were counted until then.
    pub(super) global_samples: u64,
    /// The snapshot that met the target, which is the result: its time and its score.
    pub(super) winner: Option<(f64, Score)>,
    /// Each worker's figures, in rank order.
    pub(super) workers: Vec<WorkerFigures>,
}

pub(super) struct Supervisor {
    limits: Arc<Limits>,
    metrics: Metrics,
    reporter: Reporter,
    make_learner: MakeLearner,
    /// For losses on held-out samples, made when first asked for.
    learner: Option<Box<dyn Learner>>,
    next_evaluation: u64,
    pushes: Vec<u64>,
    desk: Arc<Desk>,
    evaluator: Option<JoinHandle<Result<()>>>,
}

/// Where snapshots wait to be evaluated, one at a time: the newest replaces an older one that nobody has begun.
#[derive(Default)]
struct Desk {
    state: Mutex<DeskState>,
    changed: Condvar,
}

#[derive(Default)]
struct DeskState {
    snapshot: Option<Snapshot>,
    is_closed: bool,
    score: Option<Score>,
    winner: Option<(Snapshot, Score)>,
}

impl Desk {
    fn lock(&self) -> MutexGuard<'_, DeskState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, snapshot: Snapshot) {
        self.lock().snapshot = Some(snapshot);
        self.changed.notify_one();
    }

    fn close(&self) {
        let mut state = self.lock();
        state.is_closed = true;
        state.snapshot = None;
        self.changed.notify_one();
    }

    /// The next snapshot, or `None` when there will be no more.
    fn take(&self) -> Option<Snapshot> {
        let mut state = self.lock();
        loop {
            if let Some(snapshot) = state.snapshot.take() {
                return Some(snapshot);
            }
            if state.is_closed {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Supervisor {
    pub(super) fn new(
        limits: Arc<Limits>,
        metrics: Metrics,
        reporter: Reporter,
        make_learner: MakeLearner,
        workers: usize,
        handle: Handle,
    ) -> Result<Self> {
        let desk = Arc::new(Desk::default());
        let evaluator = Evaluator {
            desk: desk.clone(),
            limits: limits.clone(),
            metrics: metrics.clone(),
            make_learner: make_learner.clone(),
            handle,
        };
        let evaluator = std::thread::Builder::new()
            .name("evaluation".into())
            .spawn(move || evaluator.run())
            .map_err(|e| Error::Environment(format!("cannot start the thread of evaluations: {e}")))?;
        Ok(Supervisor {
            next_evaluation: limits.eval_every,
            limits,
            metrics,
            reporter,
            make_learner,
            learner: None,
            pushes: vec![0; workers],
            desk,
            evaluator: Some(evaluator),
        })
    }

    fn show(&mut self, progress: &Progress, loss: f64) {
        let accuracy = self.desk.lock().score.map(|score| score.accuracy);
        self.reporter.show(&Line {
            elapsed: progress.seconds,
            what: "push",
            number: progress.pushes,
            loss,
            accuracy,
            global_samples: progress.global_samples,
            counts: ("pushes", &self.pushes),
            wait_share: None,
            exchange_seconds: None,
        });
    }
}

impl Overseer for Supervisor {
    fn decided(&mut self, directive: &Directive, version: Versions) -> Result<()> {
        let (action, rank, reason) = match directive {
            Directive::Reply { to, reason, .. } => ("reply", Some(*to), reason.to_string()),
            Directive::Apply { from, reason, .. } => ("apply", Some(*from), reason.to_string()),
            Directive::Publish { reason } => ("publish", None, reason.to_string()),
            Directive::Evaluate => ("evaluate", None, "the rule goes by the loss of the parameters".into()),
        };
        let mut fields = json!({ "by": "server", "action": action, "reason": reason, "version": version.0 });
        if let Some(rank) = rank {
            fields["worker"] = rank.into();
        }
        match directive {
            Directive::Reply { reply, .. } => fields["reply"] = json!(reply),
            Directive::Apply { rule, .. } => fields["rule"] = json!(rule),
            _ => {}
        }
        self.metrics.event("decision", fields)
    }

    fn told(&mut self, progress: &Progress) -> Result<Due> {
        if let Some(loss) = progress.pushed_loss {
            self.pushes[progress.from] += 1;
            self.show(progress, loss);
        }
        let spent = self.limits.samples.is_some_and(|limit| progress.global_samples >= limit);
        let snapshot = progress.global_samples >= self.next_evaluation && !spent;
        if snapshot {
            let every = self.limits.eval_every;
            self.next_evaluation = (progress.global_samples / every + 1) * every;
        }
        Ok(Due { stop: spent.then_some(SAMPLES), snapshot })
    }

    fn snapshot(&mut self, snapshot: Snapshot) -> Result<()> {
        if self.evaluator.as_ref().is_some_and(JoinHandle::is_finished)
            && let Some(evaluator) = self.evaluator.take()
        {
            join(evaluator)?;
        }
        self.desk.put(snapshot);
        Ok(())
    }

    fn loss(&mut self, parameters: &[f32]) -> Result<f64> {
        let learner = match &mut self.learner {
            Some(learner) => learner,
            none => none.insert((self.make_learner)()?),
        };
        learner.parameters().copy_from_slice(parameters);
        Ok(learner.held_out()?.loss())
    }

    fn lost(&mut self, rank: Rank, why: &str) {
        // A full disk is reported by the next event that can return an error.
        let text = format!("rank {rank} was lost, and the others go on: {why}");
        let _ = self.metrics.event("warning", json!({ "text": text }));
    }

    fn finish(&mut self, ending: Ending) -> Result<(String, Vec<f32>)> {
        self.desk.close();
        self.evaluator.take().map_or(Ok(()), join)?;
        self.reporter.finish();
        let winner = self.desk.lock().winner.take();
        let verdict = Verdict {
            stop: winner.as_ref().map(|_| TARGET).or(ending.stop),
            train_seconds: ending.last.seconds,
            stop_seconds: ending.stop_seconds,
            global_samples: ending.last.global_samples,
            winner: winner.as_ref().map(|(snapshot, score)| (snapshot.seconds, *score)),
            workers: ending.workers,
        };
        let text = serde_json::to_string(&verdict)
            .map_err(|e| Error::Internal(format!("the verdict of a run cannot be sent: {e}")))?;
        // The parameters that met the target are the result, not those of the pushes that came in meanwhile.
        Ok((text, winner.map_or(ending.last.parameters, |(snapshot, _)| snapshot.parameters)))
    }
}

/// A server that fails leaves no thread behind.
impl Drop for Supervisor {
    fn drop(&mut self) {
        self.desk.close();
    }
}

fn join(evaluator: JoinHandle<Result<()>>) -> Result<()> {
    let panicked = |_| Err(Error::Training("the evaluation beside training panicked".into()));
    evaluator.join().unwrap_or_else(panicked)
}

/// Evaluates snapshots on a thread of its own, while training goes on.
struct Evaluator {
    desk: Arc<Desk>,
    limits: Arc<Limits>,
    metrics: Metrics,
    make_learner: MakeLearner,
    handle: Handle,
}

impl Evaluator {
    fn run(mut self) -> Result<()> {
        let result = self.evaluate_all();
        if result.is_err() {
            // The supervisor returns the error when all have stopped.
            self.handle.stop(TARGET);
        }
        result
    }

    fn evaluate_all(&mut self) -> Result<()> {
        let mut learner = None;
        while let Some(snapshot) = self.desk.take() {
            let learner: &mut Box<dyn Learner> = match &mut learner {
                Some(learner) => learner,
                none => none.insert((self.make_learner)()?),
            };
            let since = Instant::now();
            learner.parameters().copy_from_slice(&snapshot.parameters);
            let whole = learner.evaluate(0, 1)?;
            let score = Score { accuracy: whole.accuracy(), loss: whole.loss() };
            self.metrics.event(
                "evaluate",
                json!({
                    "accuracy": score.accuracy,
                    "loss": score.loss,
                    "global_samples": snapshot.global_samples,
                    "version": snapshot.version.0,
                    "train_seconds": snapshot.seconds,
                    "evaluate_seconds": since.elapsed().as_secs_f64(),
                }),
            )?;
            if !score.loss.is_finite() {
                return Err(Error::Diverged { rank: 0, step: snapshot.version.0, loss: score.loss });
            }
            let mut state = self.desk.lock();
            state.score = Some(score);
            if self.limits.meets_target(&score) {
                state.winner = Some((snapshot, score));
                drop(state);
                self.handle.stop(TARGET);
                return Ok(());
            }
        }
        Ok(())
    }
}
