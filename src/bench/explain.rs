//! `--explain` and `--draw`: what an algorithm would do, without doing it.

use super::draw::draw;
use super::rounds::{Rounds, use_of};
use super::{ByteSize, Flags};
use crate::collective::auto::{Auto, Knowledge, NativeReach, Question, ShownSeconds};
use crate::collective::verify::{Proof, verify_schedules};
use crate::collective::{Collective, Native, Operation, Schedule, Stage, Step, Topology, collective_by_name};
use crate::error::{Error, Result};
use crate::train::TransportChoice;
use crate::transport::{announced_rank, announced_ranks, host_name};
use std::fmt::Write;

/// Schedules of more ranks are not printed rank by rank, and not drawn.
const MOST_RANKS: usize = 16;

/// Drawings are of vectors that a person could count.
const MOST_DRAWN: usize = 1 << 16;

/// An algorithm's schedules, proved.
pub(super) struct Explained {
    pub(super) name: &'static str,
    pub(super) operation: Operation,
    pub(super) topology: Topology,
    pub(super) count: usize,
    pub(super) element_bytes: usize,
    pub(super) schedules: Vec<Schedule>,
    pub(super) proof: Proof,
}

/// Prints the schedules of all `names` for vectors of `count` elements, or draws the only one.
pub(super) fn explain(flags: &Flags, names: &[&str], all: bool, count: usize) -> Result<()> {
    if announced_rank() != 0 {
        // One process of a launcher's speaks for all; none of them starts to communicate.
        return Ok(());
    }
    let Some(size) = flags.ranks.map(usize::from).or(announced_ranks().map(|(size, _)| size)) else {
        return Err(Error::Usage("--explain and --draw need to know how many ranks: give --ranks N".into()));
    };
    if let Some(path) = &flags.draw {
        let [name] = names else {
            return Err(Error::Usage("--draw draws one algorithm: name it with --collective".into()));
        };
        if size > MOST_RANKS || count > MOST_DRAWN {
            return Err(Error::Usage(format!(
                "--draw draws up to {MOST_RANKS} ranks and {MOST_DRAWN} elements, not {size} ranks and {count} elements: \
                 give a smaller --ranks or -b"
            )));
        }
        let explained = Explained::new(flags, name, size, count)?;
        let rounds = Rounds::of(&explained.schedules, &explained.operation, count);
        crate::files::write_atomically(path, &[draw(&explained, &rounds).as_bytes()])?;
        if !flags.explain {
            return Ok(());
        }
    }
    let knowledge = knowledge(flags, size)?;
    let question =
        Question::new(Operation::new(flags.op).with_order(flags.order), count, flags.element.size());
    let mut text = choice(flags, &knowledge, question, size)?;
    for name in names {
        let mut name = *name;
        if name == "auto" {
            if shares_memory(flags) {
                // No messages to list.
                continue;
            }
            name = knowledge.decide(&question)?.collective.name();
        }
        match Explained::new(flags, name, size, count) {
            Ok(explained) => {
                let collective = collective_by_name(name, None)?;
                let question = Question { operation: explained.operation, ..question };
                let seconds = knowledge.predict(&*collective, &question)?;
                let predicted = format!("predicted: {} from {}", ShownSeconds(seconds), knowledge.origin);
                text.push_str(&explained.text(&predicted));
            }
            Err(error @ Error::Refused { .. }) if all || name == Native.name() => {
                let _ = writeln!(text, "{name}: {error}\n");
            }
            Err(error) => return Err(error),
        }
    }
    match std::io::Write::write_all(&mut std::io::stdout(), text.as_bytes()) {
        // Whoever reads may have seen enough (`| head`).
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Error::file("standard output", format!("cannot be written: {error}")))
        }
        _ => Ok(()),
    }
}

/// What `auto` would choose, and why.
fn choice(flags: &Flags, knowledge: &Knowledge, question: Question, size: usize) -> Result<String> {
    let bytes = size_text(question.count * flags.element.size());
    let mut text = format!("auto: for {} of {bytes} over {size} ranks\n", question.operation);
    if shares_memory(flags) && size > 1 {
        let shared = knowledge.decide(&question.with_native(NativeReach::Shared))?;
        text.push_str(&format!("  where ranks share memory, {shared}\n"));
    }
    text.push_str(&format!("  by messages, {}\n\n", knowledge.decide(&question)?));
    Ok(text)
}

/// Whether ranks would see each other's memory, so that `auto` has no choice to make.
fn shares_memory(flags: &Flags) -> bool {
    match flags.transport {
        TransportChoice::Mpi | TransportChoice::Nccl => false,
        TransportChoice::Threads | TransportChoice::Shm => true,
        TransportChoice::Auto => flags.ranks_per_host.is_none(),
    }
}

/// What is known of a cluster with so many ranks: this host's, or (with several hosts) one of its form.
fn knowledge(flags: &Flags, size: usize) -> Result<Knowledge> {
    let transport = match flags.transport {
        TransportChoice::Threads => "threads",
        TransportChoice::Shm => "shm",
        TransportChoice::Mpi => "mpi",
        TransportChoice::Nccl => "nccl",
        TransportChoice::Auto if announced_ranks().is_none() && flags.ranks_per_host.is_none() => "threads",
        TransportChoice::Auto => "mpi",
    };
    let hosts: Vec<String> = match flags.ranks_per_host.map(usize::from) {
        None => vec![host_name(); size],
        Some(per_host) => (0..size).map(|rank| format!("host{}", rank / per_host)).collect(),
    };
    let hosts: Vec<&str> = hosts.iter().map(String::as_str).collect();
    Knowledge::look_up(&Auto::default(), transport, &hosts)
}

impl Explained {
    fn new(flags: &Flags, name: &str, size: usize, count: usize) -> Result<Self> {
        let collective = collective_by_name(name, None)?;
        let operation = Operation::new(flags.op).with_order(flags.order);
        let per_host = flags.ranks_per_host.map_or(size, usize::from);
        let topology = Topology::with_hosts((0..size).map(|rank| (rank / per_host) as u32).collect());
        let schedules: Result<Vec<Schedule>> =
            (0..size).map(|rank| collective.schedule(&operation, &topology, rank, count)).collect();
        let schedules = schedules?;
        let proof = verify_schedules(&schedules, &operation, count)
            .map_err(|flaw| Error::Internal(format!("the schedule of `{name}` for {operation}: {flaw}")))?;
        let element_bytes = flags.element.size();
        Ok(Explained { name: collective.name(), operation, topology, count, element_bytes, schedules, proof })
    }

    /// What it is about, in a line.
    pub(super) fn title(&self) -> String {
        let hosts = match self.topology.host_count() {
            1 => String::new(),
            hosts => format!(" on {hosts} hosts"),
        };
        let bytes = self.count * self.element_bytes;
        format!(
            "{}: {} of {} ({} elements) over {} ranks{hosts}",
            self.name,
            self.operation,
            size_text(bytes),
            self.count,
            self.schedules.len()
        )
    }

    /// What it costs, in a line.
    pub(super) fn cost(&self) -> String {
        let most = |of: fn(&crate::collective::verify::RankCost) -> usize| {
            self.proof.ranks().iter().map(of).max().unwrap_or(0)
        };
        let bytes = |elements: usize| size_text(elements * self.element_bytes);
        format!(
            "{} rounds; at most, a rank sends {} in {} messages ({:.2} × its vector), receives {}, combines {}",
            self.proof.rounds(),
            bytes(most(|rank| rank.sent)),
            most(|rank| rank.messages),
            most(|rank| rank.sent) as f64 / self.count.max(1) as f64,
            bytes(most(|rank| rank.received)),
            bytes(most(|rank| rank.reduced)),
        )
    }

    /// How results are summed, in a line; nothing for operations that only move data.
    pub(super) fn sums(&self) -> Option<String> {
        let trees = self.proof.trees();
        let ((_, first), others) = trees.split_first().filter(|_| self.operation.kind.reduces())?;
        Some(match others.len() {
            0 if self.proof.is_canonical() => format!("canonical: every element is {first}"),
            0 => format!("every element is {first}"),
            more => format!(
                "{} different orders of summation, by place in the vector; the first: {first}",
                more + 1
            ),
        })
    }

    fn text(&self, predicted: &str) -> String {
        // Writing to a string cannot fail.
        let mut text = format!("{}\n  {}\n  {predicted}\n", self.title(), self.cost());
        if let Some(sums) = self.sums() {
            let _ = writeln!(text, "  {sums}");
        }
        if self.schedules.len() > MOST_RANKS {
            let _ = writeln!(text, "  (the steps of more than {MOST_RANKS} ranks are not listed)\n");
            return text;
        }
        for (rank, schedule) in self.schedules.iter().enumerate() {
            let _ = writeln!(text, "  rank {rank}");
            for (number, stage) in schedule.stages.iter().enumerate() {
                let _ = writeln!(text, "  {:>4}  {}", number + 1, stage_text(stage));
            }
        }
        text.push('\n');
        text
    }
}

/// A size with its unit, exact.
fn size_text(bytes: usize) -> String {
    match ByteSize(bytes).to_string() {
        text if text.ends_with(|c: char| c.is_ascii_digit()) => format!("{text} B"),
        text => format!("{} {}iB", &text[..text.len() - 1], &text[text.len() - 1..]),
    }
}

/// A stage in words: what is received is said together with what is done with it.
fn stage_text(stage: &Stage) -> String {
    let mut words = Vec::new();
    let mut told: Vec<&Step> = Vec::new();
    for step in &stage.steps {
        match step {
            Step::Send { to, from } => words.push(format!("send {from} to {to}")),
            Step::Recv { from, into } => {
                let reads = |step: &&Step| match step {
                    Step::Reduce { left, right, .. } => left.overlaps(into) || right.overlaps(into),
                    Step::Copy { from, .. } => from.overlaps(into),
                    Step::Send { .. } | Step::Recv { .. } => false,
                };
                let users: Vec<&Step> = stage.steps.iter().filter(reads).collect();
                match (users.as_slice(), use_of(into, &stage.steps)) {
                    ([user], (Some(lands), reduced)) => {
                        let verb = if reduced { "add" } else { "store" };
                        words.push(format!("{verb} buffer[{}..{}] from {from}", lands.start, lands.end));
                        told.push(user);
                    }
                    _ => words.push(format!("receive {into} from {from}")),
                }
            }
            Step::Copy { .. } | Step::Reduce { .. } if told.contains(&step) => {}
            Step::Copy { .. } | Step::Reduce { .. } => words.push(step.to_string()),
        }
    }
    words.join("; ")
}
