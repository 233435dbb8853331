//! One rank's run at a parameter server.

use super::report::Reporter;
use super::run::{
    Blueprint, End, Outcome, ServedEnd, Setup, conclude, prepare_out, print_first_lines, run_steps,
};
use super::supervisor::{MakeLearner, Supervisor, Verdict};
use super::watcher::Watcher;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::learner::{Memory, set_threads};
use crate::runtime::server::{Established, Finale, Rule, Service, establish};
use crate::runtime::{Activity, Stopwatch, Totals, Worker};
use std::sync::Arc;
use std::time::Duration;

/// Trains on this rank, or serves on it, or both. `server_samples` is what the server measures losses on.
pub(super) fn train(mut setup: Setup<'_>, blueprint: Blueprint, server_samples: Vec<u32>) -> Result<Outcome> {
    let (rank, workers) = (setup.communicator.rank(), setup.job.size);
    let options = setup.config.server_options();
    // On every rank, so that all refuse the same options alike.
    let coordinator = setup.mode.coordinator(&setup.policy, &setup.job)?;
    let coordinator = coordinator.ok_or_else(|| {
        Error::Internal(format!("mode `{}` has no rule for a parameter server", setup.mode.name))
    })?;
    let policy = setup.mode.worker(&setup.policy, &setup.job, rank.min(workers - 1))?;

    let (out, metrics) = prepare_out(setup.config, &mut setup.communicator)?;
    setup.communicator.broadcast(setup.learner.parameters(), 0)?;
    let parameters = setup.learner.parameters().to_vec();
    let trainable = setup.learner.layout().trainable;
    let config = setup.config;
    let rule = || {
        let threads = setup.threads;
        let make_learner: MakeLearner = Arc::new(move || {
            // Each thread that calls libtorch says how many it may use.
            set_threads(threads);
            blueprint.learner(Memory::Private, server_samples.clone(), &server_samples, 0)
        });
        let (limits, metrics) = (setup.limits.clone(), metrics.clone());
        let (progress, every, budget) = (config.progress, config.report_every.0, setup.limits.samples);
        let overseer = move |handle| -> Result<Box<dyn crate::runtime::server::Overseer>> {
            let reporter = Reporter::new(progress, every, true, budget);
            Ok(Box::new(Supervisor::new(limits, metrics, reporter, make_learner, workers, handle)?))
        };
        Ok(Rule { coordinator, overseer: Box::new(overseer) })
    };
    let Established { mut link, service } =
        establish(&mut setup.communicator, &options, &parameters, trainable, rule)?;
    drop(parameters);

    let reporter = Reporter::new(config.progress, config.report_every.0, false, None);
    let handle = service.as_ref().map(Service::handle);
    let mut watcher = Watcher::new(setup.limits.clone(), metrics, reporter, setup.signals.clone(), false)
        .beside(handle.clone());
    if rank == 0 {
        let plural = if options.servers == 1 { "" } else { "s" };
        let server = format!("{} {} parameter server{plural}", options.servers, options.placement);
        let dataset = &setup.dataset;
        let mode = setup.mode.name;
        print_first_lines(config, &setup.communicator, mode, Some(server), dataset, setup.threads, &out);
    }

    let mut learner = setup.learner;
    let mut communicator = setup.communicator;
    let (finale, clock, mut totals, worker_bytes);
    if rank < workers {
        let mut worker = Worker::served(policy, communicator, link, &mut learner)?;
        let step_seconds = setup.job.step_seconds.clone();
        let trained =
            run_steps(config, setup.rates.as_ref(), &mut worker, &mut learner, &mut watcher, step_seconds)
                .and_then(|()| worker.conclude_served(&mut learner));
        let trained = match trained {
            Ok(Some(finale)) => finale,
            Ok(None) => return Err(Error::Internal("a worker without its server".into())),
            Err(error) => return Err(cause(error, service)),
        };
        (clock, totals) = (worker.clock().clone(), worker.totals());
        (finale, worker_bytes) = (trained, Some(worker.served_bytes()));
        communicator = worker.into_communicator();
    } else {
        communicator.barrier()?;
        (clock, totals, worker_bytes) = (Stopwatch::start(Activity::Other), Totals::default(), None);
        watcher.metrics().start_clock();
        if let Some(handle) = &handle {
            handle.begin();
        }
        finale = match link.finale(None) {
            Ok(finale) => finale,
            Err(error) => return Err(cause(error, service)),
        };
        learner.parameters().copy_from_slice(&finale.parameters);
        drop(link);
    }
    let Finale { verdict, .. } = finale;
    let verdict: Verdict = serde_json::from_str(&verdict)
        .map_err(|e| Error::Internal(format!("the verdict of a run cannot be read: {e}")))?;
    let service_bytes = service.as_ref().map(Service::bytes);
    // All that it had to say has arrived: it ends now.
    service.map_or(Ok(()), Service::join)?;
    totals.global_samples = verdict.global_samples;
    watcher.adopt(&verdict);
    conclude(
        config,
        End {
            communicator,
            learner,
            watcher,
            clock,
            totals,
            mode: setup.mode.name,
            state_server: None,
            out,
            served: Some(ServedEnd { verdict, worker_bytes, service_bytes }),
            device: Device::Cpu.to_string(),
        },
    )
}

/// Where a server failed, workers only see it gone: the server's own error says more, and is to be said first.
fn cause(error: Error, service: Option<Service>) -> Error {
    if !error.is_secondary() {
        return error;
    }
    let failure = service.and_then(Service::failure);
    if failure.is_none() {
        std::thread::sleep(AFTER_YOU);
    }
    failure.unwrap_or(error)
}

/// A failed server's own rank speaks at once, and under MPI the first word ends the job.
const AFTER_YOU: Duration = Duration::from_millis(300);
