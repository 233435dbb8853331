//! Where a worker's time goes. Every moment belongs to exactly one activity, so that the shares add up.

use std::time::{Duration, Instant};

/// What a worker is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activity {
    /// A mini-batch: fetching it, forward, backward, optimiser.
    Compute,
    /// An exchange, after all ranks have arrived.
    Exchange,
    /// Waiting for other ranks to arrive.
    Wait,
    /// Evaluating, and waiting for the others to have evaluated.
    Evaluate,
    /// Sleeping because `--slow` asks for it.
    Slow,
    /// Asking the state server, and the policy's own thinking.
    Decide,
    /// Everything else: writing metrics, printing.
    Other,
}

const ACTIVITIES: usize = 7;

/// Seconds by activity.
///
/// ```
/// use esync::runtime::{Activity, Stopwatch};
/// let mut clock = Stopwatch::start(Activity::Compute);
/// clock.switch(Activity::Wait);
/// clock.switch(Activity::Other);
/// assert!(clock.seconds(Activity::Compute) >= 0.0);
/// assert!(clock.total_seconds() < 1.0);
/// ```
#[derive(Debug, Clone)]
pub struct Stopwatch {
    spent: [Duration; ACTIVITIES],
    now: Activity,
    since: Instant,
    started: Instant,
}

impl Stopwatch {
    /// Starts with an activity.
    pub fn start(activity: Activity) -> Self {
        let now = Instant::now();
        Stopwatch { spent: [Duration::ZERO; ACTIVITIES], now: activity, since: now, started: now }
    }

    /// Ends the present activity and begins another. Returns the seconds that the ended one lasted.
    pub fn switch(&mut self, activity: Activity) -> f64 {
        let now = Instant::now();
        let lap = now - self.since;
        self.spent[self.now as usize] += lap;
        self.since = now;
        self.now = activity;
        lap.as_secs_f64()
    }

    /// Counts `seconds` of one activity as another's: for what is known only afterwards.
    pub fn reassign(&mut self, from: Activity, to: Activity, seconds: f64) {
        let moved = Duration::try_from_secs_f64(seconds).unwrap_or_default().min(self.spent[from as usize]);
        self.spent[from as usize] -= moved;
        self.spent[to as usize] += moved;
    }

    /// Seconds of an activity, up to the last switch.
    pub fn seconds(&self, activity: Activity) -> f64 {
        self.spent[activity as usize].as_secs_f64()
    }

    /// Seconds since the start.
    pub fn total_seconds(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }
}
