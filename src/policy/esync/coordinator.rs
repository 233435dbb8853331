//! The state server.

use super::index::Index;
use super::{Row, Settings};
use crate::policy::{Coordinator, Directive, Reason, Reply, Report};
use crate::transport::Rank;
use std::time::Duration;

/// ESync's state server: keeps a [`Row`] of every worker, and answers every report at once.
///
/// ```
/// use esync::policy::esync::{EsyncCoordinator, Settings};
/// use esync::policy::{Coordinator, Directive, LocalSteps, Reply, Report};
/// use std::time::Duration;
///
/// let mut server = EsyncCoordinator::new(2, Settings::default()).with_step_seconds(&[0.1, 0.4]);
/// let report = Report::Stepped {
///     round: 0,
///     local_steps: LocalSteps(1),
///     step_seconds: 0.1,
///     low_step_seconds: 0.1,
///     transfer_seconds: 0.0,
///     round_seconds: 0.1,
/// };
/// let answer = server.on(Duration::from_millis(100), 0, report);
/// assert!(matches!(answer[..], [Directive::Reply { to: 0, reply: Reply::Train, .. }]));
/// ```
#[derive(Debug, Clone)]
pub struct EsyncCoordinator {
    table: Index,
    settings: Settings,
}

impl EsyncCoordinator {
    /// For `size` workers, whose speeds are not known yet: until a worker has reported, nobody works on for its sake.
    pub fn new(size: usize, settings: Settings) -> Self {
        EsyncCoordinator { table: Index::new(vec![Row::default(); size]), settings }
    }

    /// With the seconds that every rank needed for a full step before training, in rank order.
    pub fn with_step_seconds(mut self, step_seconds: &[f64]) -> Self {
        let mut rows = self.table.rows().to_vec();
        for (row, &seconds) in rows.iter_mut().zip(step_seconds) {
            *row = Row::new(seconds);
        }
        self.table = Index::new(rows);
        self
    }

    /// What is known of every worker, in rank order.
    pub fn rows(&self) -> &[Row] {
        self.table.rows()
    }
}

impl Coordinator for EsyncCoordinator {
    fn on(&mut self, now: Duration, from: Rank, report: Report) -> Vec<Directive> {
        if from >= self.table.rows().len() {
            return Vec::new();
        }
        if !self.table.update(now, from, &report) {
            if matches!(report, Report::GlobalLoss { .. }) {
                return Vec::new();
            }
            let reason = Reason::Custom("the state server decides about steps only".into());
            return vec![Directive::Reply { to: from, reply: Reply::Continue, reason }];
        }
        let (reply, reason) = self.table.decide(from, now, &self.settings);
        vec![Directive::Reply { to: from, reply, reason }]
    }

    /// Nobody is ever held, so nobody needs an answer.
    fn lost(&mut self, _now: Duration, rank: Rank) -> Vec<Directive> {
        self.table.leave(rank);
        Vec::new()
    }
}
