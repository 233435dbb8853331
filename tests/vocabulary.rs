//! The vocabulary is complete enough for policies that this crate does not have: three of the hard ones, written from outside
//! as small test policies and driven through a scripted scenario.

use esync::policy::{
    Action, Coordinator, Directive, ExchangeId, Fragment, Install, LocalSteps, Payload, PushRule, Reason,
    Reply, Report, Update, Versions, WorkerEvent, WorkerPolicy,
};
use esync::transport::Rank;
use std::time::Duration;

/// Runs a worker against a script: `answer` gives the event that carries an action out. Answers the actions.
fn drive(policy: &mut dyn WorkerPolicy, mut answer: impl FnMut(&Action) -> WorkerEvent) -> Vec<Action> {
    let mut event = WorkerEvent::Started { rank: 0, step_seconds: [0.1].into() };
    let mut actions = Vec::new();
    loop {
        let (action, reason) = policy.next(event);
        assert!(!reason.to_string().is_empty());
        actions.push(action.clone());
        if action == Action::Stop {
            return actions;
        }
        event = answer(&action);
    }
}

fn why(words: &str) -> Reason {
    Reason::Custom(words.into())
}

fn stepped() -> WorkerEvent {
    WorkerEvent::Stepped { step_seconds: 0.1, samples: 16, loss: 1.0 }
}

/// Steps take a tenth of a second, and transfers no time.
fn pushed(payload: Payload, local_steps: LocalSteps, samples: u64, loss: f64, base: Versions) -> Report {
    let compute_seconds = 0.1 * local_steps.0 as f64;
    let seconds_since_push = compute_seconds;
    Report::Pushed {
        payload,
        local_steps,
        samples,
        loss,
        seconds_since_push,
        compute_seconds,
        base,
        norm: 1.0,
    }
}

/// Fragment f is exchanged every H steps at its own offset, and consumed τ steps later (Douillard et al. 2025).
struct StreamingDiloco {
    fragments: u64,
    every: u64,
    overlap: u64,
    alpha: f64,
    steps: u64,
    exchanges: u64,
    in_flight: Option<(ExchangeId, Fragment)>,
}

impl StreamingDiloco {
    fn step(&self) -> (Action, Reason) {
        (Action::Step { update: Update::Local }, why("inner step"))
    }

    /// Steps since a fragment was due to begin, and which.
    fn phase(&self) -> (u64, u64) {
        let spacing = self.every / self.fragments;
        (self.steps % spacing, self.steps / spacing % self.fragments)
    }
}

impl WorkerPolicy for StreamingDiloco {
    fn name(&self) -> &'static str {
        "streaming-diloco"
    }

    fn next(&mut self, event: WorkerEvent) -> (Action, Reason) {
        match event {
            WorkerEvent::Stepped { .. } => {
                self.steps += 1;
                match (self.phase(), self.in_flight) {
                    ((since, _), Some((exchange, fragment))) if since == self.overlap => {
                        let install = Install::Mix { alpha: self.alpha };
                        (Action::Finish { exchange, fragment, install }, why("τ steps ago it began"))
                    }
                    ((0, index), None) => {
                        let exchange = ExchangeId(self.exchanges);
                        let fragment = Fragment::Part { index: index as u16, count: self.fragments as u16 };
                        self.exchanges += 1;
                        self.in_flight = Some((exchange, fragment));
                        (
                            Action::Begin { exchange, fragment, payload: Payload::Delta },
                            why("the fragment is due"),
                        )
                    }
                    _ => self.step(),
                }
            }
            WorkerEvent::Finished { stop: true, .. } => (Action::Stop, Reason::Agreed),
            WorkerEvent::Finished { .. } => {
                self.in_flight = None;
                self.step()
            }
            WorkerEvent::StopRequested => (Action::Stop, Reason::StopRequested),
            _ => self.step(),
        }
    }
}

#[test]
fn streaming_diloco_overlaps_fragments_with_steps() {
    let (fragments, every, overlap, alpha) = (2, 6, 1, 0.5);
    let mut policy =
        StreamingDiloco { fragments, every, overlap, alpha, steps: 0, exchanges: 0, in_flight: None };
    let mut parts = Vec::new();
    let actions = drive(&mut policy, |action| match action {
        Action::Step { .. } => stepped(),
        Action::Begin { exchange, fragment, .. } => {
            parts.push(*fragment);
            WorkerEvent::Begun { exchange: *exchange }
        }
        Action::Finish { exchange, install, .. } => {
            assert_eq!(*install, Install::Mix { alpha: 0.5 });
            let (exchange, stop) = (*exchange, exchange.0 == 2);
            WorkerEvent::Finished {
                exchange,
                transfer_seconds: 0.1,
                wait_seconds: 0.0,
                members: [].into(),
                stop,
            }
        }
        other => panic!("{other:?}"),
    });
    let letters: String = actions.iter().map(letter).collect();
    assert_eq!(letters, "sssBsFssBsFssBsF.", "one step runs during every exchange");
    let part = |index| Fragment::Part { index, count: 2 };
    assert_eq!(parts, [part(1), part(0), part(1)]);
}

fn letter(action: &Action) -> char {
    match action {
        Action::Step { .. } => 's',
        Action::Report(_) => 'r',
        Action::Begin { .. } => 'B',
        Action::Finish { .. } => 'F',
        Action::Push { .. } => 'P',
        Action::BeginPush { .. } => 'p',
        Action::FinishPush { .. } => 'f',
        Action::Pull { .. } => 'L',
        Action::Evaluate => 'e',
        Action::SetBatch { .. } => 'b',
        Action::Wait => 'w',
        Action::Stop => '.',
    }
}

/// Gradients to a server that keeps a backup for every worker (Zheng et al. 2017).
struct DcAsgdWorker;

impl WorkerPolicy for DcAsgdWorker {
    fn name(&self) -> &'static str {
        "dc-asgd"
    }

    fn next(&mut self, event: WorkerEvent) -> (Action, Reason) {
        let pull = Action::Pull { install: Install::Rebase };
        match event {
            WorkerEvent::Started { .. } | WorkerEvent::Replied(Reply::Pull) => {
                (pull, why("newest parameters"))
            }
            WorkerEvent::Pulled { .. } => (Action::Step { update: Update::Deferred }, why("a gradient")),
            WorkerEvent::Stepped { .. } => (
                Action::Push { payload: Payload::Gradient, fragment: Fragment::Whole },
                why("every gradient is sent"),
            ),
            _ => (Action::Stop, Reason::StopRequested),
        }
    }
}

struct DcAsgdServer {
    learning_rate: f64,
}

impl Coordinator for DcAsgdServer {
    fn on(&mut self, _now: Duration, from: Rank, report: Report) -> Vec<Directive> {
        match report {
            Report::Pushed { loss, .. } if !loss.is_finite() => vec![
                Directive::Apply { from, rule: PushRule::Discard, reason: why("not a number") },
                Directive::Reply { to: from, reply: Reply::Pull, reason: why("begin again") },
            ],
            Report::Pushed { payload: Payload::Gradient, .. } => {
                let learning_rate = self.learning_rate;
                let rule =
                    PushRule::DelayCompensated { learning_rate, lambda: 2.0, mean_square_decay: Some(0.95) };
                vec![
                    Directive::Apply { from, rule, reason: why("compensated for its delay") },
                    Directive::Reply { to: from, reply: Reply::Pull, reason: why("nobody waits") },
                ]
            }
            _ => Vec::new(),
        }
    }

    fn lost(&mut self, _now: Duration, _rank: Rank) -> Vec<Directive> {
        Vec::new()
    }
}

#[test]
fn dc_asgd_pushes_gradients_and_pulls() {
    let mut server = DcAsgdServer { learning_rate: 0.1 };
    let (mut version, mut base, mut discarded) = (0, Versions(0), 0);
    let actions = drive(&mut DcAsgdWorker, |action| match action {
        Action::Pull { .. } => {
            base = Versions(version);
            WorkerEvent::Pulled { version: base }
        }
        Action::Step { update: Update::Deferred } if version == 2 => WorkerEvent::StopRequested,
        Action::Step { update: Update::Deferred } => stepped(),
        Action::Push { payload, .. } => {
            let loss = if discarded == 0 { f64::NAN } else { 1.0 };
            let (payload, local_steps, samples) = (*payload, LocalSteps(1), 16);
            let report = pushed(payload, local_steps, samples, loss, base);
            apply(server.on(Duration::ZERO, 0, report), |rule| match rule {
                PushRule::Discard => discarded += 1,
                _ => version += 1,
            })
        }
        other => panic!("{other:?}"),
    });
    assert_eq!(actions.iter().map(letter).collect::<String>(), "LsPLsPLsPLs.");
    assert_eq!((version, discarded), (2, 1));
}

/// Carries out a server's directives, and answers what the pushing worker is told.
fn apply(directives: Vec<Directive>, mut on_apply: impl FnMut(PushRule)) -> WorkerEvent {
    let mut event = None;
    for directive in directives {
        match directive {
            Directive::Apply { rule, .. } => on_apply(rule),
            Directive::Reply { reply, .. } => event = Some(WorkerEvent::Replied(reply)),
            Directive::Publish { .. } | Directive::Evaluate => {}
        }
    }
    event.expect("every report is answered")
}

/// Pushes only when the held-out loss has improved significantly (Hermes, HiPC 2024).
struct HermesWorker {
    steps_per_evaluation: u64,
    threshold: f64,
    window: Vec<f64>,
    steps: u64,
    pull_next: bool,
}

impl HermesWorker {
    fn step(&mut self) -> (Action, Reason) {
        self.steps += 1;
        (Action::Step { update: Update::Local }, why("local step"))
    }

    /// How unusually low the newest loss is; 0 while the losses do not vary.
    fn z_score(&self) -> f64 {
        let count = self.window.len() as f64;
        let mean = self.window.iter().sum::<f64>() / count;
        let deviation = (self.window.iter().map(|loss| (loss - mean).powi(2)).sum::<f64>() / count).sqrt();
        self.window.last().filter(|_| deviation > 0.0).map_or(0.0, |loss| (loss - mean) / deviation)
    }
}

impl WorkerPolicy for HermesWorker {
    fn name(&self) -> &'static str {
        "hermes"
    }

    fn next(&mut self, event: WorkerEvent) -> (Action, Reason) {
        match event {
            WorkerEvent::Started { .. } => self.step(),
            WorkerEvent::Stepped { .. } if self.steps < self.steps_per_evaluation => self.step(),
            WorkerEvent::Stepped { .. } => (Action::Evaluate, why("the epoch is over")),
            WorkerEvent::Evaluated { loss, .. } => {
                self.window.push(loss);
                let local_steps = LocalSteps(std::mem::take(&mut self.steps));
                let z = self.z_score();
                if z > self.threshold {
                    let report = Report::Evaluated { loss, local_steps, step_seconds: 0.1 };
                    return (Action::Report(report), why(&format!("z = {z:.2}: minor")));
                }
                self.window.clear();
                self.pull_next = true;
                let (payload, fragment) = (Payload::Parameters, Fragment::Whole);
                (Action::Push { payload, fragment }, why(&format!("z = {z:.2}: major")))
            }
            WorkerEvent::Replied(Reply::SetBatch { batch_size, data_budget }) => {
                (Action::SetBatch { batch_size, data_budget }, why("the server sizes the work"))
            }
            WorkerEvent::Replied(Reply::Stop) | WorkerEvent::StopRequested => {
                (Action::Stop, Reason::StopRequested)
            }
            _ if std::mem::take(&mut self.pull_next) => {
                (Action::Pull { install: Install::Rebase }, why("merged"))
            }
            _ => self.step(),
        }
    }
}

/// Merges by loss, gives the slow smaller shares of data, and ends when the loss stops improving.
struct HermesServer {
    epoch_seconds: f64,
    patience: u32,
    best: f64,
    asked: Option<Rank>,
}

impl Coordinator for HermesServer {
    fn on(&mut self, _now: Duration, from: Rank, report: Report) -> Vec<Directive> {
        match report {
            Report::Evaluated { local_steps, step_seconds, .. } => {
                let late = local_steps.0 as f64 * step_seconds > self.epoch_seconds;
                let batch_size = if late { 8 } else { 16 };
                let reply = Reply::SetBatch { batch_size, data_budget: Some(batch_size * 100) };
                vec![Directive::Reply { to: from, reply, reason: why("epochs should take equally long") }]
            }
            Report::Pushed { .. } => {
                self.asked = Some(from);
                let reason = why("inverse losses weigh the displacements");
                vec![Directive::Apply { from, rule: PushRule::LossWeighted, reason }, Directive::Evaluate]
            }
            Report::GlobalLoss { loss } => {
                self.patience = if loss < self.best { 2 } else { self.patience - 1 };
                self.best = self.best.min(loss);
                let reply = if self.patience == 0 { Reply::Stop } else { Reply::Pull };
                let to = self.asked.take().expect("somebody pushed");
                vec![Directive::Reply { to, reply, reason: why("the merged parameters") }]
            }
            _ => Vec::new(),
        }
    }

    fn lost(&mut self, _now: Duration, rank: Rank) -> Vec<Directive> {
        self.asked = self.asked.filter(|&asked| asked != rank);
        Vec::new()
    }
}

#[test]
fn hermes_gates_its_pushes_and_sizes_its_batches() {
    let (threshold, window) = (-1.3, Vec::new());
    let mut worker = HermesWorker { steps_per_evaluation: 2, threshold, window, steps: 0, pull_next: false };
    let mut server = HermesServer { epoch_seconds: 0.15, patience: 2, best: f64::INFINITY, asked: None };
    let mut losses = [1.0, 1.01, 0.5, 0.9, 0.91, 0.4, 0.8, 0.81, 0.3].into_iter();
    let mut global_losses = [0.6, 0.7, 0.8].into_iter();
    let (mut batches, mut merges) = (Vec::new(), 0);
    let actions = drive(&mut worker, |action| match action {
        Action::Step { .. } => stepped(),
        Action::Evaluate => WorkerEvent::Evaluated { loss: losses.next().expect("scripted"), accuracy: 0.5 },
        Action::Report(report) => apply(server.on(Duration::ZERO, 0, report.clone()), |_| {}),
        Action::SetBatch { batch_size, data_budget } => {
            batches.push((*batch_size, *data_budget));
            WorkerEvent::BatchSet
        }
        Action::Push { payload, .. } => {
            assert_eq!(*payload, Payload::Parameters);
            let (payload, local_steps, samples, loss) = (*payload, LocalSteps(2), 32, 1.0);
            let report = pushed(payload, local_steps, samples, loss, Versions(0));
            let directives = server.on(Duration::ZERO, 0, report);
            assert!(matches!(
                directives[..],
                [Directive::Apply { rule: PushRule::LossWeighted, .. }, Directive::Evaluate]
            ));
            merges += 1;
            let report = Report::GlobalLoss { loss: global_losses.next().expect("scripted") };
            apply(server.on(Duration::ZERO, 0, report), |_| {})
        }
        Action::Pull { .. } => WorkerEvent::Pulled { version: Versions(merges) },
        other => panic!("{other:?}"),
    });
    let letters: String = actions.iter().map(letter).collect();
    assert_eq!(
        letters, "sserbsserbssePLsserbsserbssePLsserbsserbsseP.",
        "two minor epochs before each major one"
    );
    assert_eq!((merges, batches.len()), (3, 6));
    assert!(batches.iter().all(|&batch| batch == (8, Some(800))), "epochs of 0.2 s are late: {batches:?}");
}
