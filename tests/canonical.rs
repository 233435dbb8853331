//! The canonical tree T(n) gives the same bits from every algorithm that accepts it, for every length, position and
//! split of the vector, on every transport: with NaNs of several payloads, infinities, negative zeros and subnormals.
//!
//! Everything is compared with T(n) written down a second time, as scalar code. Algorithms and transports are those that
//! the library lists, so that new ones join by themselves.

#[path = "common/hosts.rs"]
mod hosts;
#[path = "common/number.rs"]
mod number;
#[path = "common/process.rs"]
mod process;

use clap::ValueEnum;
use esync::collective::{
    COLLECTIVE_NAMES, Communicator, CommunicatorOptions, Order, collective_by_name, part,
};
use esync::reduce::Operator;
use esync::train::{SlowLinks, TransportChoice, first_failure, run_ranks};
use esync::transport::{Transport, threads};
use esync::{Error, Result};
use half::{bf16, f16};
use hosts::OnHosts;
use number::{Number, canonical, mixed};
use process::{finish, mpirun};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// So many different columns of contributions; elements of long vectors repeat them.
const COLUMNS: usize = 61;

/// What a rank contributes to a column. Every other column has special values on some ranks.
fn contribution<T: Number>(rank: usize, column: usize) -> T {
    let bits = mixed(5, rank, column);
    if column.is_multiple_of(2) && bits & 3 != 0 { T::special(bits >> 8) } else { T::random(bits) }
}

/// The columns of one type on one rank, and what each operator must make of all ranks' columns.
struct Columns<T> {
    own: Vec<T>,
    results: Vec<Vec<T>>,
}

impl<T: Number> Columns<T> {
    fn new(n: usize, rank: usize) -> Self {
        let result = |operator: Operator, column| {
            let values: Vec<T> = (0..n).map(|rank| contribution(rank, column)).collect();
            canonical(&values, operator).finish(operator, n)
        };
        let results = |operator| (0..COLUMNS).map(|column| result(operator, column)).collect();
        Columns {
            own: (0..COLUMNS).map(|column| contribution(rank, column)).collect(),
            results: Operator::ALL.map(results).into(),
        }
    }

    /// A vector that begins with column `shift`.
    fn vector(&self, len: usize, shift: usize) -> Vec<T> {
        (0..len).map(|index| self.own[(shift + index) % COLUMNS]).collect()
    }

    /// Compares bits; `first` is the column of the first element.
    fn check(&self, found: &[T], operator: Operator, first: usize, what: &str) -> Result<()> {
        for (index, found) in found.iter().enumerate() {
            let column = (first + index) % COLUMNS;
            let expected = &self.results[operator as usize][column];
            if bytemuck::bytes_of(found) != bytemuck::bytes_of(expected) {
                let text =
                    format!("{what}: element {index} is {found:?}, not {expected:?} (column {column})");
                return Err(Error::Training(text));
            }
        }
        Ok(())
    }

    /// Every operator and kind; and if it is to be `thorough`, more lengths, and an all-reduce in pieces.
    fn check_communicator(&self, communicator: &mut Communicator, thorough: bool) -> Result<()> {
        let (rank, n) = (communicator.rank(), communicator.size());
        let collective = communicator.options().collective.name();
        let long = if thorough { 4 * COLUMNS + 1 } else { COLUMNS };
        for (number, operator) in Operator::ALL.into_iter().enumerate() {
            let what = |kind: &str, len: usize| {
                format!("{kind} {operator} of {len} {} by {collective}, rank {rank} of {n}", T::TYPE)
            };
            let lengths = [long, n - 1, 2 * n + 3, n, 2, 1];
            for &len in if thorough { &lengths[..] } else { &lengths[..2] } {
                let shift = 7 * len + number;
                let mut vector = self.vector(len, shift);
                communicator.all_reduce(&mut vector, operator)?;
                self.check(&vector, operator, shift, &what("all-reduce", len))?;
            }
            let (len, shift) = (long, number);
            let mut vector = self.vector(len, shift);
            let own = part(len, n, rank);
            let scattered = communicator.reduce_scatter(&mut vector, operator)?;
            self.check(scattered, operator, shift + own.start, &what("reduce-scatter", len))?;
            let mut vector = self.vector(len, shift);
            let root = number % n;
            communicator.reduce(&mut vector, operator, root)?;
            if rank == root {
                self.check(&vector, operator, shift, &what("reduce", len))?;
            }
            if !thorough {
                continue;
            }
            // Buckets of all lengths: 0 + 1 + 2 + … elements.
            let mut vector = self.vector(len, shift);
            let mut rest = &mut vector[..];
            for bucket in 0.. {
                let (first, others) = rest.split_at_mut(rest.len().min(bucket));
                communicator.all_reduce(first, operator)?;
                rest = others;
                if rest.is_empty() {
                    break;
                }
            }
            self.check(&vector, operator, shift, &what("all-reduce in buckets", len))?;
        }
        Ok(())
    }
}

/// All element types that a reduction has, on one rank of one communicator.
fn check_types(communicator: &mut Communicator) -> Result<()> {
    let (n, rank) = (communicator.size(), communicator.rank());
    Columns::<f32>::new(n, rank).check_communicator(communicator, true)?;
    Columns::<f64>::new(n, rank).check_communicator(communicator, false)?;
    Columns::<f16>::new(n, rank).check_communicator(communicator, false)?;
    Columns::<bf16>::new(n, rank).check_communicator(communicator, false)?;
    Columns::<i32>::new(n, rank).check_communicator(communicator, false)
}

fn options(collective: &str, segment_bytes: usize) -> CommunicatorOptions {
    CommunicatorOptions {
        collective: collective_by_name(collective, None).expect("a name of the registry"),
        order: Order::Canonical,
        timeout: Duration::from_secs(20),
        segment_bytes,
        ..CommunicatorOptions::default()
    }
}

/// Checks every algorithm that accepts the canonical order on this transport, and answers their names.
fn check_all(transport: &Arc<dyn Transport>) -> Result<Vec<&'static str>> {
    let mut accepted = Vec::new();
    for collective in COLLECTIVE_NAMES {
        // Every rank refuses alike, before anything is sent.
        let mut communicator = match Communicator::new(transport.clone(), options(collective, 256 * 1024)) {
            Err(Error::Refused { .. }) => continue,
            other => other?,
        };
        check_types(&mut communicator)?;
        // Messages in segments of four f64.
        let mut segmented = Communicator::new(transport.clone(), options(collective, 32))?;
        let (n, rank) = (segmented.size(), segmented.rank());
        Columns::<f64>::new(n, rank).check_communicator(&mut segmented, false)?;
        accepted.push(*collective);
    }
    Ok(accepted)
}

/// Those that the contract names.
const ALWAYS: [&str; 4] = ["butterfly", "binary-blocks", "parameter-server", "recursive-doubling"];

fn assert_accepted(accepted: &[&str], also: &[&str]) {
    for collective in ALWAYS.iter().chain(also) {
        assert!(accepted.contains(collective), "{collective} is not among {accepted:?}");
    }
}

#[test]
fn every_number_of_threads() {
    for n in 2..=17 {
        let results = threads::run(n, |transport| check_all(&(Arc::new(transport) as Arc<dyn Transport>)));
        let accepted = first_failure(results).unwrap_or_else(|error| panic!("{n} ranks: {error}"));
        assert_accepted(&accepted[0], &["hierarchical"]);
    }
}

/// `hierarchical` on several hosts, which are whole blocks of T(n).
#[test]
fn hosts_of_several_threads() {
    let layouts: [&[usize]; 9] =
        [&[1, 1], &[2, 2], &[2, 2, 2], &[4, 3], &[4, 2, 1], &[4, 4, 1], &[8, 2, 2], &[1; 9], &[16, 1]];
    for sizes in layouts {
        let n = sizes.iter().sum();
        let results = threads::run(n, |transport| {
            let transport: Arc<dyn Transport> = Arc::new(OnHosts::new(transport, sizes));
            let mut communicator = Communicator::new(transport, options("hierarchical", 64))?;
            assert_eq!(communicator.topology().host_count(), sizes.len());
            check_types(&mut communicator)
        });
        first_failure(results).unwrap_or_else(|error| panic!("hosts of {sizes:?}: {error}"));
    }
}

/// Says to the process that it is a rank of a job of this test, and over which transport.
const JOB: &str = "CANONICAL_TRANSPORT";

/// Where rank 0 of a job says which transport it ran over, and which algorithms agreed.
const REPORT: &str = "CANONICAL_REPORT";

/// Not a test by itself: what each process of [`every_transport_between_processes`] runs.
#[test]
#[ignore = "runs as a rank of a job"]
fn a_rank_of_a_job() {
    let name = std::env::var(JOB).expect("started as a rank of a job");
    let choice = TransportChoice::from_str(&name, false).expect("a name of the library");
    let results = run_ranks(choice, None, &SlowLinks::default(), |transport| {
        let accepted = check_all(&transport)?;
        Ok((transport.rank(), transport.name(), accepted))
    });
    for (rank, transport, accepted) in results.and_then(first_failure).expect("the same bits") {
        if rank == 0 {
            // Into a file: the launcher mixes the standard outputs of its processes within lines.
            let report = std::env::var(REPORT).expect("started as a rank of a job");
            std::fs::write(report, format!("{transport} {}", accepted.join(" ")))
                .expect("a folder to write to");
        }
    }
}

/// The algorithms that agreed, on processes of hosts of these sizes.
fn job(transport: &str, hosts: &[usize]) -> BTreeSet<String> {
    let program = std::env::current_exe().expect("this program");
    let folder = tempfile::tempdir().expect("a folder");
    let report = folder.path().join("report");
    let mut command = mpirun();
    command.env(JOB, transport).env(REPORT, &report);
    for (host, ranks) in hosts.iter().enumerate() {
        if host > 0 {
            command.arg(":");
        }
        command
            .args([
                "-n",
                &ranks.to_string(),
                "-x",
                JOB,
                "-x",
                REPORT,
                "-x",
                &format!("ESYNC_HOST=host{host}"),
            ])
            .arg(&program);
        command.args(["a_rank_of_a_job", "--exact", "--ignored", "--nocapture", "--test-threads=1"]);
    }
    let finished = finish(&mut command, 60).expect(0);
    let report = std::fs::read_to_string(&report).unwrap_or_else(|error| panic!("{error}: {finished:?}"));
    let mut words = report.split(' ').map(str::to_string);
    assert_eq!(words.next().as_deref(), Some(transport));
    words.collect()
}

#[test]
fn every_transport_between_processes() {
    if !cfg!(feature = "mpi") {
        println!("skipped: built without the feature `mpi`");
        return;
    }
    let names = TransportChoice::value_variants().iter().filter_map(|choice| choice.to_possible_value());
    let names: Vec<String> = names.map(|value| value.get_name().to_string()).collect();
    assert!(names.contains(&"mpi".to_string()));
    // `threads` are no processes, `auto` is one of the others, and under `nccl` vectors in host memory, as these, travel by one
    // of the others too; for those on GPUs `tests/gpu_collectives` compares every schedule's bits with the host's.
    for transport in names.iter().filter(|name| !matches!(&***name, "auto" | "threads" | "nccl")) {
        for ranks in 2..=17 {
            let accepted = job(transport, &[ranks]);
            let accepted: Vec<&str> = accepted.iter().map(String::as_str).collect();
            assert_accepted(&accepted, &["hierarchical"]);
        }
    }
    assert!(job("mpi", &[4, 2, 1]).contains("hierarchical"));
    assert!(!job("mpi", &[2, 1, 1]).is_empty());
    assert!(!job("mpi", &[3, 3]).contains("hierarchical"), "hosts of three are no blocks");
}
