//! The state server's mechanisms against the coordinator that they stand for.

use super::socket::{self, Invitation};
use super::{Mechanism, StateServer, establish};
use crate::collective::{Communicator, CommunicatorOptions};
use crate::error::Result;
use crate::policy::esync::{EsyncCoordinator, Settings};
use crate::policy::{Coordinator, Directive, LocalSteps, Reason, Reply, Report};
use crate::transport::{Rank, threads};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

fn stepped(round: u64, local_steps: u64, step_seconds: f64) -> Report {
    Report::Stepped {
        round,
        local_steps: LocalSteps(local_steps),
        step_seconds,
        low_step_seconds: step_seconds,
        transfer_seconds: 0.0,
        round_seconds: 0.0,
    }
}

/// Every rank of a group of threads gets its line to a state server over `mechanism`.
fn with_servers<R: Send>(
    step_seconds: &[f64],
    settings: &Settings,
    mechanism: Mechanism,
    body: impl Fn(Rank, &mut Communicator, Box<dyn StateServer>) -> Result<R> + Sync,
) -> Vec<R> {
    let results = threads::run(step_seconds.len(), |transport| {
        let mut communicator = Communicator::new(Arc::new(transport), CommunicatorOptions::default())?;
        let established = establish(&mut communicator, settings, step_seconds, mechanism)?;
        assert_eq!(established.notice, None);
        let server = established.state_server.unwrap();
        body(communicator.rank(), &mut communicator, server)
    });
    results.into_iter().map(Result::unwrap).collect()
}

/// The reply, and the reason without its seconds, which depend on the moment.
fn told((reply, reason): (Reply, impl ToString)) -> (Reply, String) {
    (reply, reason.to_string().chars().filter(|c| !c.is_ascii_digit() && *c != '.').collect())
}

const MECHANISMS: [(Mechanism, &str); 2] = [(Mechanism::Page, "shared page"), (Mechanism::Socket, "socket")];

#[test]
fn both_mechanisms_reply_as_the_coordinator_does() {
    // Seconds so long that the moments of the test do not matter.
    let step_seconds = [100.0, 800.0, 1000.0, 400.0];
    let settings = Settings { max_local_steps: Some(3), ..Settings::default() };
    let script: Vec<(Rank, Report)> = vec![
        (0, stepped(0, 1, 100.0)),  // fits before rank 2
        (1, stepped(0, 1, 800.0)),  // a round holds only one
        (3, stepped(0, 1, 400.0)),  // fits
        (0, stepped(0, 2, 100.0)),  // fits
        (0, stepped(0, 3, 100.0)),  // the most
        (2, stepped(0, 1, 1000.0)), // the straggler
        (3, stepped(0, 2, 400.0)),  // nobody is left to wait for
        (0, stepped(1, 1, 100.0)),  // a new round
        (2, stepped(1, 1, 50.0)),   // the straggler has become fast: rank 1 is the slowest now
        (1, stepped(1, 1, 800.0)),  // the straggler
        (3, stepped(1, 1, 0.0)),    // faster than can be measured
        (0, Report::PullRequested), // no business of this server
    ];
    let mut coordinator = EsyncCoordinator::new(4, settings.clone()).with_step_seconds(&step_seconds);
    let started = Instant::now();
    let mut answer =
        |(from, report): &(Rank, Report)| match &coordinator.on(started.elapsed(), *from, report.clone())[..]
        {
            [Directive::Reply { to, reply, reason }] if to == from => told((reply.clone(), reason)),
            other => panic!("{other:?}"),
        };
    let expected: Vec<(Reply, String)> = script.iter().map(&mut answer).collect();
    let kinds = |kind: Reply| expected.iter().filter(|(reply, _)| *reply == kind).count();
    assert!(
        kinds(Reply::Train) >= 4 && kinds(Reply::Synchronize) >= 4,
        "the script tries both: {expected:?}"
    );

    for (mechanism, name) in MECHANISMS {
        let replies = with_servers(&step_seconds, &settings, mechanism, |rank, communicator, mut server| {
            assert_eq!(server.name(), name);
            let mut own = Vec::new();
            for (index, (from, report)) in script.iter().enumerate() {
                if *from == rank {
                    own.push((index, told(server.ask(report)?)));
                }
                communicator.barrier()?;
            }
            Ok(own)
        });
        let mut replies: Vec<(usize, (Reply, String))> = replies.into_iter().flatten().collect();
        replies.sort_by_key(|(index, _)| *index);
        let replies: Vec<(Reply, String)> = replies.into_iter().map(|(_, reply)| reply).collect();
        assert_eq!(replies, expected, "{name}");
    }
}

#[test]
fn nobody_waits_for_a_worker_that_was_dropped() {
    for (mechanism, name) in MECHANISMS {
        with_servers(&[100.0, 1000.0], &Settings::default(), mechanism, |rank, communicator, server| {
            let mut server = Some(server);
            let ask = |server: &mut Option<Box<dyn StateServer>>| {
                server.as_mut().unwrap().ask(&stepped(0, 1, 100.0))
            };
            if rank == 0 {
                assert_eq!(ask(&mut server)?.0, Reply::Train, "{name}: rank 1 is waited for");
            }
            communicator.barrier()?;
            if rank == 1 {
                server = None;
            }
            communicator.barrier()?;
            // A socket's other end learns it a little later.
            let since = Instant::now();
            while rank == 0 && ask(&mut server)?.1.to_string() != Reason::Alone.to_string() {
                assert!(since.elapsed() < Duration::from_secs(20), "{name}: rank 1 is still waited for");
                std::thread::sleep(Duration::from_millis(1));
            }
            Ok(())
        });
    }
}

#[test]
fn many_workers_ask_at_once() {
    const WORKERS: usize = 12;
    const ROUNDS: u64 = 50;
    let mut step_seconds = [1.0; WORKERS];
    step_seconds[WORKERS - 1] = 1e6;
    let settings = Settings { max_local_steps: Some(4), ..Settings::default() };
    for (mechanism, name) in MECHANISMS {
        with_servers(&step_seconds, &settings, mechanism, |rank, _, mut server| {
            // The straggler says nothing in all that time, so only the bound ends a round.
            for round in (0..ROUNDS).filter(|_| rank != WORKERS - 1) {
                for local_steps in 1..=4 {
                    let (reply, reason) = server.ask(&stepped(round, local_steps, 1.0))?;
                    let expected = if local_steps < 4 { Reply::Train } else { Reply::Synchronize };
                    assert_eq!(reply, expected, "{name}, rank {rank}, round {round}: {reason}");
                }
            }
            // Kept until all have asked: nobody is gone.
            Ok(server)
        });
    }
}

#[test]
fn the_socket_lets_nobody_in_without_the_word() {
    let timeout = Duration::from_secs(20);
    let results = threads::run(1, |transport| {
        let communicator = Communicator::new(Arc::new(transport), CommunicatorOptions::default())?;
        let invitation = socket::serve(&communicator, &Settings::default(), &[1.0]).unwrap();
        let connect = |invitation: &Invitation, rank: Rank| {
            socket::connect(&serde_json::to_vec(invitation).unwrap(), rank)
        };
        let here = |port: &str| format!("127.0.0.1:{port}");
        let port = invitation.addresses[0].rsplit(':').next().unwrap();
        let invitation = Invitation { addresses: vec![here(port)], token: invitation.token };

        // Strangers that say nothing hold up nobody.
        let silent: Vec<TcpStream> =
            (0..3).map(|_| TcpStream::connect(&invitation.addresses[0]).unwrap()).collect();
        let mut token = invitation.token;
        token[0] ^= 1;
        let wrong = Invitation { addresses: invitation.addresses.clone(), token };
        assert!(connect(&wrong, 0).is_err(), "a wrong word");
        assert!(connect(&invitation, 1).is_err(), "a rank that does not exist");

        for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 64], &[255; 64]] {
            let mut stranger = TcpStream::connect(&invitation.addresses[0]).unwrap();
            stranger.set_read_timeout(Some(timeout)).unwrap();
            stranger.write_all(garbage).unwrap();
            let mut answer = Vec::new();
            // An end or a reset, but no word.
            let _ = stranger.read_to_end(&mut answer);
            assert_eq!(answer, b"", "{garbage:?}");
        }
        let since = Instant::now();
        connect(&invitation, 0).unwrap();
        assert!(since.elapsed() < Duration::from_secs(3), "strangers hold up those who are invited");
        drop(silent);
        Ok(())
    });
    results.into_iter().for_each(Result::unwrap);
}
