//! The state server's table where many workers ask: the questions of a decision without looking at every row.

use super::table::Table;
use super::{Row, Settings};
use crate::policy::{Reason, Reply, Report};
use crate::transport::Rank;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Rows, and sorted sets of what decisions ask about them. A row changes in O(log n); a decision takes O(r log n), where r is
/// how many rounds lie between the workers, hardly ever more than two.
#[derive(Debug, Clone, Default)]
pub(super) struct Index {
    rows: Vec<Row>,
    /// How many are present.
    present: usize,
    /// Those present, by the round of which they owe the first step: the slowest first, of equals the lowest rank.
    by_owed_round: BTreeMap<u64, BTreeSet<(Reverse<u64>, Rank)>>,
    /// Those present whose speed nobody knows.
    not_measured: BTreeSet<Rank>,
    /// Those present that have reported from a round: when they began it.
    begun: BTreeMap<u64, BTreeSet<(Duration, Rank)>>,
}

impl Index {
    pub(super) fn new(rows: Vec<Row>) -> Self {
        let mut index = Index { rows, ..Index::default() };
        (0..index.rows.len()).for_each(|rank| index.insert(rank));
        index
    }

    pub(super) fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// Takes in a report, as [`Row::update`].
    pub(super) fn update(&mut self, now: Duration, rank: Rank, report: &Report) -> bool {
        self.change(rank, |row| row.update(now, report)).unwrap_or(false)
    }

    /// The decision for `me`, which is noted in its row.
    pub(super) fn decide(&mut self, me: Rank, now: Duration, settings: &Settings) -> (Reply, Reason) {
        let (reply, reason) = super::table::decide_over(self, me, now, settings);
        let decided_sync = reply == Reply::Synchronize;
        self.change(me, |row| row.decided_sync = decided_sync);
        (reply, reason)
    }

    pub(super) fn leave(&mut self, rank: Rank) {
        self.change(rank, |row| row.gone = true);
    }

    fn change<R>(&mut self, rank: Rank, change: impl FnOnce(&mut Row) -> R) -> Option<R> {
        let before = *self.rows.get(rank)?;
        let mut after = before;
        let result = change(&mut after);
        // Most steps change only how many there were.
        if keys(&before) == keys(&after) {
            self.rows[rank] = after;
        } else {
            self.remove(rank);
            self.rows[rank] = after;
            self.insert(rank);
        }
        Some(result)
    }

    fn insert(&mut self, rank: Rank) {
        let Some(keys) = keys(&self.rows[rank]) else { return };
        self.present += 1;
        self.by_owed_round.entry(keys.owed_round).or_default().insert((keys.seconds, rank));
        if !self.rows[rank].is_measured() {
            self.not_measured.insert(rank);
        }
        if let Some((round, began)) = keys.begun {
            self.begun.entry(round).or_default().insert((began, rank));
        }
    }

    fn remove(&mut self, rank: Rank) {
        let Some(keys) = keys(&self.rows[rank]) else { return };
        self.present -= 1;
        take(&mut self.by_owed_round, keys.owed_round, &(keys.seconds, rank));
        self.not_measured.remove(&rank);
        if let Some((round, began)) = keys.begun {
            take(&mut self.begun, round, &(began, rank));
        }
    }
}

/// Where a row stands in the sets.
#[derive(PartialEq)]
struct Keys {
    owed_round: u64,
    /// The bits of what is not negative sort as the numbers do.
    seconds: Reverse<u64>,
    begun: Option<(u64, Duration)>,
}

/// `None` for a worker that is gone.
fn keys(row: &Row) -> Option<Keys> {
    let seconds = if row.is_measured() { row.step_seconds } else { 0.0 };
    (!row.gone).then(|| Keys {
        owed_round: row.owed_round(),
        seconds: Reverse(seconds.to_bits()),
        begun: (row.local_steps > 0).then_some((row.round, row.began)),
    })
}

fn take<T: Ord>(sets: &mut BTreeMap<u64, BTreeSet<T>>, round: u64, item: &T) {
    if let Some(set) = sets.get_mut(&round) {
        set.remove(item);
        if set.is_empty() {
            sets.remove(&round);
        }
    }
}

/// The slowest of several sets' slowest.
fn slowest<'a>(
    sets: impl Iterator<Item = &'a BTreeSet<(Reverse<u64>, Rank)>>,
    left_out: Option<Rank>,
) -> Option<(Rank, f64)> {
    let firsts = sets.filter_map(|set| set.iter().find(|(_, rank)| Some(*rank) != left_out));
    firsts.min().map(|&(Reverse(bits), rank)| (rank, f64::from_bits(bits)))
}

impl Table for Index {
    fn row(&self, rank: Rank) -> Option<&Row> {
        self.rows.get(rank)
    }

    fn has_others(&self, me: Rank) -> bool {
        let own = usize::from(self.rows.get(me).is_some_and(|row| !row.gone));
        self.present > own
    }

    fn slowest(&self) -> Option<(Rank, f64)> {
        slowest(self.by_owed_round.values(), None)
    }

    fn slowest_pending(&self, round: u64, me: Rank) -> Option<(Rank, f64)> {
        slowest(self.by_owed_round.range(..=round).map(|(_, set)| set), Some(me))
    }

    fn not_measured(&self, round: u64, me: Rank) -> Option<Rank> {
        let pending = |rank: &Rank| *rank != me && self.rows[*rank].owed_round() <= round;
        self.not_measured.iter().copied().find(pending)
    }

    fn earliest_begin(&self, round: u64) -> Option<Duration> {
        self.begun.get(&round)?.first().map(|&(began, _)| began)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::LocalSteps;
    use crate::policy::esync::decide;
    use proptest::prelude::*;

    /// What happens to one worker.
    #[derive(Debug, Clone)]
    enum Happens {
        Stepped { seconds: u8, new_round: bool },
        Leaves,
    }

    fn happens() -> impl Strategy<Value = (Rank, Happens, u16)> {
        let stepped =
            (0..6_u8, any::<bool>()).prop_map(|(seconds, new_round)| Happens::Stepped { seconds, new_round });
        (0..5_usize, prop_oneof![30 => stepped, 1 => Just(Happens::Leaves)], 0..3000_u16)
    }

    proptest! {
        /// The index decides as the scan does, with the same reasons, whatever has happened before.
        #[test]
        fn the_index_answers_what_the_scan_answers(
            warm_up in prop::collection::vec(0..4_u8, 1..5),
            script in prop::collection::vec(happens(), 1..120),
        ) {
            let settings = Settings::default();
            let mut rows: Vec<Row> = warm_up.iter().map(|&seconds| Row::new(f64::from(seconds))).collect();
            let mut index = Index::new(rows.clone());
            let mut now = Duration::ZERO;
            for (rank, what, passed) in script {
                let rank = rank % rows.len();
                now += Duration::from_millis(passed.into());
                let (round, local_steps) = match what {
                    Happens::Leaves => {
                        rows[rank].gone = true;
                        index.leave(rank);
                        continue;
                    }
                    Happens::Stepped { new_round: true, .. } => (rows[rank].round + 1, 1),
                    Happens::Stepped { .. } => (rows[rank].round, rows[rank].local_steps + 1),
                };
                let Happens::Stepped { seconds, .. } = what else { continue };
                let report = Report::Stepped {
                    round,
                    local_steps: LocalSteps(local_steps),
                    step_seconds: f64::from(seconds),
                    low_step_seconds: f64::from(seconds),
                    transfer_seconds: 0.25,
                    round_seconds: f64::from(seconds) / 2.0,
                };
                prop_assert!(rows[rank].update(now, &report));
                prop_assert!(index.update(now, rank, &report));
                let expected = decide(&rows, rank, now, &settings);
                rows[rank].decided_sync = expected.0 == Reply::Synchronize;
                prop_assert_eq!(index.decide(rank, now, &settings), expected);
                prop_assert_eq!(index.rows(), &rows[..]);
            }
        }
    }
}
