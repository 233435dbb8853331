//! The parameter server over threads: exact sums, whole pulls, deaths, deadlines, idleness.

use esync::collective::{Communicator, CommunicatorOptions};
use esync::policy::{Coordinator, Directive, LocalSteps, Payload, PushRule, Reason, Reply, Report, Versions};
use esync::runtime::server::{Established, Link, Placement, Rule, ServerOptions, Unsupervised, establish};
use esync::transport::{Rank, threads};
use esync::{Error, Result};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

fn why(words: &str) -> Reason {
    Reason::Custom(words.into())
}

/// Adds every push at once, and answers it with the parameters.
struct Adding;

impl Coordinator for Adding {
    fn on(&mut self, _now: Duration, from: Rank, report: Report) -> Vec<Directive> {
        let reply = Directive::Reply { to: from, reply: Reply::Pull, reason: why("nobody waits") };
        match report {
            Report::Pushed { .. } => {
                let rule = PushRule::Add { scale: 1.0 };
                vec![Directive::Apply { from, rule, reason: why("every push counts") }, reply]
            }
            _ => vec![reply],
        }
    }

    fn lost(&mut self, _now: Duration, _rank: Rank) -> Vec<Directive> {
        Vec::new()
    }
}

/// Holds every reply until all workers that are left have pushed.
struct Meeting {
    left: BTreeSet<Rank>,
    here: BTreeSet<Rank>,
}

impl Meeting {
    fn release(&mut self) -> Vec<Directive> {
        if !self.left.is_subset(&self.here) {
            return Vec::new();
        }
        let reply = |to| Directive::Reply { to, reply: Reply::Pull, reason: why("all are here") };
        std::mem::take(&mut self.here).into_iter().map(reply).collect()
    }
}

impl Coordinator for Meeting {
    fn on(&mut self, _now: Duration, from: Rank, _report: Report) -> Vec<Directive> {
        self.here.insert(from);
        let rule = PushRule::Add { scale: 1.0 };
        let mut directives = vec![Directive::Apply { from, rule, reason: why("every push counts") }];
        directives.extend(self.release());
        directives
    }

    fn lost(&mut self, _now: Duration, rank: Rank) -> Vec<Directive> {
        self.left.remove(&rank);
        self.here.remove(&rank);
        self.release()
    }
}

/// Never answers.
struct Silent;

impl Coordinator for Silent {
    fn on(&mut self, _now: Duration, _from: Rank, _report: Report) -> Vec<Directive> {
        Vec::new()
    }

    fn lost(&mut self, _now: Duration, _rank: Rank) -> Vec<Directive> {
        Vec::new()
    }
}

fn pushed() -> Report {
    Report::Pushed {
        payload: Payload::Delta,
        local_steps: LocalSteps(1),
        samples: 8,
        loss: 1.0,
        norm: 1.0,
        seconds_since_push: 0.1,
        compute_seconds: 0.1,
        base: Versions(0),
    }
}

/// Sends one push and returns what it pulls.
fn push(link: &mut Link, values: &[f32]) -> Result<(Vec<f32>, Versions)> {
    link.push(Payload::Delta, values, pushed(), 8, 0)?;
    let answer = link.answer("a push")?;
    assert_eq!(answer.reply, Reply::Pull);
    Ok((answer.parameters.unwrap(), answer.version))
}

/// Every rank gets its line to a server whose parameters are all zero, the last of them a statistic.
fn with_server<R: Send>(
    size: usize,
    len: usize,
    options: ServerOptions,
    timeout: Duration,
    coordinator: impl Fn() -> Box<dyn Coordinator> + Sync,
    body: impl Fn(Rank, &mut Communicator, Established) -> Result<R> + Sync,
) -> Vec<Result<R>> {
    threads::run(size, |transport| {
        let communicator_options = CommunicatorOptions { timeout, ..CommunicatorOptions::default() };
        let mut communicator = Communicator::new(Arc::new(transport), communicator_options)?;
        let rule =
            || Ok(Rule { coordinator: coordinator(), overseer: Box::new(|_| Ok(Box::new(Unsupervised))) });
        let established = establish(&mut communicator, &options, &vec![0.0; len], len - 1, rule)?;
        if let Some(service) = &established.service {
            service.handle().begin();
        }
        body(communicator.rank(), &mut communicator, established)
    })
}

const LONG: Duration = Duration::from_secs(50);

fn finish(established: Established) -> Result<Vec<f32>> {
    let Established { mut link, service } = established;
    link.goodbye()?;
    let finale = link.finale(Some(LONG))?;
    drop(link);
    service.map_or(Ok(()), |service| service.join())?;
    Ok(finale.parameters)
}

#[test]
fn sums_are_exact_whatever_the_shards() {
    const PUSHES: usize = 20;
    const LEN: usize = 1001;
    for (workers, servers) in [(2, 1), (3, 2), (5, 3), (8, 4)] {
        let options = ServerOptions { servers, ..ServerOptions::default() };
        let results = with_server(
            workers,
            LEN,
            options,
            LONG,
            || Box::new(Adding),
            |rank, _, mut established| {
                for number in 0..PUSHES {
                    // Integers, so that no order of summation rounds.
                    let values: Vec<f32> = (0..LEN).map(|i| ((i % 7) + rank + number) as f32).collect();
                    push(&mut established.link, &values)?;
                }
                finish(established)
            },
        );
        for result in results {
            let parameters = result.unwrap();
            for (index, &sum) in parameters[..LEN - 1].iter().enumerate() {
                let expected: usize =
                    (0..workers).flat_map(|rank| (0..PUSHES).map(move |n| (index % 7) + rank + n)).sum();
                assert_eq!(sum, expected as f32, "{workers} workers, {servers} servers, element {index}");
            }
        }
    }
}

/// Adds every push at once, and sends parameters only to those who ask.
struct Quiet;

impl Coordinator for Quiet {
    fn on(&mut self, now: Duration, from: Rank, report: Report) -> Vec<Directive> {
        let is_push = matches!(report, Report::Pushed { .. });
        let mut directives = Adding.on(now, from, report);
        if let (true, Some(Directive::Reply { reply, .. })) = (is_push, directives.last_mut()) {
            *reply = Reply::Continue;
        }
        directives
    }

    fn lost(&mut self, _now: Duration, _rank: Rank) -> Vec<Directive> {
        Vec::new()
    }
}

#[test]
fn a_push_may_reach_a_shard_before_the_decision_on_the_last_one() {
    const LEN: usize = 200;
    let options = ServerOptions { servers: 4, ..ServerOptions::default() };
    let results = with_server(
        6,
        LEN,
        options,
        LONG,
        || Box::new(Quiet),
        |_, _, mut established| {
            for _ in 0..200 {
                established.link.push(Payload::Delta, &[1.0; LEN], pushed(), 8, 0)?;
                assert_eq!(established.link.answer("a push")?.reply, Reply::Continue);
            }
            established.link.report(Report::PullRequested, 0, 0)?;
            let answer = established.link.answer("a pull")?;
            let (pulled, version) = (answer.parameters.unwrap(), answer.version);
            assert!(pulled[..LEN - 1].iter().all(|&value| value == version.0 as f32));
            finish(established)
        },
    );
    for result in results {
        assert_eq!(result.unwrap()[..LEN - 1], [1200.0; LEN - 1]);
    }
}

#[test]
fn a_pull_is_of_one_version() {
    const LEN: usize = 5000;
    for (workers, servers) in [(4, 3), (8, 4)] {
        let options = ServerOptions { servers, ..ServerOptions::default() };
        let results = with_server(
            workers,
            LEN,
            options,
            LONG,
            || Box::new(Adding),
            |_, _, mut established| {
                let mut last = Versions(0);
                for _ in 0..50 {
                    let (pulled, version) = push(&mut established.link, &[1.0; LEN])?;
                    // Every push adds one to every element: the version can be read in each of them.
                    let trained = &pulled[..LEN - 1];
                    assert!(trained.iter().all(|&value| value == version.0 as f32), "version {version}");
                    assert!(version > last);
                    last = version;
                    established.link.recycle(pulled);
                }
                finish(established)
            },
        );
        for result in results {
            assert!(result.unwrap()[..LEN - 1].iter().all(|&value| value == (50 * workers) as f32));
        }
    }
}

#[test]
fn narrow_wires_carry_what_fits_into_them() {
    for wire in [esync::reduce::WireFormat::F16, esync::reduce::WireFormat::Bf16] {
        let options = ServerOptions { servers: 2, wire, ..ServerOptions::default() };
        let results = with_server(
            3,
            301,
            options,
            LONG,
            || Box::new(Adding),
            |_, _, mut established| {
                let (pulled, _) = push(&mut established.link, &[1.0; 301])?;
                assert!(pulled[..300].iter().all(|value| [1.0, 2.0, 3.0].contains(value)), "{wire}");
                assert_eq!((established.link.bytes_sent(), established.link.bytes_received()), (604, 604));
                finish(established)
            },
        );
        results.into_iter().for_each(|result| assert_eq!(result.unwrap()[0], 3.0));
    }
}

#[test]
fn servers_may_have_ranks_of_their_own() {
    let options = ServerOptions { servers: 2, placement: Placement::Dedicated, ..ServerOptions::default() };
    let results = with_server(
        5,
        100,
        options,
        LONG,
        || Box::new(Adding),
        |rank, _, mut established| {
            assert_eq!(established.service.is_some(), rank >= 3);
            if rank < 3 {
                push(&mut established.link, &[1.0; 100])?;
                return finish(established);
            }
            // Not a worker: it waits for the end as long as that takes.
            let finale = established.link.finale(None)?;
            drop(established.link);
            established.service.unwrap().join()?;
            Ok(finale.parameters)
        },
    );
    for result in results {
        assert_eq!(result.unwrap()[..99], [3.0; 99]);
    }
}

#[test]
fn a_worker_that_dies_holds_up_nobody() {
    for servers in [1, 3] {
        let options = ServerOptions { servers, ..ServerOptions::default() };
        let meeting = || -> Box<dyn Coordinator> {
            Box::new(Meeting { left: (0..4).collect(), here: BTreeSet::new() })
        };
        let results = with_server(4, 50, options, LONG, meeting, |rank, _, mut established| {
            for round in 0..5 {
                if rank == 3 && round == 2 {
                    // Its line is dropped without a goodbye.
                    return Err(Error::Training("this worker has died".into()));
                }
                push(&mut established.link, &[1.0; 50])?;
            }
            finish(established)
        });
        for (rank, result) in results.into_iter().enumerate() {
            match rank {
                3 => assert!(result.is_err()),
                _ => assert_eq!(result.unwrap()[0], (3 * 5 + 2) as f32, "rank {rank}, {servers} servers"),
            }
        }
    }
}

#[test]
fn a_worker_that_panics_holds_up_nobody() {
    let meeting =
        || -> Box<dyn Coordinator> { Box::new(Meeting { left: (0..3).collect(), here: BTreeSet::new() }) };
    let results = with_server(3, 50, ServerOptions::default(), LONG, meeting, |rank, _, mut established| {
        push(&mut established.link, &[1.0; 50])?;
        assert!(rank != 1, "this worker panics");
        push(&mut established.link, &[1.0; 50])?;
        finish(established)
    });
    let [first, second, third] = &results[..] else { panic!("three ranks") };
    assert!(second.is_err());
    for result in [first, third] {
        assert_eq!(result.as_ref().unwrap()[0], 5.0);
    }
}

#[test]
fn a_server_that_does_not_answer_is_named_at_the_deadline() {
    let timeout = Duration::from_millis(400);
    let dedicated = ServerOptions { placement: Placement::Dedicated, ..ServerOptions::default() };
    let done = AtomicBool::new(false);
    let results = with_server(
        3,
        20,
        dedicated,
        timeout,
        || Box::new(Silent),
        |rank, _, mut established| {
            if rank == 2 {
                while !done.load(Ordering::Relaxed) {
                    std::thread::sleep(Duration::from_millis(5));
                }
                return Ok(());
            }
            let since = Instant::now();
            let error = push(&mut established.link, &[1.0; 20]).unwrap_err();
            done.store(true, Ordering::Relaxed);
            assert!((0.4..5.0).contains(&since.elapsed().as_secs_f64()), "{:?}", since.elapsed());
            assert_eq!(error.exit_code(), 6, "{error}");
            let text = error.to_string();
            assert!(text.contains("rank 2") && text.contains("a push"), "{text}");
            Ok(())
        },
    );
    results.into_iter().for_each(|result| result.unwrap());
}

/// Fails at the third push.
struct Failing {
    pushes: u32,
}

impl Coordinator for Failing {
    fn on(&mut self, now: Duration, from: Rank, report: Report) -> Vec<Directive> {
        self.pushes += 1;
        assert!(self.pushes < 3, "the rule has failed");
        Adding.on(now, from, report)
    }

    fn lost(&mut self, _now: Duration, _rank: Rank) -> Vec<Directive> {
        Vec::new()
    }
}

#[test]
fn a_server_that_dies_ends_every_wait_at_once() {
    for servers in [1, 2] {
        let options = ServerOptions { servers, ..ServerOptions::default() };
        let rule = || -> Box<dyn Coordinator> { Box::new(Failing { pushes: 0 }) };
        let since = Instant::now();
        let results = with_server(4, 20, options, LONG, rule, |_, _, mut established| {
            let error = push(&mut established.link, &[1.0; 20])
                .and_then(|_| established.link.finale(Some(LONG)).map(drop))
                .unwrap_err();
            assert_eq!(error.exit_code(), 5, "{error}");
            assert!(error.to_string().contains("rank 0"), "{error}");
            Ok(())
        });
        results.into_iter().for_each(|result| result.unwrap());
        assert!(since.elapsed() < Duration::from_secs(10), "{:?}", since.elapsed());
    }
}

#[test]
fn options_that_do_not_fit_are_refused() {
    let check = |size: usize, options: ServerOptions, words: &str| {
        let results = with_server(
            size,
            10,
            options,
            LONG,
            || Box::new(Adding),
            |_, _, established| finish(established),
        );
        for result in results {
            let error = result.unwrap_err();
            assert_eq!(error.exit_code(), 2, "{error}");
            assert!(error.to_string().contains(words), "{error}");
        }
    };
    let of = |servers| ServerOptions { servers, ..ServerOptions::default() };
    check(2, of(3), "--servers is 3");
    check(2, of(0), "--servers is 0");
    check(2, ServerOptions { placement: Placement::Dedicated, ..of(2) }, "leaves none");
    check(2, ServerOptions { wire: esync::reduce::WireFormat::Int8, ..of(1) }, "int8");
}
