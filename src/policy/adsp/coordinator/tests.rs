//! The rule on a virtual clock: workers that commit when they are told to, and a loss that falls as a given function of the
//! rate says.

use super::*;
use crate::policy::{LocalSteps, Payload, Versions};

const SETTINGS: Settings = Settings {
    check_seconds: 6.0,
    least_seconds: 1.0,
    search_seconds: 120.0,
    alarm: 0.3,
    server_momentum: 0.0,
    target_loss: None,
};

/// K workers with steps of a tenth of a second and instant transfers.
struct World {
    server: AdspCoordinator,
    commit_at: Vec<Option<f64>>,
    budgets: Vec<f64>,
    commits: Vec<u64>,
    now: f64,
    /// 1/ℓ, which grows with the rate's steepness.
    inverse_loss: f64,
    /// Rates and since when.
    rates: Vec<(f64, u64)>,
    reasons: Vec<String>,
    evaluations: usize,
}

impl World {
    fn new(workers: usize, settings: Settings) -> Self {
        let server = AdspCoordinator::new(&vec![0.1; workers], settings);
        World {
            server,
            commit_at: vec![Some(6.0); workers],
            budgets: vec![6.0; workers],
            commits: vec![0; workers],
            now: 0.0,
            inverse_loss: 0.5,
            rates: vec![(0.0, 1)],
            reasons: Vec::new(),
            evaluations: 0,
        }
    }

    fn run(&mut self, until: f64, steepness: impl Fn(u64) -> f64) {
        loop {
            let next_commit = self.commit_at.iter().copied().flatten().fold(f64::INFINITY, f64::min);
            let deadline = self.server.next_deadline().map_or(f64::INFINITY, |at| at.as_secs_f64());
            let next = next_commit.min(deadline).max(self.now);
            if next > until {
                return;
            }
            self.inverse_loss += steepness(self.server.rate()) * (next - self.now);
            self.now = next;
            let now = seconds(next);
            let directives = if deadline <= next_commit {
                self.server.tick(now)
            } else {
                let rank = self.commit_at.iter().position(|&at| at == Some(next)).unwrap();
                let directives = self.server.on(now, rank, push(self.budgets[rank]));
                assert!(matches!(directives[0], Directive::Apply { .. }), "{directives:?}");
                self.commits[rank] += 1;
                directives
            };
            self.carry_out(directives);
        }
    }

    fn carry_out(&mut self, directives: Vec<Directive>) {
        for directive in directives {
            match directive {
                Directive::Evaluate => {
                    self.evaluations += 1;
                    let loss = 1.0 / self.inverse_loss;
                    let more = self.server.on(seconds(self.now), 0, Report::GlobalLoss { loss });
                    self.carry_out(more);
                }
                Directive::Reply { to, reply, reason } => {
                    if let Reply::CommitEvery { seconds } = reply {
                        self.budgets[to] = seconds;
                        self.reasons.push(format!("{to}: {reason}"));
                    }
                    self.commit_at[to] = Some(self.now + self.budgets[to]);
                }
                Directive::Apply { .. } | Directive::Publish { .. } => {}
            }
        }
        if self.rates.last().is_some_and(|&(_, rate)| rate != self.server.rate()) {
            self.rates.push((self.now, self.server.rate()));
        }
    }

    fn rates(&self) -> Vec<u64> {
        self.rates.iter().map(|&(_, rate)| rate).collect()
    }
}

fn push(compute_seconds: f64) -> Report {
    let (payload, local_steps, base) =
        (Payload::Delta, LocalSteps((compute_seconds * 10.0) as u64), Versions(0));
    let (samples, loss, seconds_since_push, norm) = (1, 1.0, compute_seconds, 1.0);
    Report::Pushed { payload, local_steps, samples, loss, seconds_since_push, compute_seconds, base, norm }
}

#[test]
fn the_rate_climbs_to_the_best_one() {
    let mut world = World::new(3, SETTINGS);
    world.run(100.0, |rate| [0.0, 0.05, 0.1, 0.2, 0.1, 0.05, 0.05][rate as usize]);
    assert_eq!(world.rates(), [1, 2, 3, 4, 3], "{:?}", world.rates);
    assert_eq!(world.budgets, [2.0; 3], "Γ / 3");
    // Four probes of seven samples, and a check in every period of training since.
    assert!((28..42).contains(&world.evaluations), "{}", world.evaluations);
    let words = "0: 3.0000 s between commits: 2 in 6.000 s, less 0.0000 s for transfers; a rate of 2 is being tried, after 1 \
                 makes the loss fall with a steepness of 0.0500/s (implicit momentum 0.02)";
    assert_eq!(world.reasons[0], words);
}

#[test]
fn the_rate_comes_down_when_that_is_better() {
    let mut world = World::new(3, SETTINGS);
    world.run(100.0, |rate| if rate == 3 { 0.2 } else { 0.1 });
    assert_eq!(world.server.rate(), 3);
    // Meanwhile the network has become slow: rare commits are better now.
    let second_search = world.rates.len();
    world.run(300.0, |rate| 0.3 / rate as f64);
    assert_eq!(world.rates()[second_search..], [4, 2, 1], "{:?}", world.rates);
}

#[test]
fn a_probe_that_diverges_ends_at_once_and_never_wins() {
    let mut world = World::new(2, SETTINGS);
    world.run(100.0, |rate| if rate == 2 { -0.3 } else { 0.1 });
    assert_eq!(world.rates()[..3], [1, 2, 1], "{:?}", world.rates);
    let (began, ended) = (world.rates[1].0, world.rates[2].0);
    assert!(ended - began < 6.0, "before it was complete: {began} to {ended}");
    let kept = world.reasons.iter().find(|reason| reason.contains("is kept")).unwrap();
    assert!(kept.contains("a rate of 1 is kept until the next search, after 2 is rejected"), "{kept}");
}

#[test]
fn a_loss_that_is_not_a_number_is_survived() {
    let mut server = AdspCoordinator::new(&[0.1, 0.1], SETTINGS);
    let directives = server.on(Duration::ZERO, 0, push(1.0));
    assert_eq!(directives.last(), Some(&Directive::Evaluate));
    server.on(Duration::ZERO, 0, Report::GlobalLoss { loss: f64::NAN });
    assert_eq!(server.rate(), 2, "the present rate is rejected, the next one is tried");
    let Report::Pushed { payload, local_steps, samples, base, norm, .. } = push(1.0) else { unreachable!() };
    let (loss, seconds_since_push, compute_seconds) = (f64::NAN, 1.0, 1.0);
    let poison = Report::Pushed {
        payload,
        local_steps,
        samples,
        loss,
        seconds_since_push,
        compute_seconds,
        base,
        norm,
    };
    let directives = server.on(seconds(1.0), 1, poison);
    assert!(matches!(directives[0], Directive::Apply { rule: PushRule::Discard, .. }));
}

#[test]
fn a_search_is_forced_when_the_loss_rises() {
    let mut world = World::new(2, SETTINGS);
    let steepness = |rate: u64| 0.1 / rate as f64;
    world.run(100.0, steepness);
    let evaluations = world.evaluations;
    assert_eq!(world.rates(), [1, 2, 1], "the next search would be at 144 s");
    world.inverse_loss *= 0.5;
    world.run(120.0, steepness);
    assert!(world.evaluations >= evaluations + 7, "{:?}", world.rates);
    assert_eq!(world.rates()[..4], [1, 2, 1, 2], "long before 144 s");
}

#[test]
fn who_fell_behind_catches_up() {
    let mut world = World::new(2, SETTINGS);
    // Rank 1 joins late: at 60 s it has committed nothing.
    world.commit_at[1] = Some(60.0);
    world.run(59.0, |_| 0.0);
    assert!(world.commits[0] > 9 && world.commits[1] == 0, "{:?}", world.commits);
    world.run(120.0, |_| 0.0);
    let behind = world.commits[0].abs_diff(world.commits[1]);
    assert!(behind <= 2, "one that is forgiven, and one that may be about to come: {:?}", world.commits);
    assert!(world.reasons.iter().any(|reason| reason.starts_with("1: 1.0000 s between commits")));
}

#[test]
fn a_probe_does_not_wait_for_the_dead() {
    let mut world = World::new(2, SETTINGS);
    world.commit_at[1] = None;
    world.run(30.0, |_| 0.1);
    assert!(matches!(world.server.phase, Phase::Telling { .. }), "rank 1 does not know of rate 2");
    let directives = world.server.lost(seconds(30.0), 1);
    assert_eq!(directives, [Directive::Evaluate]);
    assert!(world.server.lost(seconds(31.0), 0).is_empty());
    assert_eq!((world.server.next_deadline(), world.server.tick(seconds(99.0)).len()), (None, 0));
}

#[test]
fn explicit_momentum_is_nesterovs() {
    let settings = Settings { server_momentum: 0.6, ..SETTINGS };
    let mut server = AdspCoordinator::new(&[0.1, 0.1], settings);
    let directives = server.on(seconds(6.0), 0, push(6.0));
    let rule = PushRule::DelayedNesterov { period: 1, learning_rate: 0.5, momentum: 0.6, carry: 0.0 };
    assert!(matches!(directives[0], Directive::Apply { rule: used, .. } if used == rule), "{directives:?}");
}
