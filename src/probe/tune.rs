//! Times of every algorithm at a few sizes, for both orders in which algorithms compete.

use super::Probe;
use crate::buffer::FlatBuffer;
use crate::cluster::{Cluster, Measured};
use crate::collective::{
    COLLECTIVE_NAMES, Communicator, CommunicatorOptions, Kind, Order, collective_by_name,
};
use crate::error::{Error, Result};
use crate::reduce::Operator;
use std::time::Instant;

/// Elements (f32) of the vectors: 4 B to 16 MiB.
const COUNTS: [usize; 12] =
    [1, 1 << 6, 1 << 8, 1 << 10, 1 << 12, 1 << 14, 1 << 16, 1 << 17, 1 << 18, 1 << 19, 1 << 20, 1 << 22];
const ORDERS: [Order; 2] = [Order::Canonical, Order::Fastest];
/// Repetitions of each size, if there is time.
const REPETITIONS: usize = 31;

struct Candidate {
    name: &'static str,
    communicator: Communicator,
    times: Vec<(u64, f64)>,
}

impl Probe<'_> {
    pub(super) fn tune(&self, communicator: &mut Communicator, cluster: &mut Cluster) -> Result<()> {
        let steps = COUNTS.len() * ORDERS.len();
        self.bar.set_length(steps as u64);
        self.bar.set_position(0);
        // Rank 0's clock, as everywhere: all ranks must find the time used up at the same repetition.
        let begun = communicator.gather(self.say(0.0))?.members[0].step_seconds;
        let begun_share = begun / self.flags.budget.as_secs_f64();
        let mut buffer = FlatBuffer::new(COUNTS[COUNTS.len() - 1]);
        let mut candidates =
            ORDERS.iter().map(|&order| self.candidates(order)).collect::<Result<Vec<_>>>()?;
        let mut step = 0;
        // Sizes outside, orders inside: what time leaves out is the longest vectors, of both orders alike.
        'sizes: for count in COUNTS {
            for candidates in &mut candidates {
                step += 1;
                let share = begun_share + (1.0 - begun_share) * step as f64 / steps as f64;
                if self.measure_size(candidates, &mut buffer[..count], share)? {
                    break 'sizes;
                }
                self.bar.inc(1);
            }
        }
        for (order, candidates) in ORDERS.into_iter().zip(candidates) {
            cluster.measured.extend(
                candidates.into_iter().filter(|candidate| !candidate.times.is_empty()).map(|candidate| {
                    Measured {
                        operation: Kind::AllReduce.to_string(),
                        order: order.to_string(),
                        collective: candidate.name.into(),
                        times: candidate.times,
                    }
                }),
            );
        }
        Ok(())
    }

    /// Those that do an all-reduce in this order.
    fn candidates(&self, order: Order) -> Result<Vec<Candidate>> {
        let mut candidates = Vec::new();
        for name in COLLECTIVE_NAMES {
            let collective = collective_by_name(name, None)?;
            let options = CommunicatorOptions { collective, order, ..self.options() };
            match Communicator::new(self.transport.clone(), options) {
                Ok(communicator) => candidates.push(Candidate { name, communicator, times: Vec::new() }),
                Err(Error::Refused { .. }) => {}
                Err(other) => return Err(other),
            }
        }
        Ok(candidates)
    }

    /// Repeats all candidates in turn, so that whatever disturbs disturbs all; answers whether all time is used up.
    fn measure_size(&self, candidates: &mut [Candidate], buffer: &mut [f32], share: f64) -> Result<bool> {
        let mut seconds = vec![Vec::with_capacity(REPETITIONS); candidates.len()];
        let mut is_over = false;
        // The first repetition makes plans and touches memory.
        for repetition in 0..=REPETITIONS {
            let mut is_late = false;
            for (candidate, seconds) in candidates.iter_mut().zip(&mut seconds) {
                let communicator = &mut candidate.communicator;
                communicator.enter(buffer.len(), Operator::Sum, self.say(0.0))?;
                let begun = Instant::now();
                communicator.all_reduce_entered(buffer, Operator::Sum)?;
                let own = begun.elapsed().as_secs_f64();
                let members = communicator.gather(self.say(own))?.members;
                if repetition > 0 {
                    seconds.push(members.iter().map(|member| member.transfer_seconds).fold(0.0, f64::max));
                }
                is_late = self.is_late(members, share);
                is_over = self.is_late(members, 1.0);
            }
            if repetition >= 3 && is_late || repetition > 0 && is_over {
                break;
            }
        }
        for (candidate, mut seconds) in candidates.iter_mut().zip(seconds) {
            // The lower quartile: near the median on a quiet machine, and steadier where other programs disturb, which only
            // ever makes a time longer.
            seconds.sort_by(f64::total_cmp);
            let quartile = seconds.get(seconds.len() / 4).copied().filter(|&seconds| seconds > 0.0);
            candidate.times.extend(quartile.map(|seconds| (size_of_val(buffer) as u64, seconds)));
        }
        Ok(is_over)
    }
}
