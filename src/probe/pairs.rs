//! Latency, message rate and bandwidth between two ranks.

use super::Probe;
use crate::buffer::FlatBuffer;
use crate::cluster::{Cluster, Link};
use crate::collective::{
    Collective, Communicator, CommunicatorOptions, Operation, Schedule, Slice, Step, Topology,
};
use crate::error::Result;
use crate::reduce::Operator;
use crate::transport::Rank;
use std::sync::Arc;
use std::time::Instant;

/// There and back so often in one measurement of the latency.
const ROUND_TRIPS: usize = 5;
/// Messages one after the other, for the rate.
const BURST: usize = 32;
/// There and back so often in one measurement of the bandwidth.
const LONG_ROUND_TRIPS: usize = 1;
/// Elements (f32) of a long message: 1 MiB.
const LONG: usize = 1 << 18;
/// The minimum of so many short repetitions counts: whatever disturbs makes it longer, and few rounds are disturbed less
/// often than many.
const REPETITIONS: usize = 15;
/// The share of all time after which pairs are guessed from others.
const SHARE_OF_TIME: f64 = 0.4;

/// Two ranks that talk, while the others have nothing to do. What they do follows from the length.
#[derive(Debug, Clone, Copy)]
struct Pair {
    first: Rank,
    second: Rank,
}

impl Collective for Pair {
    fn name(&self) -> &'static str {
        "pair of ranks"
    }

    fn schedule(&self, _: &Operation, _: &Topology, rank: Rank, len: usize) -> Result<Schedule> {
        let mut schedule = Schedule::empty();
        let scratch = schedule.add_scratch(len.max(BURST));
        let (is_first, other) =
            (rank == self.first, if rank == self.first { self.second } else { self.first });
        if !is_first && rank != self.second {
            return Ok(schedule);
        }
        let send = |len| Step::Send { to: other, from: Slice::buffer(0..len) };
        let receive = |len| Step::Recv { from: other, into: Slice::scratch(scratch, 0..len) };
        if len == BURST {
            let one = |index: usize| match is_first {
                true => Step::Send { to: other, from: Slice::buffer(index..index + 1) },
                false => Step::Recv { from: other, into: Slice::scratch(scratch, index..index + 1) },
            };
            schedule.push((0..BURST).map(one));
            schedule.push([if is_first { receive(1) } else { send(1) }]);
            return Ok(schedule);
        }
        for _ in 0..if len == LONG { LONG_ROUND_TRIPS } else { ROUND_TRIPS } {
            let mut steps = [send(len), receive(len)];
            if !is_first {
                steps.reverse();
            }
            steps.into_iter().for_each(|step| schedule.push([step]));
        }
        Ok(schedule)
    }
}

impl Probe<'_> {
    /// Measures all pairs, those between hosts that no other pair has spoken for first.
    pub(super) fn measure_pairs(&self, cluster: &mut Cluster) -> Result<()> {
        let size = cluster.size();
        let host = |rank: Rank| cluster.workers[rank].host;
        let all = (0..size).flat_map(|first| (first + 1..size).map(move |second| (first, second)));
        let mut seen = Vec::new();
        let (mut pairs, mut others) = (Vec::new(), Vec::new());
        for (first, second) in all {
            let hosts = (host(first), host(second));
            let queue = if seen.contains(&hosts) { &mut others } else { &mut pairs };
            queue.push((hosts, first, second));
            seen.push(hosts);
        }
        pairs.append(&mut others);
        self.bar.set_length(pairs.len() as u64);
        let mut buffer = FlatBuffer::new(LONG);
        let mut measured: Vec<((usize, usize), Link)> = Vec::new();
        let mut is_late = false;
        for (hosts, first, second) in pairs {
            let known = measured.iter().find(|(other, _)| *other == hosts).map(|(_, link)| *link);
            let link = match known.filter(|_| is_late) {
                Some(link) => link,
                None => {
                    let (link, late) = self.measure_pair(Pair { first, second }, &mut buffer)?;
                    is_late = late;
                    link
                }
            };
            measured.push((hosts, link));
            cluster.set_link(first, second, link);
            cluster.set_link(second, first, link);
            self.bar.inc(1);
        }
        Ok(())
    }

    fn measure_pair(&self, pair: Pair, buffer: &mut [f32]) -> Result<(Link, bool)> {
        let options = CommunicatorOptions { collective: Arc::new(pair), ..self.options() };
        let mut communicator = Communicator::new(self.transport.clone(), options)?;
        let mut is_late = false;
        let mut quickest = |len: usize| -> Result<f64> {
            let mut quickest = f64::INFINITY;
            for _ in 0..REPETITIONS {
                let (seconds, late) = self.time(&mut communicator, pair.first, &mut buffer[..len])?;
                quickest = quickest.min(seconds);
                is_late = late;
            }
            Ok(quickest)
        };
        let latency_seconds = quickest(1)? / (2 * ROUND_TRIPS) as f64;
        let burst_seconds = quickest(BURST)?;
        let long_seconds = quickest(LONG)? / (2 * LONG_ROUND_TRIPS) as f64;
        let message_seconds = (burst_seconds - 2.0 * latency_seconds) / (BURST - 1) as f64;
        // If even the quickest short message was disturbed, the long one's whole time is the better estimate.
        let transfer_seconds = match long_seconds > latency_seconds {
            true => long_seconds - latency_seconds,
            false => long_seconds,
        };
        let link = Link {
            latency_seconds,
            // A burst that was disturbed, or taken in at once, says nothing.
            message_seconds: message_seconds.clamp(latency_seconds / 20.0, latency_seconds),
            seconds_per_byte: transfer_seconds / (LONG * size_of::<f32>()) as f64,
        };
        Ok((link, is_late))
    }

    /// Seconds that one rank took for an operation after all had entered, and whether it is late.
    pub(super) fn time(
        &self,
        communicator: &mut Communicator,
        clock: Rank,
        buffer: &mut [f32],
    ) -> Result<(f64, bool)> {
        communicator.enter(buffer.len(), Operator::Sum, self.say(0.0))?;
        let begun = Instant::now();
        communicator.all_reduce_entered(buffer, Operator::Sum)?;
        let seconds = begun.elapsed().as_secs_f64();
        let members = communicator.gather(self.say(seconds))?.members;
        Ok((members[clock].transfer_seconds, self.is_late(members, SHARE_OF_TIME)))
    }
}
