//! The rules of the parameter server's modes under random orders of arrival and random deaths: every push is consumed once,
//! nobody waits for ever, and each mode keeps its own promise about staleness.

use esync::policy::{
    Action, Coordinator, Directive, Job, LocalSteps, Mode, Payload, PolicyOptions, PushRule, PushScale,
    Replica, Reply, Report, Store, Versions, WorkerEvent, WorkerPolicy, norm,
};
use proptest::prelude::*;
use std::time::Duration;

const BATCH: usize = 8;

struct Worker {
    policy: Box<dyn WorkerPolicy>,
    parameters: [f32; 2],
    replica: Replica<f32>,
    /// What the policy is told next; `None` while it waits for the server.
    event: Option<WorkerEvent>,
    pulled: Option<([f32; 2], Versions)>,
    base: Versions,
    /// What was pushed and not applied.
    pending: Option<(Payload, [f32; 2])>,
    steps: u64,
    steps_since_push: u64,
    batch_size: usize,
    /// The version after each of its pushes.
    applied_at: Vec<u64>,
    is_live: bool,
}

/// A server and its workers, each with a quadratic loss around a target of its own.
struct Cluster {
    coordinator: Box<dyn Coordinator>,
    store: Store,
    workers: Vec<Worker>,
    learning_rate: f32,
    /// Sum of scale · delta over all that was applied, in f64.
    applied: [f64; 2],
    staleness: Vec<(usize, u64)>,
    order: Vec<usize>,
}

fn job(size: usize) -> Job {
    Job {
        size,
        step_seconds: vec![1.0; size].into(),
        shard_samples: vec![64; size].into(),
        batch_size: BATCH,
        learning_rate: 0.1,
        budget_samples: None,
    }
}

fn target(rank: usize) -> [f32; 2] {
    [rank as f32 - 1.5, 2.0 * rank as f32]
}

impl Cluster {
    fn new(mode: &str, options: &PolicyOptions, size: usize) -> Cluster {
        let (mode, job) = (Mode::by_name(mode).unwrap(), job(size));
        let start = [1.0, -1.0];
        let mut store = Store::new(&start, 2, size).unwrap();
        if mode.needs_backups() {
            store = store.with_backups();
        }
        let worker = |rank| Worker {
            policy: mode.worker(options, &job, rank).unwrap(),
            parameters: start,
            replica: Replica::new(&start, 2).unwrap(),
            event: Some(WorkerEvent::Started { rank, step_seconds: job.step_seconds.clone() }),
            pulled: None,
            base: Versions(0),
            pending: None,
            steps: 0,
            steps_since_push: 0,
            batch_size: BATCH,
            applied_at: Vec::new(),
            is_live: true,
        };
        Cluster {
            coordinator: mode.coordinator(options, &job).unwrap().expect("a server's mode"),
            store,
            workers: (0..size).map(worker).collect(),
            learning_rate: job.learning_rate as f32,
            applied: [0.0; 2],
            staleness: Vec::new(),
            order: Vec::new(),
        }
    }

    fn live(&self) -> impl Iterator<Item = &Worker> {
        self.workers.iter().filter(|worker| worker.is_live)
    }

    /// Who can go on.
    fn ready(&self) -> Vec<usize> {
        let ready = |&rank: &usize| self.workers[rank].is_live && self.workers[rank].event.is_some();
        (0..self.workers.len()).filter(ready).collect()
    }

    /// One action of a worker. Answers whether it was a step.
    fn go_on(&mut self, rank: usize) -> bool {
        let worker = &mut self.workers[rank];
        let event = worker.event.take().expect("it is ready");
        let (action, reason) = worker.policy.next(event);
        assert!(!reason.to_string().is_empty());
        match action {
            Action::Step { update } => {
                let target = target(rank);
                if update == esync::policy::Update::Local {
                    for (x, target) in worker.parameters.iter_mut().zip(target) {
                        *x -= self.learning_rate * (*x - target);
                    }
                    worker.replica.step_taken();
                }
                worker.steps += 1;
                worker.steps_since_push += 1;
                worker.event =
                    Some(WorkerEvent::Stepped { step_seconds: 1.0, samples: worker.batch_size, loss: 1.0 });
                return true;
            }
            Action::Push { payload, .. } => {
                assert_eq!(worker.pending, None, "one push at a time");
                let mut values = [0.0; 2];
                match payload {
                    Payload::Delta => {
                        worker.replica.take_delta(&worker.parameters, &mut values).unwrap();
                    }
                    Payload::Parameters => values = worker.parameters,
                    Payload::Gradient => {
                        let target = target(rank);
                        values = [worker.parameters[0] - target[0], worker.parameters[1] - target[1]];
                    }
                }
                worker.pending = Some((payload, values));
                let steps = std::mem::take(&mut worker.steps_since_push);
                let report = Report::Pushed {
                    payload,
                    local_steps: LocalSteps(steps),
                    samples: steps * worker.batch_size as u64,
                    loss: 1.0,
                    seconds_since_push: 1.0,
                    compute_seconds: steps as f64 * (1 + rank) as f64 * worker.batch_size as f64,
                    base: worker.base,
                    norm: norm(&values),
                };
                let directives = self.coordinator.on(Duration::ZERO, rank, report);
                self.carry_out(directives);
            }
            Action::Pull { install } => {
                let Some((values, version)) = worker.pulled.take() else {
                    let directives = self.coordinator.on(Duration::ZERO, rank, Report::PullRequested);
                    // The answer makes the policy's next event; the pull is then carried out.
                    self.carry_out(directives);
                    let worker = &mut self.workers[rank];
                    assert_eq!(worker.event.take(), Some(WorkerEvent::Replied(Reply::Pull)));
                    let (values, version) = worker.pulled.take().expect("it was answered");
                    worker.install(&values, version, install);
                    return false;
                };
                worker.install(&values, version, install);
            }
            Action::SetBatch { batch_size, .. } => {
                worker.batch_size = batch_size;
                worker.event = Some(WorkerEvent::BatchSet);
            }
            other => panic!("{other:?}"),
        }
        false
    }

    fn carry_out(&mut self, directives: Vec<Directive>) {
        for directive in directives {
            match directive {
                Directive::Apply { from, rule, reason } => {
                    assert!(!reason.to_string().is_empty());
                    let worker = &mut self.workers[from];
                    let (payload, values) = worker.pending.take().expect("each push is applied once");
                    self.staleness.push((from, self.store.version().0 - worker.base.0));
                    self.order.push(from);
                    if let PushRule::Add { scale } = rule {
                        for (applied, value) in self.applied.iter_mut().zip(values) {
                            *applied += scale * f64::from(value);
                        }
                    }
                    self.store.apply(from, payload, &values, rule, &mut |_| unreachable!()).unwrap();
                    worker.applied_at.push(self.store.version().0);
                }
                Directive::Reply { to, reply, reason } => {
                    assert!(!reason.to_string().is_empty());
                    let worker = &mut self.workers[to];
                    assert!(worker.is_live, "the dead are not answered");
                    assert_eq!(worker.event, None, "each report is answered once");
                    if reply == Reply::Pull {
                        let (values, version) = self.store.pull(to);
                        worker.pulled = Some(([values[0], values[1]], version));
                    }
                    worker.event = Some(WorkerEvent::Replied(reply));
                }
                other => panic!("{other:?}"),
            }
        }
    }

    fn kill(&mut self, rank: usize) {
        let worker = &mut self.workers[rank];
        if std::mem::take(&mut worker.is_live) {
            worker.pending = None;
            let directives = self.coordinator.lost(Duration::ZERO, rank);
            self.carry_out(directives);
        }
    }

    /// Runs in the order that `choices` say. `check` sees the cluster whenever a worker has stepped.
    fn run(&mut self, choices: &[Choice], mut check: impl FnMut(&Cluster, usize)) {
        for choice in choices {
            let ready = self.ready();
            assert_eq!(ready.is_empty(), self.live().next().is_none(), "nobody waits for ever");
            if ready.is_empty() {
                return;
            }
            match choice {
                Choice::Go(index) => {
                    let rank = ready[index % ready.len()];
                    if self.go_on(rank) {
                        check(self, rank);
                    }
                }
                Choice::Die(index) => self.kill(index % self.workers.len()),
            }
        }
    }

    /// The server's parameters are where the applied deltas have taken them.
    fn nothing_is_lost_or_added(&self) {
        for ((w, start), applied) in self.store.parameters().iter().zip([1.0, -1.0]).zip(self.applied) {
            assert!((f64::from(*w) - (start + applied)).abs() < 1e-3 * applied.abs().max(1.0));
        }
    }
}

impl Worker {
    fn install(&mut self, values: &[f32; 2], version: Versions, install: esync::policy::Install) {
        let requested = self.replica.request();
        self.replica.install(requested, &mut self.parameters, values, install).unwrap();
        self.base = version;
        self.event = Some(WorkerEvent::Pulled { version });
    }
}

#[derive(Debug, Clone)]
enum Choice {
    Go(usize),
    Die(usize),
}

fn choices(deaths: u32) -> impl Strategy<Value = Vec<Choice>> {
    let choice = prop_oneof![
        200 => (0..64_usize).prop_map(Choice::Go),
        deaths => (0..64_usize).prop_map(Choice::Die),
    ];
    prop::collection::vec(choice, 300..600)
}

fn options() -> PolicyOptions {
    PolicyOptions::default()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn nobody_waits_for_ever(
        mode in prop::sample::select(vec!["async", "dc-asgd", "ssp", "bounded-delay", "easgd", "r2sp"]),
        size in 1..7_usize,
        staleness in 0..5_u64,
        choices in choices(2),
    ) {
        let bounded = matches!(mode, "ssp" | "bounded-delay");
        let options = PolicyOptions { staleness: bounded.then_some(staleness), ..options() };
        let mut cluster = Cluster::new(mode, &options, size);
        cluster.run(&choices, |_, _| {});
        if !matches!(mode, "dc-asgd" | "easgd") {
            cluster.nothing_is_lost_or_added();
        }
    }

    #[test]
    fn what_is_taken_is_applied(
        mode in prop::sample::select(vec!["async", "ssp", "bounded-delay"]),
        size in 1..7_usize,
        choices in choices(0),
    ) {
        let options = PolicyOptions { push_scale: Some(PushScale::Sum), ..options() };
        let mut cluster = Cluster::new(mode, &options, size);
        cluster.run(&choices, |_, _| {});
        let steps: u64 = cluster.workers.iter().map(|worker| worker.steps).sum();
        let unsent: u64 = cluster.workers.iter().map(|worker| worker.steps_since_push).sum();
        prop_assert_eq!(cluster.order.len() as u64, steps - unsent);
        cluster.nothing_is_lost_or_added();
    }

    #[test]
    fn ssp_reads_what_its_bound_promises(
        size in 1..7_usize,
        bound in 0..5_u64,
        choices in choices(2),
    ) {
        let options = PolicyOptions { staleness: Some(bound), ..options() };
        Cluster::new("ssp", &options, size).run(&choices, |cluster, rank| {
            let worker = &cluster.workers[rank];
            // The step that was just taken was computed at this clock.
            let clock = worker.steps - 1;
            for other in cluster.live() {
                let needed = clock.saturating_sub(bound) as usize;
                assert!(other.applied_at.len() >= needed, "{clock} {needed}");
                assert!(needed == 0 || other.applied_at[needed - 1] <= worker.base.0, "it was read");
            }
        });
    }

    #[test]
    fn bounded_delay_keeps_its_bound(size in 1..7_usize, bound in 0..12_u64, choices in choices(2)) {
        let options = PolicyOptions { staleness: Some(bound), ..options() };
        let mut cluster = Cluster::new("bounded-delay", &options, size);
        cluster.run(&choices, |_, _| {});
        let most = cluster.staleness.iter().map(|&(_, staleness)| staleness).max().unwrap_or(0);
        prop_assert!(most < bound + size as u64, "{most}");
    }

    #[test]
    fn r2sp_goes_round(size in 1..7_usize, choices in choices(0)) {
        let options = PolicyOptions { batch_tuning: Some(false), ..options() };
        let mut cluster = Cluster::new("r2sp", &options, size);
        cluster.run(&choices, |_, _| {});
        for (index, &rank) in cluster.order.iter().enumerate() {
            prop_assert_eq!(rank, index % size);
        }
        for &(rank, staleness) in &cluster.staleness[size.min(cluster.staleness.len())..] {
            prop_assert_eq!(staleness, size as u64 - 1, "rank {}", rank);
        }
    }

    #[test]
    fn nobody_is_held_by_asynchronous_modes(
        mode in prop::sample::select(vec!["async", "dc-asgd", "easgd"]),
        size in 1..7_usize,
        choices in choices(1),
    ) {
        let mut cluster = Cluster::new(mode, &options(), size);
        for choice in choices {
            if let Choice::Die(rank) = choice {
                cluster.kill(rank % size);
            }
            let ready = cluster.ready();
            prop_assert_eq!(ready.len(), cluster.live().count());
            if let Some(&rank) = ready.first() {
                cluster.go_on(rank);
            }
        }
    }

    #[test]
    fn ssp_with_bound_0_is_synchronous_sgd(size in 1..7_usize, choices in choices(0)) {
        let options = PolicyOptions { staleness: Some(0), ..options() };
        let mut cluster = Cluster::new("ssp", &options, size);
        cluster.run(&choices, |_, _| {});
        let rounds = cluster.order.len() / size;
        let mut expected = [1.0_f64, -1.0];
        for _ in 0..rounds {
            for (index, w) in expected.iter_mut().enumerate() {
                let mean = (0..size).map(|rank| *w - f64::from(target(rank)[index])).sum::<f64>() / size as f64;
                *w -= 0.1 * mean;
            }
        }
        if cluster.order.len().is_multiple_of(size) {
            for (is, should) in cluster.store.parameters().iter().zip(expected) {
                prop_assert!((f64::from(*is) - should).abs() < 1e-4, "{is} {should}");
            }
        }
    }
}

#[test]
fn r2sp_gives_fast_workers_larger_batches() {
    let mut cluster = Cluster::new("r2sp", &options(), 2);
    let choices: Vec<Choice> = (0..600).map(Choice::Go).collect();
    cluster.run(&choices, |_, _| {});
    // A sample takes rank 1 twice as long: 16 samples a cycle are shared 10 to 5.
    let batches: Vec<usize> = cluster.workers.iter().map(|worker| worker.batch_size).collect();
    assert_eq!(batches, [10, 5]);
    cluster.nothing_is_lost_or_added();
}
