//! The state server's table, and the decision over it.

use super::Settings;
use crate::policy::{Reason, Reply, Report};
use crate::transport::Rank;
use std::time::Duration;

/// What is known of one worker. Plain data: a shared page holds one for every process.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Row {
    /// Rounds that it has completed.
    pub round: u64,
    /// Steps that it has done in this round.
    pub local_steps: u64,
    /// Its smoothed seconds for a step (the paper's `c`); 0 if nobody has measured it.
    pub step_seconds: f64,
    /// What its steps hardly ever undercut, in seconds.
    pub low_step_seconds: f64,
    /// Its seconds for a transfer (the paper's `m`), as of its last exchange.
    pub transfer_seconds: f64,
    /// The time of the table's owner when this worker began the round that it reported from. Within one host, every process
    /// uses the same monotonic clock; between hosts, only the state server's clock counts.
    pub began: Duration,
    /// It was told to enter the exchange.
    pub decided_sync: bool,
    /// It has left or died, and nobody waits for it.
    pub gone: bool,
}

impl Row {
    /// A worker that has not begun, and needs `step_seconds` for a step.
    pub fn new(step_seconds: f64) -> Self {
        Row { step_seconds, low_step_seconds: step_seconds, ..Row::default() }
    }

    /// Takes in a [`Report::Stepped`] that arrived at `now`. Answers `false`, and changes nothing, for other reports.
    pub fn update(&mut self, now: Duration, report: &Report) -> bool {
        let &Report::Stepped {
            round,
            local_steps,
            step_seconds,
            low_step_seconds,
            transfer_seconds,
            round_seconds,
        } = report
        else {
            return false;
        };
        if round != self.round || self.local_steps == 0 {
            self.began = now.saturating_sub(Duration::try_from_secs_f64(round_seconds).unwrap_or_default());
            self.decided_sync = false;
        }
        self.round = round;
        self.local_steps = local_steps.0;
        self.step_seconds = step_seconds;
        self.low_step_seconds = low_step_seconds;
        self.transfer_seconds = transfer_seconds;
        true
    }

    /// The first round of which this worker still owes its first step.
    pub(super) fn owed_round(&self) -> u64 {
        let has_begun = self.local_steps > 0 || self.decided_sync;
        if has_begun { self.round.saturating_add(1) } else { self.round }
    }

    /// Whether this worker still has to do its first step of `round`.
    fn owes_first_step(&self, round: u64) -> bool {
        !self.gone && self.owed_round() <= round
    }

    /// Whether anybody knows how fast it is.
    pub(super) fn is_measured(&self) -> bool {
        self.step_seconds > 0.0
    }
}

/// The slowest of some workers, and its seconds for a step; of equals the lowest rank.
fn slowest<'a>(rows: impl Iterator<Item = (Rank, &'a Row)>) -> Option<(Rank, f64)> {
    rows.map(|(rank, row)| (rank, row.step_seconds)).fold(None, |slowest, (rank, step_seconds)| match slowest
    {
        Some((_, longest)) if step_seconds <= longest => slowest,
        _ => Some((rank, step_seconds)),
    })
}

/// Whether `me`, whose row says what it has done, does another local step or enters the exchange (paper, algorithm 2).
///
/// The caller notes a [`Reply::Synchronize`] in the row's `decided_sync`.
///
/// ```
/// use esync::policy::esync::{Row, Settings, decide};
/// use esync::policy::Reply;
/// use std::time::Duration;
///
/// // Rank 0 has done 0.1 s of work; rank 1 needs 0.4 s for a step and has not reported.
/// let mut rows = [Row::new(0.1), Row::new(0.4)];
/// rows[0].local_steps = 1;
/// let (reply, reason) = decide(&rows, 0, Duration::from_millis(100), &Settings::default());
/// assert_eq!(reply, Reply::Train);
/// assert_eq!(reason.to_string(), "a step of 0.1000 s fits before rank 1 submits in 0.3000 s");
///
/// rows[0].local_steps = 4;
/// let (reply, reason) = decide(&rows, 0, Duration::from_millis(390), &Settings::default());
/// assert_eq!(reply, Reply::Synchronize);
/// assert_eq!(reason.to_string(), "another step needs 0.1000 s and rank 1 submits in 0.0100 s");
/// ```
pub fn decide(rows: &[Row], me: Rank, now: Duration, settings: &Settings) -> (Reply, Reason) {
    decide_over(rows, me, now, settings)
}

/// What a decision asks of the table: over plain rows by looking at all of them, over an index at once.
pub(super) trait Table {
    fn row(&self, rank: Rank) -> Option<&Row>;
    /// Whether anybody else is present.
    fn has_others(&self, me: Rank) -> bool;
    /// The slowest of all that are present, and its seconds for a step; of equals the lowest rank.
    fn slowest(&self) -> Option<(Rank, f64)>;
    /// The same among those, `me` left out, that owe their first step of `round`.
    fn slowest_pending(&self, round: u64, me: Rank) -> Option<(Rank, f64)>;
    /// The first of those whose speed nobody knows.
    fn not_measured(&self, round: u64, me: Rank) -> Option<Rank>;
    /// When the first of those present that have reported from `round` began it.
    fn earliest_begin(&self, round: u64) -> Option<Duration>;
}

impl Table for [Row] {
    fn row(&self, rank: Rank) -> Option<&Row> {
        self.get(rank)
    }

    fn has_others(&self, me: Rank) -> bool {
        present(self).any(|(rank, _)| rank != me)
    }

    fn slowest(&self) -> Option<(Rank, f64)> {
        slowest(present(self))
    }

    fn slowest_pending(&self, round: u64, me: Rank) -> Option<(Rank, f64)> {
        slowest(present(self).filter(|&(rank, row)| rank != me && row.owes_first_step(round)))
    }

    fn not_measured(&self, round: u64, me: Rank) -> Option<Rank> {
        let mut pending = present(self).filter(|&(rank, row)| rank != me && row.owes_first_step(round));
        pending.find(|(_, row)| !row.is_measured()).map(|(rank, _)| rank)
    }

    fn earliest_begin(&self, round: u64) -> Option<Duration> {
        let reported = present(self).filter(|(_, row)| row.round == round && row.local_steps > 0);
        reported.map(|(_, row)| row.began).min()
    }
}

fn present(rows: &[Row]) -> impl Iterator<Item = (Rank, &Row)> {
    rows.iter().enumerate().filter(|(_, row)| !row.gone)
}

/// The decision, over whatever answers its questions.
pub(super) fn decide_over(
    table: &(impl Table + ?Sized),
    me: Rank,
    now: Duration,
    settings: &Settings,
) -> (Reply, Reason) {
    let Some(own) = table.row(me) else {
        return (Reply::Synchronize, Reason::Alone);
    };
    if own.local_steps == 0 {
        return (Reply::Train, Reason::FirstStep);
    }
    if let Some(most) = settings.max_local_steps
        && own.local_steps >= most
    {
        return (Reply::Synchronize, Reason::MostLocalSteps { local_steps: own.local_steps });
    }

    // One exchange takes all workers equally long, and `own` has the newest figure: a straggler's row is a round old until it
    // has done its step. So the paper's `d = c + m` differs between workers by their steps only.
    let transfer_seconds = own.transfer_seconds;
    let Some((straggler, _)) = table.slowest().filter(|_| table.has_others(me)) else {
        return (Reply::Synchronize, Reason::Alone);
    };
    if straggler == me {
        return (
            Reply::Synchronize,
            Reason::IsStraggler { delay_seconds: own.step_seconds + transfer_seconds },
        );
    }
    if let Some(rank) = table.not_measured(own.round, me) {
        return (Reply::Synchronize, Reason::NotMeasured { rank });
    }
    let Some((straggler, step_seconds)) = table.slowest_pending(own.round, me) else {
        return (Reply::Synchronize, Reason::StragglerReady { straggler });
    };
    let delay = step_seconds + transfer_seconds;

    // Everybody leaves the barrier together, so whoever reported first from this round tells when it began, also for a
    // straggler that has said nothing since.
    let began = table.earliest_begin(own.round).map_or(own.began, |earliest| earliest.min(own.began));
    let elapsed = now.saturating_sub(began).as_secs_f64();
    if elapsed > delay * (1.0 + settings.grace) {
        return (Reply::Synchronize, Reason::StragglerOverdue { straggler, seconds_late: elapsed - delay });
    }
    let allowed_late = settings.tolerance * delay;
    let seconds_needed = own.step_seconds + transfer_seconds;
    // Measured against what the straggler hardly ever undercuts: of many equal workers that jitter, somebody always looks
    // twice as slow as somebody else.
    let low = table.row(straggler).map_or(step_seconds, |row| row.low_step_seconds);
    if own.local_steps == 1 && 2.0 * own.step_seconds > low + allowed_late {
        let steps = low / own.step_seconds;
        return (Reply::Synchronize, Reason::TooFewSteps { straggler, steps });
    }
    let seconds_left = (delay - elapsed).max(transfer_seconds);
    if seconds_needed <= seconds_left + allowed_late {
        (Reply::Train, Reason::StepFits { straggler, seconds_left, seconds_needed })
    } else {
        (Reply::Synchronize, Reason::WouldBeLate { straggler, seconds_left, seconds_needed })
    }
}

/// How many local steps `me` plans for a round, at least 1: those that fit into the slowest worker's step and transfer.
///
/// `rows` need only their seconds. The same figures give the same plan on every rank.
///
/// ```
/// use esync::policy::esync::{Row, Settings, planned_local_steps};
///
/// let rows = [Row::new(0.1), Row::new(0.1), Row::new(0.3)];
/// let plans: Vec<u64> = (0..3).map(|me| planned_local_steps(&rows, me, &Settings::default())).collect();
/// assert_eq!(plans, [3, 3, 1]);
/// ```
pub fn planned_local_steps(rows: &[Row], me: Rank, settings: &Settings) -> u64 {
    let present = rows.iter().enumerate().filter(|(_, row)| !row.gone);
    let (Some(own), Some((straggler, slowest_seconds))) = (rows.get(me), slowest(present)) else {
        return 1;
    };
    let allowed_late = settings.tolerance * (slowest_seconds + own.transfer_seconds);
    // Nobody can hear in time that the straggler is ready, so that a step which is mostly late is never worth it.
    let planned_late = allowed_late.min(own.step_seconds / 2.0);
    let too_few = 2.0 * own.step_seconds > rows[straggler].low_step_seconds + allowed_late;
    let steps = if straggler == me || own.step_seconds <= 0.0 || too_few {
        1
    } else {
        // The cast saturates, and takes NaN to 0.
        ((slowest_seconds + planned_late) / own.step_seconds) as u64
    };
    steps.min(settings.max_local_steps.unwrap_or(u64::MAX)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::LocalSteps;

    /// Rows of a round that began at 0 s: seconds of a step, steps done.
    fn rows(workers: &[(f64, u64)]) -> Vec<Row> {
        workers
            .iter()
            .map(|&(step_seconds, local_steps)| Row { local_steps, ..Row::new(step_seconds) })
            .collect()
    }

    #[track_caller]
    fn check(rows: &[Row], me: Rank, now: f64, reply: Reply, reason: &str) {
        check_with(&Settings::default(), rows, me, now, reply, reason);
    }

    #[track_caller]
    fn check_with(settings: &Settings, rows: &[Row], me: Rank, now: f64, reply: Reply, reason: &str) {
        let (answer, why) = decide(rows, me, Duration::from_secs_f64(now), settings);
        assert_eq!((answer, why.to_string().as_str()), (reply, reason));
    }

    #[test]
    fn the_first_step_is_always_done() {
        check(&rows(&[(1.0, 0), (3.0, 1)]), 0, 9.0, Reply::Train, "the first step of a round is always done");
    }

    #[test]
    fn the_straggler_submits_and_then_everybody() {
        let mut table = rows(&[(1.0, 2), (3.0, 1)]);
        let words = "this worker is the straggler (3.0000 s for a step and a transfer)";
        check(&table, 1, 3.0, Reply::Synchronize, words);
        table[1].decided_sync = true;
        let words = "nobody computes a first step any more: the straggler, rank 1, is ready";
        check(&table, 0, 2.0, Reply::Synchronize, words);
    }

    #[test]
    fn of_equals_the_lowest_rank_is_the_straggler() {
        let table = rows(&[(1.0, 1), (1.0, 0), (1.0, 1)]);
        check(
            &table,
            0,
            1.0,
            Reply::Synchronize,
            "this worker is the straggler (1.0000 s for a step and a transfer)",
        );
        let words = "only 1.00 of this worker's steps fit into one of rank 1";
        check(&table, 2, 1.0, Reply::Synchronize, words);
    }

    #[test]
    fn a_lucky_first_step_invites_no_second() {
        let words = "only 1.50 of this worker's steps fit into one of rank 1";
        check(&rows(&[(1.0, 1), (1.5, 0)]), 0, 0.2, Reply::Synchronize, words);
    }

    #[test]
    fn a_straggler_that_is_late_is_still_computing() {
        // A short step goes on being worth it; one that would hold up everybody does not; and there is an end.
        let words = "a step of 0.0400 s fits before rank 1 submits in 0.0000 s";
        check(&rows(&[(0.04, 25), (1.0, 0)]), 0, 1.2, Reply::Train, words);
        let words = "another step needs 0.1500 s and rank 1 submits in 0.0000 s";
        check(&rows(&[(0.15, 8), (1.0, 0)]), 0, 1.2, Reply::Synchronize, words);
        let words = "the straggler, rank 1, is 1.250 s overdue";
        check(&rows(&[(0.04, 60), (1.0, 0)]), 0, 2.25, Reply::Synchronize, words);
    }

    #[test]
    fn a_straggler_in_an_earlier_round_is_predicted_from_the_rounds_beginning() {
        let mut table = rows(&[(0.1, 1), (0.1, 1), (1.0, 1)]);
        for row in &mut table[..2] {
            (row.round, row.began) = (4, Duration::from_secs(10));
        }
        table[1].began += Duration::from_millis(3);
        table[2].round = 3;
        check(&table, 0, 10.1, Reply::Train, "a step of 0.1000 s fits before rank 2 submits in 0.9000 s");
        check(&table, 1, 13.0, Reply::Synchronize, "the straggler, rank 2, is 2.000 s overdue");
    }

    #[test]
    fn the_second_slowest_is_waited_for_when_the_slowest_is_early() {
        let table = rows(&[(0.1, 6), (1.0, 1), (0.9, 0)]);
        check(&table, 0, 0.6, Reply::Train, "a step of 0.1000 s fits before rank 2 submits in 0.3000 s");
    }

    #[test]
    fn nobody_waits_for_who_is_gone_or_unknown() {
        let mut table = rows(&[(0.1, 1), (0.0, 0), (1.0, 0)]);
        let words = "rank 1 still computes, and its speed is not known yet";
        check(&table, 0, 0.1, Reply::Synchronize, words);
        table[1].gone = true;
        check(&table, 0, 0.1, Reply::Train, "a step of 0.1000 s fits before rank 2 submits in 0.9000 s");
        table[2].gone = true;
        check(&table, 0, 0.1, Reply::Synchronize, "this worker trains alone");
    }

    #[test]
    fn local_steps_can_be_bounded() {
        let settings = Settings { max_local_steps: Some(5), ..Settings::default() };
        let table = rows(&[(0.1, 5), (1.0, 0)]);
        check_with(
            &settings,
            &table,
            0,
            0.5,
            Reply::Synchronize,
            "the upper bound of 5 local steps is reached",
        );
        assert_eq!(planned_local_steps(&table, 0, &settings), 5);
    }

    #[test]
    fn transfers_count() {
        let mut table = rows(&[(1.0, 2), (3.0, 0)]);
        for row in &mut table {
            row.transfer_seconds = 0.5;
        }
        check(&table, 0, 2.0, Reply::Train, "a step of 1.5000 s fits before rank 1 submits in 1.5000 s");
        check(
            &table,
            0,
            2.4,
            Reply::Synchronize,
            "another step needs 1.5000 s and rank 1 submits in 1.1000 s",
        );
        assert_eq!(planned_local_steps(&table, 0, &Settings::default()), 3);
    }

    #[test]
    fn a_rounds_beginning_is_stamped_once() {
        let mut row = Row::new(1.0);
        let report = |round, local_steps, round_seconds| Report::Stepped {
            round,
            local_steps: LocalSteps(local_steps),
            step_seconds: 0.5,
            low_step_seconds: 0.4,
            transfer_seconds: 0.1,
            round_seconds,
        };
        assert!(row.update(Duration::from_secs(10), &report(0, 1, 0.5)));
        assert_eq!(row.began, Duration::from_millis(9500));
        row.decided_sync = true;
        assert!(row.update(Duration::from_secs(12), &report(0, 2, 1.0)));
        assert_eq!((row.began, row.decided_sync), (Duration::from_millis(9500), true));
        assert!(row.update(Duration::from_secs(13), &report(1, 1, 0.5)));
        assert_eq!((row.began, row.decided_sync), (Duration::from_millis(12500), false));
        assert!(!row.update(Duration::from_secs(14), &Report::PullRequested));
    }

    #[test]
    fn plans_without_figures_are_one_step() {
        let settings = Settings::default();
        assert_eq!(planned_local_steps(&[], 0, &settings), 1);
        assert_eq!(planned_local_steps(&rows(&[(0.0, 0), (f64::NAN, 0)]), 0, &settings), 1);
        assert_eq!(planned_local_steps(&rows(&[(1.0, 0), (150.0, 0)]), 0, &settings), 150);
    }
}
