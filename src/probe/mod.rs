//! `esync probe`: measures every pair of ranks, every rank's own speed and every algorithm, and writes the topology file.
//!
//! Pairs are measured one after the other, so that no two share cores or network cards. All ranks take part in every
//! step and know every figure, so all of them stop together when the time is used up: pairs that were not reached are
//! given the figures of a pair between the same hosts, sizes that were not reached are left out.

mod pairs;
mod ranks;
mod show;
mod tune;

use crate::cluster::{Cluster, Host, Link, NetworkCard, Worker, cache_path};
use crate::collective::{Communicator, CommunicatorOptions, Member, Ring};
use crate::error::{Error, Result};
use crate::train::{SlowLinks, TransportChoice, first_failure, run_ranks};
use crate::transport::Transport;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// The flags of `esync probe`.
#[derive(Debug, Clone, Args)]
pub struct Flags {
    /// The topology file to write [default: one for this cluster in the cache folder, where `auto` finds it]
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Run as this many threads of one process, without MPI
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub ranks: Option<u16>,
    /// Where the bytes travel
    #[arg(long, value_enum, default_value_t)]
    pub transport: TransportChoice,
    /// Measure links and ranks only, not the algorithms
    #[arg(long)]
    pub no_tune: bool,
    /// Time for all measurements together
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "20s")]
    pub budget: Duration,
    /// Longest single wait for another rank
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "60s")]
    pub timeout: Duration,
}

fn duration(text: &str) -> Result<Duration> {
    let parsed = humantime::parse_duration(text).ok().filter(|duration| !duration.is_zero());
    parsed.ok_or_else(|| Error::Usage(format!("`{text}` is no duration: write a unit, such as 30s or 500ms")))
}

/// Measures what the flags ask for, on the ranks of this process; rank 0 writes the file and prints what it found.
///
/// # Errors
/// `File` if the file cannot be written, and everything that [`run_ranks`] and the collectives return.
pub fn probe(flags: &Flags) -> Result<()> {
    let ranks = flags.ranks.map(usize::from);
    let results = run_ranks(flags.transport, ranks, &SlowLinks::default(), |transport| {
        let poisoned = transport.clone();
        Probe::new(flags, transport).run().inspect_err(|error| poisoned.poison(&error.to_string()))
    })?;
    first_failure(results).map(drop)
}

/// The work of one rank.
struct Probe<'a> {
    flags: &'a Flags,
    transport: Arc<dyn Transport>,
    begun: Instant,
    /// Rank 0's, on a terminal.
    bar: ProgressBar,
}

impl<'a> Probe<'a> {
    fn new(flags: &'a Flags, transport: Arc<dyn Transport>) -> Self {
        let bar = match transport.rank() == 0 && std::io::stderr().is_terminal() {
            true => ProgressBar::new(100),
            false => ProgressBar::hidden(),
        };
        if let Ok(style) = ProgressStyle::with_template("{msg:30} [{bar:40}] {elapsed}") {
            bar.set_style(style);
        }
        Probe { flags, transport, begun: Instant::now(), bar }
    }

    fn hosts(&self) -> Vec<&str> {
        (0..self.transport.size()).map(|rank| self.transport.peer(rank).host.as_str()).collect()
    }

    fn options(&self) -> CommunicatorOptions {
        CommunicatorOptions {
            collective: Arc::new(Ring),
            timeout: self.flags.timeout,
            ..CommunicatorOptions::default()
        }
    }

    /// What this rank says in a rendezvous: seconds that it measured, and (for rank 0's sake) the time since the beginning.
    fn say(&self, measured_seconds: f64) -> Member {
        Member {
            transfer_seconds: measured_seconds,
            step_seconds: self.begun.elapsed().as_secs_f64(),
            ..Member::default()
        }
    }

    /// Whether rank 0 had used up this share of the time when it said so.
    fn is_late(&self, members: &[Member], share: f64) -> bool {
        members[0].step_seconds > share * self.flags.budget.as_secs_f64()
    }

    fn run(&self) -> Result<()> {
        let mut communicator = Communicator::new(self.transport.clone(), self.options())?;
        let mut cluster = self.places(&mut communicator)?;
        self.bar.set_message("links");
        self.measure_pairs(&mut cluster)?;
        share_cards(&mut cluster);
        self.bar.set_message("ranks");
        self.measure_ranks(&mut communicator, &mut cluster)?;
        if !self.flags.no_tune && cluster.size() > 1 && self.transport.shared().is_none() {
            self.bar.set_message("algorithms");
            self.tune(&mut communicator, &mut cluster)?;
        }
        self.bar.finish_and_clear();
        if self.transport.rank() == 0 {
            self.write(&cluster)?;
        }
        // Nobody leaves before the file is there: a rank that ends early may end the job.
        communicator.barrier()
    }

    /// The hosts with their cores, and who is where.
    fn places(&self, communicator: &mut Communicator) -> Result<Cluster> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let said = Member { samples: cores as u64, ..Member::default() };
        let cores: Vec<usize> =
            communicator.gather(said)?.members.iter().map(|member| member.samples as usize).collect();
        let unknown = Link { latency_seconds: 0.0, message_seconds: 0.0, seconds_per_byte: 0.0 };
        let mut cluster = Cluster::homogeneous(communicator.size(), unknown, 0.0);
        cluster.transport = self.transport.name().into();
        cluster.measured_at = Some(humantime::format_rfc3339_seconds(SystemTime::now()).to_string());
        cluster.measured_with = Some(concat!("esync ", env!("CARGO_PKG_VERSION")).into());
        cluster.hosts.clear();
        for (rank, name) in self.hosts().into_iter().enumerate() {
            let known = cluster.hosts.iter().position(|host| host.name == name);
            let host = known.unwrap_or_else(|| {
                cluster.hosts.push(Host { name: name.into(), cores: cores[rank], switch_seconds: 0.0 });
                cluster.hosts.len() - 1
            });
            cluster.workers[rank] = Worker { host, ..cluster.workers[rank] };
        }
        Ok(cluster)
    }

    fn write(&self, cluster: &Cluster) -> Result<()> {
        let path = match &self.flags.output {
            Some(path) => path.clone(),
            None => cache_path(self.transport.name(), &self.hosts()).ok_or_else(|| {
                Error::Usage("there is no cache folder (HOME is not set): say --output FILE".into())
            })?,
        };
        cluster.write(&path)?;
        print!("{}", show::text(cluster));
        println!("written to {} after {:.1} s", path.display(), self.begun.elapsed().as_secs_f64());
        Ok(())
    }
}

/// All ranks of a host share a network card as quick as the best of their links to other hosts.
fn share_cards(cluster: &mut Cluster) {
    for host in 0..cluster.hosts.len() {
        let ranks: Vec<usize> = cluster.ranks_of(host).collect();
        let others: Vec<usize> = (0..cluster.size()).filter(|rank| !ranks.contains(rank)).collect();
        if ranks.len() < 2 || others.is_empty() {
            continue;
        }
        let pairs = ranks.iter().flat_map(|&rank| others.iter().map(move |&other| (rank, other)));
        let best = pairs.map(|(rank, other)| cluster.link(rank, other).seconds_per_byte);
        let seconds_per_byte = best.fold(f64::INFINITY, f64::min);
        cluster.network_cards.push(NetworkCard { ranks, seconds_per_byte });
    }
}
