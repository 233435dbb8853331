//! All sizes and all collectives of a call.

use super::ceiling::{Meter, Work};
use super::host;
use super::output::{Facts, Output};
use super::record::bus_factor;
use super::size::{Found, Size, TURNS, placements};
use super::vectors::bytes_needed;
use super::{Buffers, ByteSize, Flags, Placement, Record, Switch, Times, explain};
use crate::collective::{
    COLLECTIVE_NAMES, Collective, Communicator, CommunicatorOptions, Kind, Member, Native, Operation,
    TWO_SHOT, Topology, collective_by_name,
};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::reduce::ElementType;
use crate::train::{Placed, SlowLinks, first_failure, run_ranks};
use crate::transport::Transport;
use half::{bf16, f16};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::sync::Arc;

/// What a call found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Outcome {
    /// Wrong elements, over all sizes, collectives and ranks.
    pub wrong: u64,
}

impl Outcome {
    /// The exit code of a program that found this: 1 if an element was wrong.
    pub fn exit_code(&self) -> u8 {
        u8::from(self.wrong > 0)
    }
}

/// The collective of a communicator whose all-reduce takes another form anyway: one with all orders.
const CARRIER: &str = "parameter-server";

fn is_narrow(flags: &Flags) -> bool {
    flags.op == Kind::AllReduce && flags.wire.narrows(flags.element)
}

/// What the flags mean.
struct Sweep<'a> {
    flags: &'a Flags,
    counts: Vec<usize>,
    names: Vec<&'a str>,
    /// Nobody asked for a certain collective, so one that refuses is left out.
    all: bool,
    cores: Vec<usize>,
}

/// Does what the flags ask for: measures on the ranks of this process and writes the results from rank 0, or explains.
///
/// # Errors
/// `Usage` for flags that cannot be used, and everything that [`run_ranks`] and the collectives return.
pub fn bench(flags: &Flags) -> Result<Outcome> {
    let sweep = Sweep::new(flags)?;
    if flags.explain || flags.draw.is_some() {
        return explain::explain(flags, &sweep.names, sweep.all, sweep.counts[0])
            .map(|()| Outcome::default());
    }
    let ranks = flags.ranks.map(usize::from);
    let results = run_ranks(flags.transport, ranks, &SlowLinks::default(), |transport| {
        let placed =
            Placed::agree(transport.clone(), &flags.device, flags.transport, flags.timeout, || Ok(()));
        placed.and_then(|placed| sweep.run(&placed)).inspect_err(|error| transport.poison(&error.to_string()))
    })?;
    Ok(first_failure(results)?.first().copied().unwrap_or_default())
}

impl<'a> Sweep<'a> {
    fn new(flags: &'a Flags) -> Result<Self> {
        let counts = flags.counts()?;
        let all = flags.collective.iter().any(|name| name == "all");
        let is_narrow = is_narrow(flags);
        if is_narrow && (!all || flags.explain || flags.draw.is_some()) {
            return Err(Error::Usage(format!(
                "--wire {} of {} always takes the form `{TWO_SHOT}`, which has no schedule: leave out --collective, --explain \
                 and --draw",
                flags.wire, flags.element
            )));
        }
        let names = match all {
            true if is_narrow => vec![CARRIER],
            true => COLLECTIVE_NAMES.to_vec(),
            false => flags.collective.iter().map(String::as_str).collect(),
        };
        for name in &names {
            collective_by_name(name, None).map_err(|error| match error {
                Error::Usage(text) => Error::Usage(format!("{text}, or `all`")),
                other => other,
            })?;
        }
        if flags.placement == Placement::Out && !flags.device.are_cpu() {
            return Err(Error::Usage(
                "--placement out is for vectors of the CPU; on GPUs leave the flag out".into(),
            ));
        }
        if flags.placement == Placement::Out && flags.op != Kind::AllReduce {
            return Err(Error::Usage(format!(
                "--placement out is for all-reduce; {} works in place: leave the flag out",
                flags.op
            )));
        }
        Ok(Sweep { flags, counts, names, all, cores: host::cores() })
    }

    fn operation(&self) -> Operation {
        Operation::new(self.flags.op).with_order(self.flags.order)
    }

    /// A communicator for a collective that does the operation itself, not by way of another algorithm.
    fn communicator(&self, name: &str, transport: &Arc<dyn Transport>) -> Result<Communicator> {
        let collective = collective_by_name(name, None)?;
        // `auto` competes among those that do the operation; one of them does everything.
        if name == Native.name() {
            Native.check(&self.operation(), &**transport)?;
        } else if collective.as_auto().is_none() {
            let size = transport.size();
            collective.schedule(&self.operation(), &Topology::flat(size), transport.rank(), size)?;
        }
        let options = CommunicatorOptions {
            collective,
            order: self.flags.order,
            wire: self.flags.wire,
            timeout: self.flags.timeout,
            ..CommunicatorOptions::default()
        };
        Communicator::new(transport.clone(), options)
    }

    fn run(&self, placed: &Placed) -> Result<Outcome> {
        let transport = &placed.transport;
        let is_first = transport.rank() == 0;
        // Opened first, so that a wrong path is known before an hour of measurements.
        let mut output = if is_first { Some(Output::open(self.flags)?) } else { None };
        let (mut names, mut communicators) = (Vec::new(), Vec::new());
        for name in &self.names {
            match self.communicator(name, transport) {
                Err(error @ Error::Refused { .. }) if self.all => note(is_first, &error),
                other => {
                    let mut communicator = other?;
                    if placed.has_gpus() {
                        communicator.agree_devices(&placed.device)?;
                    }
                    communicators.push(communicator);
                    names.push(if is_narrow(self.flags) { TWO_SHOT } else { *name });
                }
            }
        }
        let Some(leader) = communicators.first_mut() else { return Err(self.nobody()) };
        let sorts = if placed.has_gpus() { vec![false] } else { self.sorts(leader, is_first)? };
        let hosts = leader.topology().host_count();
        self.check_memory(leader, sorts.len())?;
        // The host's ceiling says nothing about vectors that lie elsewhere.
        let mut meter = self.meter(is_first && !placed.has_gpus(), &**transport, hosts);
        let gpu = self.gpu(is_first, &placed.device)?;
        if let Some(notice) = placed.notice.as_ref().filter(|_| is_first) {
            eprintln!("esync-bench: note: {notice}");
        }
        let simple_rates = meter.as_mut().map(|meter| meter.simple_rates(self.largest_bytes()));
        if let Some(output) = &mut output {
            output.begin(
                self.flags,
                &Facts {
                    transport: &**transport,
                    hosts,
                    cores: &self.cores,
                    simple_rates,
                    gpu: gpu.as_ref().map(|(name, copy)| (name.as_str(), *copy)),
                },
            )?;
        }
        let mut taking_part: Vec<usize> = (0..names.len()).collect();
        let progress = self.progress(is_first, names.len() * sorts.len());
        let mut most_repeats = self.flags.repeat_contaminated;
        let mut outcome = Outcome::default();
        for &count in &self.counts {
            let bytes = count * self.flags.element.size();
            progress.set_message(ByteSize(bytes).to_string());
            let size = Size {
                flags: self.flags,
                communicators: &mut communicators,
                taking_part: &taking_part,
                sorts: &sorts,
                meter: meter.as_mut(),
                cores: &self.cores,
                most_repeats,
                progress: &progress,
            };
            let found = self.measure(size, count)?;
            for (refused, error) in &found.refused {
                if !self.all {
                    return Err(error.clone());
                }
                progress.suspend(|| note(is_first, error));
                taking_part.retain(|index| index != refused);
            }
            outcome.wrong += found.rows.iter().map(|row| row.wrong).sum::<u64>();
            let records = self.records(&names, placed, gpu.as_ref().map(|gpu| gpu.1), hosts, count, &found);
            if most_repeats > 0
                && found.repeats == most_repeats
                && records.iter().any(Record::is_contaminated)
            {
                most_repeats = 0;
                if is_first {
                    let text = "esync-bench: note: other programs keep taking more than 10% of the cores; later sizes are \
                                not measured again";
                    progress.suspend(|| eprintln!("{text}"));
                }
            }
            if let Some(output) = &mut output {
                progress.suspend(|| output.size(&records))?;
            }
            if taking_part.is_empty() {
                return Err(self.nobody());
            }
        }
        progress.finish_and_clear();
        if let Some(output) = output {
            output.end(self.flags.check.then_some(outcome.wrong))?;
        }
        Ok(outcome)
    }

    /// The GPU of rank 0, and what its own copy reads and writes.
    #[cfg(feature = "cuda")]
    fn gpu(&self, is_first: bool, device: &Device) -> Result<Option<(String, f64)>> {
        let Some(gpu) = device.gpu().filter(|_| is_first) else { return Ok(None) };
        Ok(Some((gpu.to_string(), super::gpu_copy::copy_gbps(gpu, self.largest_bytes())?)))
    }

    #[cfg(not(feature = "cuda"))]
    fn gpu(&self, _: bool, _: &Device) -> Result<Option<(String, f64)>> {
        Ok(None)
    }

    fn nobody(&self) -> Error {
        Error::Usage(format!("no collective does {} of {}", self.operation(), self.flags.element))
    }

    fn largest_bytes(&self) -> usize {
        self.counts.last().copied().unwrap_or_default() * self.flags.element.size()
    }

    /// The sorts of memory that make a difference on this transport.
    fn sorts(&self, leader: &mut Communicator, is_first: bool) -> Result<Vec<bool>> {
        let probe = leader.alloc::<f32>(1024)?;
        let process = std::process::id().into();
        let own = Member { flags: probe.is_registered().into(), samples: process, ..Member::default() };
        let members = leader.gather(own)?.members;
        let registered = members.iter().all(|member| member.flags == 1);
        // Threads of one process reach each other's memory anyway.
        let one_process = members.iter().all(|member| member.samples == members[0].samples);
        Ok(match self.flags.buffers {
            Buffers::Private => vec![false],
            Buffers::Registered => {
                if !registered && is_first {
                    eprintln!(
                        "esync-bench: note: transport `{}` registers no memory; the vectors are private",
                        leader.transport().name()
                    );
                }
                vec![true]
            }
            Buffers::Both if registered && one_process => vec![true],
            Buffers::Both if registered => vec![true, false],
            Buffers::Both => vec![false],
        })
    }

    /// Better an error at the start than a process that the system kills in the middle.
    fn check_memory(&self, leader: &Communicator, sorts: usize) -> Result<()> {
        let topology = leader.topology();
        let on_host =
            (0..topology.size()).filter(|&rank| topology.host(rank) == topology.host(leader.rank())).count();
        let uses = placements(self.flags).len();
        let each = bytes_needed(self.flags, leader.size(), self.largest_bytes(), sorts, uses);
        let needed = each.saturating_mul(on_host);
        match host::available_bytes() {
            Some(free) if needed > free => Err(Error::Usage(format!(
                "the largest vectors need {:.1} GB on this host, which has {:.1} GB free; choose a smaller -e, fewer \
                 ranks, or one of --placement and --buffers",
                needed as f64 / 1e9,
                free as f64 / 1e9
            ))),
            _ => Ok(()),
        }
    }

    /// Only rank 0 measures a ceiling, and only where all ranks share its cores.
    fn meter(&self, is_first: bool, transport: &dyn Transport, hosts: usize) -> Option<Meter> {
        let ranks = transport.size();
        if !is_first || self.flags.ceiling == Switch::Off || ranks < 2 {
            return None;
        }
        if hosts > 1 {
            eprintln!("esync-bench: note: no ceiling: the ranks are on {hosts} hosts");
            return None;
        }
        let work =
            Work { kind: self.flags.op, element: self.flags.element, operator: self.flags.operator, ranks };
        let largest = self.largest_bytes();
        let meter = Meter::new(work, &self.cores, largest);
        if meter.bytes_measured(largest) < largest {
            eprintln!(
                "esync-bench: note: from {} bytes of each rank on, the ceiling is that of so many: there is not more memory",
                meter.bytes_measured(largest)
            );
        }
        Some(meter)
    }

    /// A bar where a person waits and watches.
    fn progress(&self, is_first: bool, rows: usize) -> ProgressBar {
        let rows = rows * placements(self.flags).len();
        let seconds = (self.counts.len() * rows) as f64 * self.flags.seconds_per_size.as_secs_f64();
        // On a terminal the table's own lines show progress enough if they come quickly.
        if !is_first || seconds < 5.0 || !std::io::stderr().is_terminal() {
            return ProgressBar::hidden();
        }
        let steps = (self.counts.len() * rows * TURNS) as u64;
        let bar = ProgressBar::with_draw_target(Some(steps), ProgressDrawTarget::stderr_with_hz(4));
        let style =
            ProgressStyle::with_template("{bar:30} {percent:>3}%  {msg}  {elapsed} of about {duration}");
        bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
    }

    fn measure(&self, size: Size<'_>, count: usize) -> Result<Found> {
        match self.flags.element {
            ElementType::F32 => size.measure::<f32>(count),
            ElementType::F64 => size.measure::<f64>(count),
            ElementType::I32 => size.measure::<i32>(count),
            ElementType::I64 => size.measure::<i64>(count),
            ElementType::F16 => size.measure::<f16>(count),
            ElementType::BF16 => size.measure::<bf16>(count),
        }
    }

    fn records(
        &self,
        names: &[&str],
        placed: &Placed,
        copy_gbps: Option<f64>,
        hosts: usize,
        count: usize,
        found: &Found,
    ) -> Vec<Record> {
        let flags = self.flags;
        let bytes = count * flags.element.size();
        let rounded = |value: f64| (value * 1e6).round() / 1e6;
        let transport = &*placed.transport;
        let mut devices = placed.devices.clone();
        devices.dedup();
        let device = devices.join(",");
        let record = |row: &super::measure::Row| {
            let time_us = Times::of(&mut row.seconds.clone());
            let algbw = if time_us.median > 0.0 { bytes as f64 / time_us.median / 1e3 } else { 0.0 };
            let ceiling_us = found.ceiling.map(|ceiling| rounded(ceiling.seconds * 1e6));
            Record {
                op: flags.op.to_string(),
                collective: names[row.collective].into(),
                transport: transport.name().into(),
                device: device.clone(),
                ranks: transport.size(),
                order: flags.order,
                wire: flags.wire,
                bytes,
                count,
                element: flags.element.name(),
                redop: if flags.op.reduces() { flags.operator.name() } else { "none" },
                in_place: row.in_place,
                registered: found.registered[row.sort],
                time_us,
                algbw_gbps: rounded(algbw),
                busbw_gbps: rounded(algbw * bus_factor(flags.op, transport.size())),
                ceiling_us,
                ceiling_gbps: found.ceiling.map(|ceiling| rounded(ceiling.gbps())),
                copy_gbps: copy_gbps.map(rounded),
                ceiling_share: ceiling_us
                    .filter(|_| time_us.median > 0.0)
                    .map(|us| rounded(us / time_us.median)),
                wrong: flags.check.then_some(row.wrong),
                iterations: row.iterations,
                result_hash: flags.check.then(|| format!("{:016x}", row.hash)),
                samples: row.seconds.len(),
                timing: flags.timing,
                refresh: flags.refresh,
                foreign_cpu_share: found.foreign_share.map(|share| (share * 1e3).round() / 1e3),
                repeats: found.repeats,
                hosts,
                cores: self.cores.len(),
                version: env!("CARGO_PKG_VERSION"),
            }
        };
        found.rows.iter().map(record).collect()
    }
}

fn note(is_first: bool, error: &Error) {
    if is_first {
        eprintln!("esync-bench: note: left out: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_element_fails_the_program() {
        assert_eq!([0, 1, 256, 1 << 40].map(|wrong| Outcome { wrong }.exit_code()), [0, 1, 1, 1]);
    }
}
