//! `auto`: the choice as a pure function, a communicator that uses it, and the files that it reads.

#[path = "common/process.rs"]
mod process;

use esync::cluster::{Cluster, Link, Measured};
use esync::collective::auto::{Knowledge, NativeReach, Origin, Question, Reason};
use esync::collective::{
    Auto, COLLECTIVE_NAMES, Communicator, CommunicatorOptions, Kind, Operation, Order, Ring,
    collective_by_name,
};
use esync::reduce::{ElementType, Operator};
use esync::transport::{Delayed, Transport, threads};
use process::{alone, finish, mpirun};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const ESYNC: &str = env!("CARGO_BIN_EXE_esync");
const BENCH: &str = env!("CARGO_BIN_EXE_esync-bench");

fn network(size: usize) -> Cluster {
    let link = Link { latency_seconds: 3e-5, message_seconds: 3e-5, seconds_per_byte: 1e-9 };
    Cluster::homogeneous(size, link, 1e-10)
}

fn from_file(cluster: Cluster) -> Knowledge {
    Knowledge::new(cluster, Origin::File { path: "cluster.toml".into() })
}

fn measured(order: &str, collective: &str, times: &[(u64, f64)]) -> Measured {
    Measured {
        operation: "all-reduce".into(),
        order: order.into(),
        collective: collective.into(),
        times: times.to_vec(),
    }
}

fn question(order: Order, count: usize) -> Question {
    Question::new(Operation::new(Kind::AllReduce).with_order(order), count, 4)
}

fn chosen(knowledge: &Knowledge, order: Order, count: usize) -> &'static str {
    knowledge.decide(&question(order, count)).unwrap().collective.name()
}

#[test]
fn short_vectors_go_by_rounds_and_long_ones_by_bytes() {
    let knowledge = from_file(network(8));
    assert_eq!(chosen(&knowledge, Order::Fastest, 1), "recursive-doubling");
    // On eight equal ranks, whoever needs the fewest rounds among those that send the fewest bytes.
    let long = chosen(&knowledge, Order::Fastest, 1 << 22);
    assert!(["butterfly", "binary-blocks", "circulant", "ring"].contains(&long), "{long}");
}

#[test]
fn what_was_measured_wins_over_what_is_predicted() {
    let mut cluster = network(4);
    cluster.measured.push(measured("fastest", "ring", &[(4, 2e-5), (4096, 1e-4), (1 << 20, 1e-3)]));
    cluster.measured.push(measured("fastest", "butterfly", &[(4, 1e-5), (4096, 1e-4), (1 << 20, 1.5e-3)]));
    cluster.measured.push(measured("fastest", "of-tomorrow", &[(4, 1e-9)]));
    let knowledge = from_file(cluster);
    assert_eq!(chosen(&knowledge, Order::Fastest, 1), "butterfly");
    assert_eq!(chosen(&knowledge, Order::Fastest, 1 << 18), "ring");
    let decision = knowledge.decide(&question(Order::Fastest, 1 << 18)).unwrap();
    assert_eq!(decision.to_string(), "ring: 1.00 ms measured on this cluster; next butterfly 1.50 ms");
    // Nothing was measured in the canonical order, which the ring does not have.
    let decision = knowledge.decide(&question(Order::Canonical, 1 << 18)).unwrap();
    assert!(matches!(decision.reason, Reason::Predicted { .. }) && decision.collective.name() != "ring");
    assert!(decision.to_string().contains("predicted from topology file cluster.toml"), "{decision}");
}

#[test]
fn the_order_auto_is_the_canonical_one() {
    let knowledge = from_file(network(6));
    for count in [1, 1000, 1 << 20] {
        let decision = knowledge.decide(&question(Order::Auto, count)).unwrap();
        assert_eq!(decision.operation.order, Order::Canonical);
        let topology = esync::collective::Topology::flat(6);
        assert!(decision.collective.schedule(&decision.operation, &topology, 0, count).is_ok());
    }
}

#[test]
fn every_kind_and_order_has_somebody() {
    for size in [1, 2, 3, 7] {
        let knowledge = from_file(network(size));
        for kind in Kind::ALL {
            for order in [Order::Auto, Order::Canonical, Order::Rank, Order::Fastest] {
                for count in [0, 1, 5, 10_000] {
                    let operation = Operation::new(kind).with_order(order);
                    let decision = knowledge.decide(&Question::new(operation, count, 4)).unwrap();
                    assert!(COLLECTIVE_NAMES.contains(&decision.collective.name()));
                    assert_eq!(matches!(decision.reason, Reason::Nothing), size == 1 || count == 0);
                }
            }
        }
    }
}

#[test]
fn native_competes_where_it_can() {
    let mut cluster = network(4);
    cluster.measured.push(measured("fastest", "native", &[(4, 1e-6)]));
    cluster.measured.push(measured("fastest", "ring", &[(4, 2e-6)]));
    cluster.measured.push(measured("canonical", "native", &[(4, 1e-6)]));
    let knowledge = from_file(cluster);
    let by = |order, reach| {
        let question = question(order, 1).with_native(reach);
        knowledge.decide(&question).unwrap().collective.name()
    };
    assert_eq!(by(Order::Fastest, NativeReach::Absent), "ring");
    assert_eq!(by(Order::Fastest, NativeReach::Opaque), "native");
    assert_ne!(by(Order::Canonical, NativeReach::Opaque), "native", "its order is its own");
    assert_eq!(by(Order::Canonical, NativeReach::Shared), "native");
}

#[test]
fn auto_as_an_algorithm_fits_together() {
    let topology = esync::collective::Topology::with_hosts(vec![0, 0, 1, 1, 1]);
    for kind in Kind::ALL {
        for len in [0, 1, 3, 100] {
            let operation = Operation::new(kind);
            esync::collective::verify::verify(&Auto::default(), &operation, &topology, len).unwrap();
        }
    }
}

/// Ranks as threads without shared memory (a delay hides it), so that `auto` has a choice.
fn on_messages<R: Send>(
    size: usize,
    body: impl Fn(Arc<dyn Transport>) -> esync::Result<R> + Sync,
) -> Vec<esync::Result<R>> {
    threads::run(size, |transport| {
        let delays = vec![Duration::ZERO; transport.size()];
        body(Arc::new(Delayed::new(transport, delays)))
    })
}

fn with_topology(path: &Path) -> CommunicatorOptions {
    CommunicatorOptions {
        collective: Arc::new(Auto { topology: Some(path.into()) }),
        timeout: Duration::from_secs(20),
        ..CommunicatorOptions::default()
    }
}

/// A topology file of `size` ranks on this host.
fn file_of(size: usize, measured: &[Measured]) -> tempfile::NamedTempFile {
    let mut cluster = network(size);
    cluster.hosts.truncate(1);
    cluster.hosts[0].name = esync::transport::host_name();
    cluster.workers.iter_mut().for_each(|worker| worker.host = 0);
    cluster.measured = measured.to_vec();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), cluster.to_toml()).unwrap();
    file
}

#[test]
fn a_communicator_does_what_was_chosen_with_the_same_bits() {
    let measured = [
        measured("canonical", "recursive-doubling", &[(4, 1e-6), (4096, 1e-3)]),
        measured("canonical", "parameter-server", &[(4, 1e-5), (4096, 1e-5)]),
    ];
    let file = file_of(3, &measured);
    let value = |rank: usize, index: usize| ((rank * 31 + index * 7) % 13) as f32 * 0.1;
    let sums = |options: CommunicatorOptions| {
        let results = on_messages(3, |transport| {
            let mut communicator = Communicator::new(transport, options.clone())?;
            let mut out = Vec::new();
            for len in [1, 1000] {
                let mut vector: Vec<f32> = (0..len).map(|i| value(communicator.rank(), i)).collect();
                communicator.all_reduce(&mut vector, Operator::Sum)?;
                out.extend(vector.iter().map(|x| x.to_bits()));
            }
            let explained = [1, 1000]
                .map(|len| communicator.explain(Operation::new(Kind::AllReduce), len, ElementType::F32));
            let names = explained.map(|decision| decision.map(|d| d.map(|d| d.collective.name())));
            let [short, long] = names;
            Ok((out, [short?, long?]))
        });
        results.into_iter().collect::<esync::Result<Vec<_>>>().unwrap()
    };
    let by_auto = sums(with_topology(file.path()));
    for (bits, names) in &by_auto {
        assert_eq!(*bits, by_auto[0].0);
        assert_eq!(*names, [Some("recursive-doubling"), Some("parameter-server")]);
    }
    let fixed = collective_by_name("binary-blocks", None).unwrap();
    let by_blocks = sums(CommunicatorOptions { collective: fixed, ..CommunicatorOptions::default() });
    assert_eq!(by_auto[0].0, by_blocks[0].0, "the canonical tree, whoever evaluates it");
    assert_eq!(by_blocks[0].1, [None, None]);
}

#[test]
fn different_lengths_are_a_mismatch_though_the_choices_differ() {
    let measured = [
        measured("canonical", "recursive-doubling", &[(4, 1e-6), (4096, 1e-3)]),
        measured("canonical", "parameter-server", &[(4, 1e-5), (4096, 1e-5)]),
    ];
    let file = file_of(2, &measured);
    let results = on_messages(2, |transport| {
        let mut communicator = Communicator::new(transport, with_topology(file.path()))?;
        let mut vector = vec![1.0f32; if communicator.rank() == 0 { 1 } else { 1000 }];
        communicator.all_reduce(&mut vector, Operator::Sum)
    });
    for result in results {
        let error = result.unwrap_err();
        assert!(matches!(error, esync::Error::Mismatch { .. }), "{error}");
        assert!(error.to_string().contains("element count: rank 0 has 1, rank 1 has 1000"), "{error}");
    }
}

#[test]
fn a_file_of_another_job_is_an_error_on_every_rank() {
    let file = file_of(5, &[]);
    let results = on_messages(2, |transport| {
        let mut communicator = Communicator::new(transport, with_topology(file.path()))?;
        communicator.all_reduce(&mut [1.0f32], Operator::Sum)
    });
    for result in results {
        let error = result.unwrap_err();
        assert_eq!(error.exit_code(), 4);
        assert!(error.to_string().contains("it describes 5 ranks, and this job has 2"), "{error}");
    }
}

#[test]
fn a_fixed_algorithm_has_nothing_to_explain() {
    let results = threads::run(2, |transport| {
        let options = CommunicatorOptions { collective: Arc::new(Ring), ..CommunicatorOptions::default() };
        let mut communicator = Communicator::new(Arc::new(transport), options)?;
        Ok(communicator.explain(Operation::new(Kind::AllReduce), 1, ElementType::F32)?.is_none())
    });
    assert!(results.into_iter().all(|is_none| is_none.unwrap()));
}

#[test]
fn probe_writes_a_file_that_auto_reads() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("new").join("cluster.toml");
    let mut runs = vec![("threads", 3, alone(ESYNC))];
    if cfg!(feature = "mpi") {
        let mut command = mpirun();
        command.args(["-n", "2", ESYNC]);
        runs.push(("mpi", 2, command));
    }
    for (transport, ranks, mut command) in runs {
        command.args(["probe", "--budget", "3s", "--transport", transport, "--output"]).arg(&path);
        if transport == "threads" {
            command.args(["--ranks", "3"]);
        }
        let finished = finish(&mut command, 60).expect(0);
        assert!(
            finished.stdout.contains("latency, µs") && finished.stdout.contains("written to"),
            "{finished:?}"
        );
        let cluster = Cluster::read(&path).unwrap();
        assert_eq!((cluster.size(), cluster.transport.as_str()), (ranks, transport));
        let link = cluster.link(0, 1);
        assert!(link.latency_seconds > 1e-8 && link.latency_seconds < 0.1, "{link:?}");
        assert!(link.seconds_per_byte > 1e-12 && link.seconds_per_byte < 1e-6, "{link:?}");
        assert!(cluster.workers.iter().all(|w| w.reduce_seconds_per_byte > 1e-12), "{cluster:?}");
        assert_eq!(
            cluster.measured.is_empty(),
            transport == "threads",
            "where memory is shared there is no choice"
        );
    }
    if cfg!(feature = "mpi") {
        let mut command = mpirun();
        command.env("ESYNC_TOPOLOGY", &path).args([
            "-n",
            "2",
            BENCH,
            "--transport",
            "mpi",
            "--collective",
            "auto",
        ]);
        finish(command.args(["-e", "64K", "-n", "3", "--ceiling", "off"]), 60).expect(0);
    }
}

#[test]
fn what_cannot_be_used_has_its_exit_code() {
    let folder = tempfile::tempdir().unwrap();
    let bad = folder.path().join("bad.toml");
    std::fs::write(&bad, "version = 1\nhosts = 3\n").unwrap();
    if cfg!(feature = "mpi") {
        for (file, text) in [(bad.as_path(), "no topology file"), (Path::new("missing.toml"), "cannot read")]
        {
            let mut command = mpirun();
            command.env("ESYNC_TOPOLOGY", file).args([
                "-n",
                "2",
                BENCH,
                "--transport",
                "mpi",
                "--collective",
                "auto",
            ]);
            let finished = finish(&mut command, 60).expect(4);
            assert_eq!(finished.lines_with(text), 1, "{finished:?}");
        }
    }
    let nowhere = Path::new("/dev/null/cluster.toml");
    let mut command = alone(ESYNC);
    finish(command.args(["probe", "--ranks", "1", "--output"]).arg(nowhere), 30).expect(3);
    finish(alone(ESYNC).args(["probe", "--budget", "3"]), 30).expect(2);
    finish(alone(ESYNC).arg("prob"), 30).expect(2);
}

#[test]
fn info_fits_a_screen() {
    let finished = finish(alone(ESYNC).arg("info"), 30).expect(0);
    assert!(finished.stdout.lines().count() <= 24, "{}", finished.stdout);
    for word in ["esync 0.", "cores", "feature mpi", "shared memory"] {
        assert!(finished.stdout.contains(word), "{word}: {}", finished.stdout);
    }
}
