//! What a query of ESync's state server costs, by each mechanism: `cargo bench --no-default-features --bench state_server`.
//!
//! Eight ranks as threads. Alone: one rank asks, the others are idle. Together: all ask at once, as fast as they can.

use esync::collective::{Communicator, CommunicatorOptions};
use esync::policy::esync::Settings;
use esync::policy::{LocalSteps, Report};
use esync::runtime::{Mechanism, StateServer, establish};
use esync::transport::threads;
use std::sync::Arc;
use std::time::Instant;

const RANKS: usize = 8;
const QUERIES: usize = 2000;

/// Microseconds of the median and the 99th percentile query.
fn ask_often(server: &mut dyn StateServer) -> esync::Result<(f64, f64)> {
    let mut times = Vec::with_capacity(QUERIES);
    for step in 1..=QUERIES as u64 {
        let report = Report::Stepped {
            round: 0,
            local_steps: LocalSteps(step),
            step_seconds: 0.005,
            low_step_seconds: 0.005,
            transfer_seconds: 0.001,
            round_seconds: 0.005,
        };
        let started = Instant::now();
        server.ask(&report)?;
        times.push(1e6 * started.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    Ok((times[QUERIES / 2], times[QUERIES * 99 / 100]))
}

fn measure(mechanism: Mechanism) -> esync::Result<[(f64, f64); 2]> {
    let results = threads::run(RANKS, |transport| {
        let mut communicator = Communicator::new(Arc::new(transport), CommunicatorOptions::default())?;
        let step_seconds = [0.005; RANKS];
        let established = establish(&mut communicator, &Settings::default(), &step_seconds, mechanism)?;
        let mut server = established.state_server.expect("both mechanisms can be had on one host");
        communicator.barrier()?;
        let alone = if communicator.rank() == 0 { ask_often(&mut *server)? } else { (0.0, 0.0) };
        communicator.barrier()?;
        let together = ask_often(&mut *server)?;
        communicator.barrier()?;
        Ok([alone, together])
    });
    results.into_iter().next().expect("rank 0")
}

fn main() -> esync::Result<()> {
    println!("{RANKS} ranks; microseconds for a query: median (99th percentile)");
    println!("{:<12} {:>18} {:>18}", "mechanism", "alone", "all at once");
    for (name, mechanism) in [("shared page", Mechanism::Page), ("socket", Mechanism::Socket)] {
        let [alone, together] = measure(mechanism)?;
        let show = |(median, high): (f64, f64)| format!("{median:.2} ({high:.2})");
        println!("{name:<12} {:>18} {:>18}", show(alone), show(together));
    }
    Ok(())
}
