//! An idle parameter server takes no core. Alone in its program, because the whole process is measured.

use esync::collective::{Communicator, CommunicatorOptions};
use esync::policy::{Coordinator, Directive, Report};
use esync::runtime::server::{Rule, ServerOptions, Unsupervised, establish};
use esync::transport::{Rank, threads};
use std::sync::Arc;
use std::time::Duration;

/// Is never asked.
struct Unasked;

impl Coordinator for Unasked {
    fn on(&mut self, _now: Duration, _from: Rank, _report: Report) -> Vec<Directive> {
        Vec::new()
    }

    fn lost(&mut self, _now: Duration, _rank: Rank) -> Vec<Directive> {
        Vec::new()
    }
}

/// Hundredths of a second that this process has computed.
fn ticks() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[test]
fn an_idle_server_takes_no_core() {
    let options = ServerOptions { servers: 2, ..ServerOptions::default() };
    let results = threads::run(4, |transport| {
        let mut communicator = Communicator::new(Arc::new(transport), CommunicatorOptions::default())?;
        let rule = || {
            Ok(Rule { coordinator: Box::new(Unasked), overseer: Box::new(|_| Ok(Box::new(Unsupervised))) })
        };
        let mut established = establish(&mut communicator, &options, &[0.0; 1000], 1000, rule)?;
        communicator.barrier()?;
        std::thread::sleep(Duration::from_millis(200));
        let before = ticks();
        std::thread::sleep(Duration::from_millis(1500));
        let spent = ticks() - before;
        established.link.goodbye()?;
        established.link.finale(Some(Duration::from_secs(20)))?;
        Ok(spent)
    });
    for spent in results {
        let spent = spent.unwrap();
        assert!(spent <= 5, "{spent} hundredths of a second in 1.5 s of doing nothing");
    }
}
