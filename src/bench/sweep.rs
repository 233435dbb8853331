//! All sizes and all collectives of a call.

use super::measure::{Measurement, measure};
use super::output::Output;
use super::record::bus_factor;
use super::{ByteSize, Flags, Record, Times, sweep_of};
use crate::collective::{
    COLLECTIVE_NAMES, Collective, Communicator, CommunicatorOptions, Native, Operation, Topology,
    collective_by_name,
};
use crate::error::{Error, Result};
use crate::reduce::ElementType;
use crate::train::{SlowLinks, first_failure, run_ranks};
use crate::transport::Transport;
use half::{bf16, f16};
use std::sync::Arc;

/// What a call found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Outcome {
    /// Wrong elements, over all sizes, collectives and ranks.
    pub wrong: u64,
}

const DEFAULT_LARGEST: ByteSize = ByteSize(16 << 20);

/// What the flags mean.
struct Sweep<'a> {
    flags: &'a Flags,
    counts: Vec<usize>,
    names: Vec<&'a str>,
    /// Nobody asked for a certain collective, so one that refuses is left out.
    all: bool,
}

/// Measures what the flags ask for, on the ranks of this process, and writes the results from rank 0.
///
/// # Errors
/// `Usage` for flags that cannot be used, and everything that [`run_ranks`] and the collectives return.
pub fn bench(flags: &Flags) -> Result<Outcome> {
    let sweep = Sweep::new(flags)?;
    let ranks = flags.ranks.map(usize::from);
    let results = run_ranks(flags.transport, ranks, &SlowLinks::default(), |transport| {
        sweep.run(&transport).inspect_err(|error| transport.poison(&error.to_string()))
    })?;
    Ok(first_failure(results)?.first().copied().unwrap_or_default())
}

impl<'a> Sweep<'a> {
    fn new(flags: &'a Flags) -> Result<Self> {
        let largest = flags.max_bytes.unwrap_or(DEFAULT_LARGEST.max(flags.min_bytes));
        let counts = sweep_of(flags.min_bytes, largest, flags.step_factor, flags.element.size())?;
        let all = flags.collective.iter().any(|name| name == "all");
        let names = match all {
            true => COLLECTIVE_NAMES.to_vec(),
            false => flags.collective.iter().map(String::as_str).collect(),
        };
        for name in &names {
            collective_by_name(name, None).map_err(|error| match error {
                Error::Usage(text) => Error::Usage(format!("{text}, or `all`")),
                other => other,
            })?;
        }
        Ok(Sweep { flags, counts, names, all })
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
            timeout: self.flags.timeout,
            ..CommunicatorOptions::default()
        };
        Communicator::new(transport.clone(), options)
    }

    fn run(&self, transport: &Arc<dyn Transport>) -> Result<Outcome> {
        let is_first = transport.rank() == 0;
        let mut output = if is_first { Some(Output::open(self.flags)?) } else { None };
        let mut communicators = Vec::new();
        for name in &self.names {
            if let Some(communicator) = self.unless_refused(is_first, self.communicator(name, transport))? {
                communicators.push((*name, communicator));
            }
        }
        if let (Some(output), Some((_, communicator))) = (&mut output, communicators.first()) {
            output.begin(self.flags, &**transport, communicator.topology().host_count())?;
        }
        let mut outcome = Outcome::default();
        for &count in &self.counts {
            let mut index = 0;
            while let Some((name, communicator)) = communicators.get_mut(index) {
                let measured = self.measure(communicator, count);
                let Some(measurement) = self.unless_refused(is_first, measured)? else {
                    communicators.remove(index);
                    continue;
                };
                outcome.wrong += measurement.checked.as_ref().map_or(0, |checked| checked.wrong);
                if let Some(output) = &mut output {
                    output.record(&self.record(name, &**transport, count, measurement))?;
                }
                index += 1;
            }
        }
        if communicators.is_empty() {
            return Err(Error::Usage(format!(
                "no collective does {} of {}",
                self.operation(),
                self.flags.element
            )));
        }
        if let Some(output) = &mut output {
            output.end(self.flags.check.then_some(outcome.wrong))?;
        }
        Ok(outcome)
    }

    /// A refusal is an error if the collective was asked for by name, else a note and `None`.
    fn unless_refused<R>(&self, is_first: bool, result: Result<R>) -> Result<Option<R>> {
        match result {
            Err(error @ Error::Refused { .. }) if self.all => {
                if is_first {
                    eprintln!("esync-bench: note: left out: {error}");
                }
                Ok(None)
            }
            other => other.map(Some),
        }
    }

    fn measure(&self, communicator: &mut Communicator, count: usize) -> Result<Measurement> {
        match self.flags.element {
            ElementType::F32 => measure::<f32>(communicator, self.flags, count),
            ElementType::F64 => measure::<f64>(communicator, self.flags, count),
            ElementType::I32 => measure::<i32>(communicator, self.flags, count),
            ElementType::I64 => measure::<i64>(communicator, self.flags, count),
            ElementType::F16 => measure::<f16>(communicator, self.flags, count),
            ElementType::BF16 => measure::<bf16>(communicator, self.flags, count),
        }
    }

    fn record(
        &self,
        name: &str,
        transport: &dyn Transport,
        count: usize,
        mut measured: Measurement,
    ) -> Record {
        let flags = self.flags;
        let bytes = count * flags.element.size();
        let time_us = Times::of(&mut measured.seconds);
        let algbw = if time_us.median > 0.0 { bytes as f64 / time_us.median / 1e3 } else { 0.0 };
        let rounded = |gbps: f64| (gbps * 1e6).round() / 1e6;
        Record {
            op: flags.op.to_string(),
            collective: name.into(),
            transport: transport.name().into(),
            ranks: transport.size(),
            order: flags.order,
            bytes,
            count,
            element: flags.element.name(),
            redop: if flags.op.reduces() { flags.operator.name() } else { "none" },
            in_place: true,
            registered: false,
            time_us,
            algbw_gbps: rounded(algbw),
            busbw_gbps: rounded(algbw * bus_factor(flags.op, transport.size())),
            wrong: measured.checked.as_ref().map(|checked| checked.wrong),
            iterations: measured.seconds.len(),
            result_hash: measured.checked.map(|checked| format!("{:016x}", checked.hash)),
        }
    }
}
