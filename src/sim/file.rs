//! The cluster file: a topology file that says how its workers behave.

use super::cluster::{ServerPlace, SimCluster};
use super::step_time::{Jitter, MOST_SECONDS, Pause, StepSeconds, WorkerBehaviour};
use crate::cluster::{BehaviourEntry, Cluster, PauseEntry};
use crate::error::{Error, Result};
use std::path::Path;
use std::sync::Arc;

impl SimCluster {
    /// A cluster by its name (one of [`CLUSTER_NAMES`](super::CLUSTER_NAMES)), or from a file.
    ///
    /// # Errors
    /// `Usage` with the line for a file that cannot be used, and with the names for one that does not exist.
    pub fn find(name: &str) -> Result<SimCluster> {
        if let Some(text) = super::builtin::text_of(name) {
            return SimCluster::parse(text, Path::new(name));
        }
        let path = Path::new(name);
        let text = std::fs::read_to_string(path).map_err(|error| {
            let names = super::CLUSTER_NAMES.join(", ");
            Error::Usage(format!("--cluster {name}: {error}; give a file, or one of: {names}"))
        })?;
        SimCluster::parse(&text, path)
    }

    /// Understands the text of a cluster file; `path` is for errors, and where trace files are looked for.
    ///
    /// A cluster file is a topology file with these keys more: `[[workers]]` (for the next `count` ranks, or for `ranks`), with
    /// one of `step_seconds` (to `step_seconds_to`, in equal ratios), `trace` and `trace_file`, and `jitter`, `pauses`,
    /// `dies_at_seconds` and `memory_bytes`; `[server]` with `latency_seconds`, `bandwidth_bytes_per_second` and
    /// `card_bandwidth_bytes_per_second`; [`exchange_seconds`](SimCluster::exchange_seconds) and
    /// [`model_bytes`](SimCluster::model_bytes).
    ///
    /// ```
    /// let text = r#"
    /// version = 1
    /// [[hosts]]
    /// name = "a"
    /// ranks = 3
    /// cores = 4
    /// reduce_seconds_per_byte = 1e-10
    ///
    /// [[links]]
    /// hosts = "same"
    /// latency_seconds = 1e-5
    /// bandwidth_bytes_per_second = 1e9
    ///
    /// [[workers]]
    /// count = 2
    /// step_seconds = 0.1
    /// jitter = "normal:0.05"
    ///
    /// [[workers]]
    /// ranks = [2]
    /// step_seconds = 0.3
    /// pauses = [{ at_seconds = 10.0, seconds = 5.0 }]
    /// "#;
    /// let cluster = esync::sim::SimCluster::parse(text, "cluster.toml".as_ref())?;
    /// assert_eq!(cluster.size(), 3);
    /// # Ok::<(), esync::Error>(())
    /// ```
    ///
    /// # Errors
    /// `Usage` with the line.
    pub fn parse(text: &str, path: &Path) -> Result<SimCluster> {
        let wrong = |what: String| Error::Usage(format!("{}: {what}", path.display()));
        let network = Cluster::parse(text, path).map_err(|error| match error {
            Error::Data { what, .. } => wrong(what),
            other => other,
        })?;
        let mut workers: Vec<Option<WorkerBehaviour>> =
            network.workers.iter().map(|worker| worker.step_seconds.map(WorkerBehaviour::constant)).collect();
        let mut next = 0;
        for (line, entry) in &network.simulated.workers {
            let at = format!("line {line}: workers");
            let ranks: Vec<usize> = match (&entry.ranks, entry.count) {
                (Some(ranks), None) => ranks.clone(),
                (None, Some(count)) => (next..next + count).collect(),
                _ => return Err(wrong(format!("{at}: give one of `ranks` and `count`"))),
            };
            for (place, &rank) in ranks.iter().enumerate() {
                let Some(worker) = workers.get_mut(rank) else {
                    let last = network.workers.len() - 1;
                    return Err(wrong(format!("{at}: there is no rank {rank}, only 0 to {last}")));
                };
                let behaviour = behaviour(entry, place, ranks.len(), worker.as_ref(), path)
                    .map_err(|what| wrong(format!("{at}: {what}")))?;
                behaviour.check(&format!("{}: {at}", path.display()))?;
                *worker = Some(behaviour);
                next = rank + 1;
            }
        }
        let missing = workers.iter().position(Option::is_none);
        if let Some(rank) = missing {
            return Err(wrong(format!(
                "nothing says how long the steps of rank {rank} take: write step_seconds for its host or in [[workers]]"
            )));
        }
        let server = ServerPlace {
            link: network.simulated.server_link,
            card_seconds_per_byte: network.simulated.server_card_seconds_per_byte,
        };
        let exchange_seconds = network.simulated.exchange_seconds;
        let model_bytes = network.simulated.model_bytes;
        let cluster = SimCluster {
            workers: workers.into_iter().flatten().collect(),
            server,
            exchange_seconds,
            model_bytes,
            network,
        };
        cluster.check().map_err(|error| wrong(error.to_string()))?;
        Ok(cluster)
    }

    /// The same with all step times multiplied by `factor`.
    ///
    /// # Errors
    /// `Usage` if a step would become absurd.
    pub fn scaled(mut self, factor: f64) -> Result<SimCluster> {
        if !(factor > 0.0 && factor.is_finite()) {
            return Err(Error::Usage(format!("steps cannot be scaled by {factor}; give a positive number")));
        }
        for worker in &mut self.workers {
            worker.step_seconds = match &worker.step_seconds {
                StepSeconds::Constant(seconds) => StepSeconds::Constant(factor * seconds),
                StepSeconds::Trace(trace) => {
                    StepSeconds::Trace(trace.iter().map(|seconds| factor * seconds).collect())
                }
            };
        }
        self.check()?;
        Ok(self)
    }
}

/// Worker number `place` of the `count` of an entry; `known` is what its host, or an earlier entry, says.
fn behaviour(
    entry: &BehaviourEntry,
    place: usize,
    count: usize,
    known: Option<&WorkerBehaviour>,
    path: &Path,
) -> Result<WorkerBehaviour, String> {
    let step_seconds = match (entry.step_seconds, &entry.trace, &entry.trace_file) {
        (Some(from), None, None) => {
            if let Some(to) = entry.step_seconds_to.filter(|to| !(*to > 0.0 && *to <= MOST_SECONDS)) {
                return Err(format!(
                    "step_seconds_to is {to}; it must be above 0 and at most {MOST_SECONDS}"
                ));
            }
            let to = entry.step_seconds_to.unwrap_or(from);
            let share = place as f64 / count.saturating_sub(1).max(1) as f64;
            Some(StepSeconds::Constant(if to == from { from } else { from * (to / from).powf(share) }))
        }
        (None, Some(trace), None) => Some(StepSeconds::Trace(trace.as_slice().into())),
        (None, None, Some(file)) => Some(StepSeconds::Trace(read_trace(path, file)?)),
        (None, None, None) => None,
        _ => return Err("give one of step_seconds, trace and trace_file".into()),
    };
    let known_steps = known.map(|known| known.step_seconds.clone());
    let Some(step_seconds) = step_seconds.or(known_steps) else {
        return Err("give step_seconds, trace or trace_file".into());
    };
    let jitter = match &entry.jitter {
        Some(text) => jitter(text)?,
        None => known.map_or(Jitter::None, |known| known.jitter),
    };
    let pause = |pause: &PauseEntry| Pause { at_seconds: pause.at_seconds, seconds: pause.seconds };
    Ok(WorkerBehaviour {
        step_seconds,
        jitter,
        pauses: entry.pauses.iter().map(pause).collect(),
        dies_at_seconds: entry.dies_at_seconds,
        memory_bytes: entry.memory_bytes,
    })
}

fn jitter(text: &str) -> Result<Jitter, String> {
    let wrong = || format!("`{text}` is no jitter: write uniform:0.1, normal:0.1 or log-normal:0.3");
    let (kind, size) = text.split_once(':').ok_or_else(wrong)?;
    let size: f64 = size.trim().parse().map_err(|_| wrong())?;
    match kind {
        "uniform" => Ok(Jitter::Uniform { share: size }),
        "normal" => Ok(Jitter::Normal { share: size }),
        "log-normal" => Ok(Jitter::LogNormal { sigma: size }),
        _ => Err(wrong()),
    }
}

/// Numbers between white space or commas.
fn read_trace(cluster_file: &Path, file: &Path) -> Result<Arc<[f64]>, String> {
    let path = cluster_file.parent().unwrap_or(Path::new("")).join(file);
    let text = std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let mut trace = Vec::new();
    for (number, line) in text.lines().enumerate() {
        for word in line.split([',', ' ', '\t', ';']).filter(|word| !word.is_empty()) {
            let seconds = word.parse().map_err(|_| {
                format!("{}: line {}: `{word}` is no number of seconds", path.display(), number + 1)
            })?;
            trace.push(seconds);
        }
    }
    Ok(trace.into())
}
