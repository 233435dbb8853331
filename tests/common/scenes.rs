//! Random small clusters for property tests.
#![allow(dead_code, reason = "each test program uses its own part")]

use esync::cluster::Link;
use esync::policy::{Mode, Scheme};
use esync::sim::{Jitter, Pause, SimCluster};
use proptest::prelude::*;
use std::ops::Range;

/// Step times, jitter, latency, a pause and perhaps a death.
#[derive(Debug, Clone)]
pub(crate) struct Scene {
    pub(crate) steps: Vec<f64>,
    pub(crate) jitter: f64,
    pub(crate) latency: f64,
    /// Who, from when, for how long.
    pub(crate) pause: (usize, f64, f64),
    /// Who, and when.
    pub(crate) death: Option<(usize, f64)>,
}

/// Clusters of so many workers, whose steps take so many seconds.
pub(crate) fn scenes(workers: Range<usize>, seconds: Range<f64>) -> impl Strategy<Value = Scene> {
    let steps = prop::collection::vec(seconds, workers);
    let pause = (0..6_usize, 0.0..10.0_f64, 0.0..5.0_f64);
    let death = prop::option::of((0..6_usize, 0.0..20.0_f64));
    (steps, 0.0..0.4_f64, prop_oneof![Just(0.0), 0.0..0.5_f64], pause, death)
        .prop_map(|(steps, jitter, latency, pause, death)| Scene { steps, jitter, latency, pause, death })
}

impl Scene {
    /// The same in which nobody dies.
    pub(crate) fn without_death(self) -> Scene {
        Scene { death: None, ..self }
    }

    /// The same without jitter and pause as well.
    pub(crate) fn steady(self) -> Scene {
        Scene { jitter: 0.0, pause: (0, 0.0, 0.0), ..self.without_death() }
    }

    /// Of these workers; of the first alone for a mode that is for one.
    pub(crate) fn cluster(&self, mode: Mode) -> SimCluster {
        let steps = if mode.scheme == Scheme::Alone { &self.steps[..1] } else { &self.steps[..] };
        let size = steps.len();
        let link = Link {
            latency_seconds: self.latency,
            message_seconds: 0.0,
            seconds_per_byte: self.latency / 1e3,
        };
        let mut cluster = SimCluster::of_steps(steps).with_link(link);
        cluster.workers.iter_mut().for_each(|worker| worker.jitter = Jitter::Uniform { share: self.jitter });
        let (rank, at_seconds, seconds) = self.pause;
        cluster.workers[rank % size].pauses.push(Pause { at_seconds, seconds });
        if let Some((rank, at)) = self.death.filter(|_| size > 1) {
            cluster.workers[rank % size].dies_at_seconds = Some(at);
        }
        cluster
    }
}
