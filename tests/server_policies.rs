//! Server policies under random orders of events, with deaths at any point: each push is consumed exactly once, each report
//! is answered exactly once, nobody waits for ever, and every reason is a sentence.

use esync::policy::{
    Action, Coordinator, Directive, Job, LocalSteps, Mode, Payload, PolicyOptions, Preset, Reply, Report,
    Versions, WorkerEvent, WorkerPolicy,
};
use esync::transport::Rank;
use proptest::prelude::*;
use std::time::Duration;

const MODES: [&str; 5] = ["wbsp", "wbsp-overlap", "async-diloco", "hermes", "adsp"];

/// What a worker is waiting for.
#[derive(Debug, Clone, PartialEq)]
enum State {
    /// Nothing: this is to be told.
    Ready(WorkerEvent),
    /// The answer to a report.
    Asked,
    /// The parameters that it asked for.
    AskedParameters,
    /// It trains while its push travels, and is ready otherwise.
    Gone,
}

struct Worker {
    policy: Box<dyn WorkerPolicy>,
    state: State,
    /// A push that no directive has consumed.
    unconsumed: bool,
    /// Reports that were not answered.
    unanswered: u32,
    /// The verdict of a push that travels, if it travels.
    travelling: Option<Option<Reply>>,
    /// Parameters came with the last reply.
    has_parameters: bool,
    local_steps: u64,
    actions: u64,
}

struct World {
    job: Job,
    server: Box<dyn Coordinator>,
    workers: Vec<Worker>,
    now: Duration,
    /// Losses to come, repeated.
    losses: Vec<f64>,
    next_loss: usize,
    version: u64,
}

impl World {
    fn new(mode: &str, preset: Preset, step_seconds: &[f64], shards: &[u64], losses: Vec<f64>) -> World {
        let job = Job {
            size: step_seconds.len(),
            step_seconds: step_seconds.into(),
            shard_samples: shards.into(),
            batch_size: 8,
            learning_rate: 0.1,
            budget_samples: None,
        };
        let options =
            PolicyOptions { preset: Some(preset), local_steps: Some(3), ..PolicyOptions::default() };
        let mode = Mode::by_name(mode).unwrap();
        let worker = |rank| Worker {
            policy: mode.worker(&options, &job, rank).unwrap(),
            state: State::Ready(WorkerEvent::Started { rank, step_seconds: job.step_seconds.clone() }),
            unconsumed: false,
            unanswered: 0,
            travelling: None,
            has_parameters: false,
            local_steps: 0,
            actions: 0,
        };
        let workers = (0..job.size).map(worker).collect();
        let server = mode.coordinator(&options, &job).unwrap().expect("a server's mode");
        World { job, server, workers, now: Duration::ZERO, losses, next_loss: 0, version: 0 }
    }

    fn loss(&mut self) -> f64 {
        self.next_loss += 1;
        self.losses[self.next_loss % self.losses.len()]
    }

    fn is_ready(&self, rank: Rank) -> bool {
        matches!(self.workers[rank].state, State::Ready(_))
    }

    fn is_gone(&self, rank: Rank) -> bool {
        self.workers[rank].state == State::Gone
    }

    /// Tells a ready worker what it waits for, and carries out what it answers.
    fn advance(&mut self, rank: Rank) {
        let worker = &mut self.workers[rank];
        let State::Ready(event) = worker.state.clone() else { return };
        worker.actions += 1;
        let (action, reason) = worker.policy.next(event);
        assert!(!reason.to_string().is_empty());
        let step_seconds = self.job.step_seconds[rank];
        let next = match action {
            Action::Step { .. } => {
                worker.local_steps += 1;
                let loss = self.loss();
                WorkerEvent::Stepped { step_seconds, samples: 8, loss }
            }
            Action::Evaluate => WorkerEvent::Evaluated { loss: self.loss(), accuracy: 0.5 },
            Action::SetBatch { batch_size, data_budget } => {
                let most = usize::try_from(self.job.shard_samples[rank].max(1)).unwrap();
                assert!(batch_size >= 1 && data_budget.is_none_or(|budget| (1..=most).contains(&budget)));
                WorkerEvent::BatchSet
            }
            Action::Report(report) => return self.ask(rank, report, State::Asked),
            Action::Push { payload, .. } => {
                let report = self.pushed(rank, payload);
                return self.ask(rank, report, State::Asked);
            }
            Action::BeginPush { payload, .. } => {
                let report = self.pushed(rank, payload);
                assert!(self.workers[rank].travelling.is_none(), "one push at a time");
                self.workers[rank].travelling = Some(None);
                return self.ask(rank, report, State::Ready(WorkerEvent::PushBegun));
            }
            Action::FinishPush { wait } => match worker.travelling.take().expect("a push travels") {
                Some(reply) => WorkerEvent::Replied(reply),
                // Taken: the verdict is answered like that of any push.
                None if wait => {
                    worker.state = State::Asked;
                    return;
                }
                None => {
                    worker.travelling = Some(None);
                    WorkerEvent::NotYet
                }
            },
            Action::Pull { .. } if std::mem::take(&mut worker.has_parameters) => {
                WorkerEvent::Pulled { version: Versions(self.version) }
            }
            Action::Pull { .. } => return self.ask(rank, Report::PullRequested, State::AskedParameters),
            Action::Stop => return self.kill(rank),
            other => panic!("{other:?}"),
        };
        self.workers[rank].state = State::Ready(next);
    }

    fn pushed(&mut self, rank: Rank, payload: Payload) -> Report {
        let loss = self.loss();
        let worker = &mut self.workers[rank];
        assert!(!std::mem::replace(&mut worker.unconsumed, true), "one push at a time");
        let local_steps = LocalSteps(std::mem::take(&mut worker.local_steps));
        let compute_seconds = local_steps.0 as f64 * self.job.step_seconds[rank];
        let (samples, seconds_since_push) = (8 * local_steps.0, compute_seconds + 0.01);
        let (base, norm) = (Versions(self.version), 1.0);
        Report::Pushed {
            payload,
            local_steps,
            samples,
            loss,
            seconds_since_push,
            compute_seconds,
            base,
            norm,
        }
    }

    fn ask(&mut self, rank: Rank, report: Report, state: State) {
        self.workers[rank].state = state;
        self.workers[rank].unanswered += 1;
        let directives = self.server.on(self.now, rank, report);
        self.carry_out(directives);
    }

    fn carry_out(&mut self, directives: Vec<Directive>) {
        for directive in directives {
            match directive {
                Directive::Apply { from, reason, .. } => {
                    assert!(!reason.to_string().is_empty());
                    let worker = &mut self.workers[from];
                    assert!(std::mem::take(&mut worker.unconsumed), "consumed twice, or after a death");
                    self.version += 1;
                }
                Directive::Publish { .. } => self.version += 1,
                Directive::Evaluate => {
                    let loss = self.loss();
                    let more = self.server.on(self.now, 0, Report::GlobalLoss { loss });
                    self.carry_out(more);
                }
                Directive::Reply { to, reply, reason } => {
                    assert!(!reason.to_string().is_empty());
                    self.answer(to, reply);
                }
            }
        }
    }

    fn answer(&mut self, to: Rank, reply: Reply) {
        let worker = &mut self.workers[to];
        assert_eq!(worker.unanswered, 1, "answered twice, or unasked, or after a death");
        assert!(!worker.unconsumed, "answered before its push was consumed");
        worker.unanswered = 0;
        worker.has_parameters = reply == Reply::Pull;
        match (&mut worker.travelling, &worker.state) {
            (Some(verdict), _) => *verdict = Some(reply),
            (None, State::AskedParameters) => {
                assert!(matches!(reply, Reply::Pull | Reply::Stop), "{reply:?} is no answer to a pull");
                worker.has_parameters = false;
                let version = Versions(self.version);
                let event = match reply {
                    Reply::Pull => WorkerEvent::Pulled { version },
                    reply => WorkerEvent::Replied(reply),
                };
                worker.state = State::Ready(event);
            }
            (None, _) => worker.state = State::Ready(WorkerEvent::Replied(reply)),
        }
    }

    fn kill(&mut self, rank: Rank) {
        if self.is_gone(rank) {
            return;
        }
        let worker = &mut self.workers[rank];
        (worker.state, worker.unconsumed, worker.unanswered) = (State::Gone, false, 0);
        worker.travelling = None;
        let directives = self.server.lost(self.now, rank);
        self.carry_out(directives);
    }

    fn tick_if_due(&mut self) {
        if self.server.next_deadline().is_some_and(|at| at <= self.now) {
            let directives = self.server.tick(self.now);
            self.carry_out(directives);
        }
    }

    /// Everybody who can goes on for a while; time passes with steps, and no further than to the next deadline.
    fn go_on_fairly(&mut self, rounds: usize) {
        for _ in 0..rounds {
            for rank in 0..self.workers.len() {
                self.advance(rank);
            }
            let step = self.now + Duration::from_secs_f64(0.05);
            self.now = self.server.next_deadline().map_or(step, |at| at.clamp(self.now, step));
            self.tick_if_due();
        }
    }
}

fn losses() -> impl Strategy<Value = Vec<f64>> {
    let loss = prop_oneof![8 => 0.01..3.0_f64, 1 => Just(f64::NAN), 1 => Just(1.0)];
    proptest::collection::vec(loss, 1..30)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn nobody_waits_for_ever_whatever_happens(
        mode in 0..MODES.len(),
        preset in prop_oneof![Just(Preset::Scaled), Just(Preset::Paper)],
        step_seconds in proptest::collection::vec(0.05..0.6_f64, 1..6),
        shards in proptest::collection::vec(0..200_u64, 6),
        losses in losses(),
        events in proptest::collection::vec((0..24_u8, 0..6_usize, 0..200_u64), 0..250),
        survivor in 0..6_usize,
    ) {
        let size = step_seconds.len();
        let survivor = survivor % size;
        let mut world = World::new(MODES[mode], preset, &step_seconds, &shards[..size], losses);
        for (kind, rank, milliseconds) in events {
            let rank = rank % size;
            match kind {
                0 if rank != survivor => world.kill(rank),
                1..4 => world.now += Duration::from_millis(milliseconds),
                4..6 => world.tick_if_due(),
                _ => world.advance(rank),
            }
        }
        // From any state everybody who lives goes on.
        for _ in 0..3 {
            let before: Vec<u64> = world.workers.iter().map(|worker| worker.actions).collect();
            world.go_on_fairly(400);
            for (rank, before) in before.into_iter().enumerate() {
                prop_assert!(
                    world.is_gone(rank) || world.workers[rank].actions > before,
                    "rank {rank} of {size} is held in {}: {:?}",
                    MODES[mode],
                    world.workers[rank].state
                );
            }
        }
        prop_assert!(!world.is_gone(survivor), "nothing told it to stop");
        prop_assert!(world.is_ready(survivor) || world.workers[survivor].unanswered == 1);
    }
}

/// Deaths one after the other, at each point of a script that is the same for all.
#[test]
fn whoever_dies_and_whenever_the_others_go_on() {
    for mode in MODES {
        for death_after in 0..60 {
            let step_seconds = [0.1, 0.1, 0.3];
            let mut world =
                World::new(mode, Preset::Scaled, &step_seconds, &[64, 64, 64], vec![1.0, 0.9, 0.5, 0.7]);
            let dies = death_after % 3;
            for step in 0..death_after {
                world.advance(step * 7 % 3);
                world.now += Duration::from_millis(20);
                if step % 2 == 0 {
                    world.tick_if_due();
                }
            }
            world.kill(dies);
            let before: Vec<u64> = world.workers.iter().map(|worker| worker.actions).collect();
            world.go_on_fairly(200);
            for rank in (0..3).filter(|&rank| rank != dies) {
                assert!(world.workers[rank].actions > before[rank], "{mode}: rank {rank} is held");
            }
        }
    }
}
