//! The state server.

use super::{Row, Settings, decide};
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
    rows: Vec<Row>,
    settings: Settings,
}

impl EsyncCoordinator {
    /// For `size` workers, whose speeds are not known yet: until a worker has reported, nobody works on for its sake.
    pub fn new(size: usize, settings: Settings) -> Self {
        EsyncCoordinator { rows: vec![Row::default(); size], settings }
    }

    /// With the seconds that every rank needed for a full step before training, in rank order.
    pub fn with_step_seconds(mut self, step_seconds: &[f64]) -> Self {
        for (row, &seconds) in self.rows.iter_mut().zip(step_seconds) {
            *row = Row::new(seconds);
        }
        self
    }

    /// What is known of every worker, in rank order.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }
}

impl Coordinator for EsyncCoordinator {
    fn on(&mut self, now: Duration, from: Rank, report: Report) -> Vec<Directive> {
        let Some(row) = self.rows.get_mut(from) else {
            return Vec::new();
        };
        if !row.update(now, &report) {
            if matches!(report, Report::GlobalLoss { .. }) {
                return Vec::new();
            }
            let reason = Reason::Custom("the state server decides about steps only".into());
            return vec![Directive::Reply { to: from, reply: Reply::Continue, reason }];
        }
        let (reply, reason) = decide(&self.rows, from, now, &self.settings);
        self.rows[from].decided_sync = reply == Reply::Synchronize;
        vec![Directive::Reply { to: from, reply, reason }]
    }

    /// Nobody is ever held, so nobody needs an answer.
    fn lost(&mut self, _now: Duration, rank: Rank) -> Vec<Directive> {
        if let Some(row) = self.rows.get_mut(rank) {
            row.gone = true;
        }
        Vec::new()
    }
}
