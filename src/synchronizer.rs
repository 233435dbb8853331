//! For other people's training loops.

use crate::collective::{Communicator, Member};
use crate::error::{Error, Result};
use crate::learner::{FlatStore, Memory};
use crate::policy::esync::{EsyncWorker, Planning, Settings};
use crate::policy::sync::SyncWorker;
use crate::policy::{Outer, Update, Weighting, WorkerPolicy};
use crate::reduce::WireFormat;
use crate::runtime::{
    Activity, ExchangeOptions, ExchangeReport, Mechanism, Next, Observed, Observer, Step, Stopwatch, Totals,
    Worker, establish,
};
use std::sync::Arc;
use tch::nn::VarStore;

/// When workers exchange.
#[derive(Debug, Clone, PartialEq)]
pub enum Mode {
    /// As many local steps as fit before the slowest worker is done.
    Esync(Settings),
    /// After every step. The optimiser has taken it already, so that *deltas* are averaged where `esync-train --mode sync`
    /// averages gradients: the same for plain SGD, while momentum and Adam build their state from the worker's own gradients.
    Sync,
}

/// How a [`Synchronizer`] works.
#[derive(Debug, Clone, PartialEq)]
pub struct SynchronizerOptions {
    /// When workers exchange.
    pub mode: Mode,
    /// How deltas are weighed. `Shard` needs [`shard_samples`](Self::shard_samples).
    pub weighting: Weighting,
    /// How their mean is applied.
    pub outer: Outer,
    /// The learning rate of the exchange.
    pub global_learning_rate: f64,
    /// The samples of this worker's shard, for the weighting `Shard`.
    pub shard_samples: u64,
    /// All workers stop at the first exchange after this many samples in all.
    pub max_samples: Option<u64>,
}

impl Default for SynchronizerOptions {
    fn default() -> Self {
        SynchronizerOptions {
            mode: Mode::Esync(Settings::default()),
            weighting: Weighting::Uniform,
            outer: Outer::Sgd,
            global_learning_rate: 1.0,
            shard_samples: 0,
            max_samples: None,
        }
    }
}

/// What [`Synchronizer::step_done`] did.
#[derive(Debug, Clone, PartialEq)]
pub enum Synchronized {
    /// Nothing: do another step.
    NotYet,
    /// An exchange: the model's parameters are new, and the same on all ranks.
    Exchanged {
        /// Samples of all ranks so far.
        global_samples: u64,
        /// Mean training loss over all samples of the round.
        loss: f64,
    },
    /// The last exchange: all ranks stop here.
    Stop,
}

/// Synchronises a model between ranks. The loop stays yours: any model in a [`VarStore`], any optimiser.
///
/// After each step of the optimiser, call [`step_done`](Self::step_done): it decides, exchanges, weighs, and puts the new
/// parameters in place. Every rank must go on calling it until it answers [`Synchronized::Stop`].
///
/// Parameters of several floating-point types are exchanged by type; variables of other types stay each rank's own. All ranks
/// begin with rank 0's parameters. Variables that need no gradient (running means and variances) are averaged by value.
///
/// ```
/// use esync::collective::{Communicator, CommunicatorOptions};
/// use esync::{Synchronized, Synchronizer, SynchronizerOptions, transport::threads};
/// use std::sync::Arc;
/// use tch::{Device, Kind, Tensor, nn, nn::Module, nn::OptimizerConfig};
///
/// let weights = threads::run(2, |transport| {
///     let communicator = Communicator::new(Arc::new(transport), CommunicatorOptions::default())?;
///     let rank = communicator.rank() as f64;
///     let mut variables = nn::VarStore::new(Device::Cpu);
///     let model = nn::linear(variables.root(), 1, 1, Default::default());
///     let mut optimizer = nn::Adam::default().build(&variables, 0.05).unwrap();
///
///     let options = SynchronizerOptions { max_samples: Some(6400), ..SynchronizerOptions::default() };
///     let mut synchronizer = Synchronizer::new(&mut variables, communicator, options)?;
///     // Both ranks learn y = 3x, each from its own half of the line.
///     let x = (Tensor::arange(16, (Kind::Float, Device::Cpu)) / 16.0 - rank).view([16, 1]);
///     loop {
///         let loss = (model.forward(&x) - &x * 3.0).square().mean(Kind::Float);
///         optimizer.backward_step(&loss);
///         if synchronizer.step_done(16, loss.double_value(&[]))? == Synchronized::Stop {
///             return Ok(model.ws.double_value(&[0, 0]));
///         }
///     }
/// });
/// for weight in weights {
///     assert!((weight? - 3.0).abs() < 0.3);
/// }
/// # Ok::<(), esync::Error>(())
/// ```
pub struct Synchronizer {
    store: FlatStore,
    worker: Worker,
    watcher: Watcher,
    update: Update,
}

/// Remembers the last exchange, and stops at the budget.
struct Watcher {
    max_samples: Option<u64>,
    stop: bool,
    last: Option<(u64, f64)>,
}

impl Observer<FlatStore> for Watcher {
    fn stop_wish(&mut self) -> u64 {
        u64::from(self.stop)
    }

    fn exchanged(&mut self, report: &ExchangeReport, observed: Observed<'_, FlatStore>) -> Result<bool> {
        let global_samples = observed.totals.global_samples;
        self.last = Some((global_samples, report.mean_loss()));
        Ok(report.stop_wish != 0 || self.max_samples.is_some_and(|limit| global_samples >= limit))
    }
}

impl Synchronizer {
    /// Takes over the memory of `variables` (see [`FlatStore`]) and begins. Every rank must call it, with the same model.
    ///
    /// Make the optimiser before or after, as you like: variables keep their identity.
    ///
    /// # Errors
    /// `Environment` if the store has nothing to exchange or is not on the CPU; those of the communicator, `Mismatch` if the
    /// ranks' models differ among them.
    pub fn new(
        variables: &mut VarStore,
        mut communicator: Communicator,
        options: SynchronizerOptions,
    ) -> Result<Synchronizer> {
        let mut store = FlatStore::adopt_in(variables, Memory::Shared(&communicator))?;
        let own = Member { samples: options.shard_samples, ..Member::default() };
        let shard_samples: Vec<u64> = communicator.gather(own)?.members.iter().map(|m| m.samples).collect();
        if options.weighting == Weighting::Shard && shard_samples.iter().sum::<u64>() == 0 {
            return Err(Error::Usage("the weighting `shard` needs shard_samples".into()));
        }
        // Nothing is measured yet: the first round is one step each.
        let step_seconds: Arc<[f64]> = vec![0.0; communicator.size()].into();
        let (policy, state_server): (Box<dyn WorkerPolicy>, _) = match &options.mode {
            Mode::Sync => (Box::new(SyncWorker::averaging_deltas()), None),
            Mode::Esync(settings) => {
                let established = establish(&mut communicator, settings, &step_seconds, Mechanism::Auto)?;
                let planning =
                    if established.state_server.is_some() { Planning::StateServer } else { Planning::Ahead };
                (
                    Box::new(EsyncWorker::new(Settings { planning, ..settings.clone() })),
                    established.state_server,
                )
            }
        };
        let wire = communicator.options().wire;
        let exchange = ExchangeOptions {
            weighting: options.weighting,
            outer: options.outer,
            global_learning_rate: options.global_learning_rate,
            shard_samples,
            fragments: None,
            error_feedback: wire == WireFormat::Int8,
        };
        let mut worker = Worker::new(policy, communicator, state_server, exchange, &mut store)?;
        let mut watcher = Watcher { max_samples: options.max_samples, stop: false, last: None };
        let Next::Step { update } = worker.begin(step_seconds, &mut store, &mut watcher)? else {
            return Err(Error::Internal("a policy stopped before its first step".into()));
        };
        worker.clock().switch(Activity::Compute);
        Ok(Synchronizer { store, worker, watcher, update })
    }

    /// To be called after each step of the optimiser, with the step's samples and its mean training loss. The step's time is
    /// taken from the last call's return to this call.
    ///
    /// # Errors
    /// `Diverged` if a rank's loss is not a number; `Mismatch`, `Stalled`, `PeerLost`; `Usage` if called after the end.
    pub fn step_done(&mut self, samples: usize, loss: f64) -> Result<Synchronized> {
        if self.worker.is_stopped() {
            return Err(Error::Usage("step_done was called after it had answered Stop".into()));
        }
        let seconds = self.worker.clock().switch(Activity::Other);
        let exchanges = self.worker.totals().exchanges;
        let step = Step { seconds, samples, loss };
        let next = self.worker.stepped(step, self.update, &mut self.store, &mut self.watcher)?;
        match next {
            Next::Stop => return Ok(Synchronized::Stop),
            Next::Step { update } => self.update = update,
        }
        self.worker.clock().switch(Activity::Compute);
        match self.watcher.last {
            Some((global_samples, loss)) if self.worker.totals().exchanges > exchanges => {
                Ok(Synchronized::Exchanged { global_samples, loss })
            }
            _ => Ok(Synchronized::NotYet),
        }
    }

    /// Asks all ranks to stop at the next exchange; go on calling [`step_done`](Self::step_done) until it says so.
    pub fn request_stop(&mut self) {
        self.watcher.stop = true;
    }

    /// What was done so far.
    pub fn totals(&self) -> Totals {
        self.worker.totals()
    }

    /// Where this rank's time went.
    pub fn clock(&mut self) -> &Stopwatch {
        self.worker.clock()
    }

    /// The communicator, for collectives of your own (all ranks must call them at the same point).
    pub fn communicator(&mut self) -> &mut Communicator {
        self.worker.communicator()
    }
}
