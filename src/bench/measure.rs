//! One collective at one size: checked, warmed up, timed, and checked again.

use super::Flags;
use super::numbers::{Contributions, Number, combine, fill_random, hash};
use crate::buffer::FlatBuffer;
use crate::collective::{Communicator, Kind, Member, part};
use crate::error::Result;
use crate::transport::Rank;
use std::time::Instant;

const ROOT: Rank = 0;

/// What all ranks found together.
pub(super) struct Measurement {
    /// Seconds of each iteration on its slowest rank.
    pub(super) seconds: Vec<f64>,
    /// Wrong elements and a hash of bits, if they were looked at.
    pub(super) checked: Option<Checked>,
}

pub(super) struct Checked {
    pub(super) wrong: u64,
    pub(super) hash: u64,
}

struct Case<'a, T: Number> {
    communicator: &'a mut Communicator,
    flags: &'a Flags,
    contributions: Contributions<T>,
    /// What each iteration begins with.
    input: FlatBuffer<T>,
    vector: FlatBuffer<T>,
}

/// Measures what `flags` ask for on vectors of `count` elements.
pub(super) fn measure<T: Number>(
    communicator: &mut Communicator,
    flags: &Flags,
    count: usize,
) -> Result<Measurement> {
    let contributions =
        Contributions::<T>::new(flags.op, flags.operator, communicator.rank(), communicator.size())
            .over(flags.wire);
    let mut input = FlatBuffer::new(count);
    contributions.fill(&mut input);
    let vector = input.clone();
    let mut case = Case { communicator, flags, contributions, input, vector };
    let before = if flags.check { case.count_wrong()? } else { 0 };
    for _ in 0..flags.warm_up {
        case.refill();
        case.call()?;
    }
    let seconds = case.time()?;
    let checked = match flags.check {
        true => {
            let after = case.count_wrong()?;
            let (hash, differing) = case.hash()?;
            Some(Checked { wrong: before + after + differing, hash })
        }
        false => None,
    };
    Ok(Measurement { seconds, checked })
}

impl<T: Number> Case<'_, T> {
    fn refill(&mut self) {
        self.vector.copy_from_slice(&self.input);
        if self.flags.op == Kind::AllGather {
            // What is to arrive must not be there before.
            let own = part(self.vector.len(), self.communicator.size(), self.communicator.rank());
            self.vector[..own.start].fill(T::small(77));
            self.vector[own.end..].fill(T::small(77));
        }
    }

    fn call(&mut self) -> Result<()> {
        let (vector, operator) = (&mut self.vector[..], self.flags.operator);
        match self.flags.op {
            Kind::AllReduce => self.communicator.all_reduce(vector, operator),
            Kind::ReduceScatter => self.communicator.reduce_scatter(vector, operator).map(drop),
            Kind::AllGather => self.communicator.all_gather(vector),
            Kind::Broadcast => self.communicator.broadcast(vector, ROOT),
            Kind::Reduce => self.communicator.reduce(vector, operator, ROOT),
        }
    }

    /// Timed iterations, until their number or the time is used up. The barrier before each one carries the time that each
    /// rank took for the one before, and rank 0's clock, so that all ranks stop together.
    fn time(&mut self) -> Result<Vec<f64>> {
        let wanted = self.flags.iterations as usize;
        let mut seconds = Vec::with_capacity(wanted);
        let begun = Instant::now();
        let mut last = None;
        loop {
            self.refill();
            let said = Member {
                transfer_seconds: last.unwrap_or_default(),
                step_seconds: begun.elapsed().as_secs_f64(),
                ..Member::default()
            };
            let members = self.communicator.gather(said)?.members;
            if last.is_some() {
                seconds.push(members.iter().map(|member| member.transfer_seconds).fold(0.0, f64::max));
            }
            let is_late = members[0].step_seconds >= self.flags.seconds_per_size.as_secs_f64();
            if seconds.len() >= wanted || is_late && !seconds.is_empty() {
                return Ok(seconds);
            }
            let started = Instant::now();
            self.call()?;
            last = Some(started.elapsed().as_secs_f64());
        }
    }

    /// Wrong elements of one call, on all ranks.
    fn count_wrong(&mut self) -> Result<u64> {
        self.refill();
        self.call()?;
        let wrong = self.contributions.wrong(&self.vector, ROOT);
        let members = self.communicator.gather(Member { samples: wrong, ..Member::default() })?.members;
        Ok(members.iter().map(|member| member.samples).sum())
    }

    /// A hash of the results of random numbers, and the number of elements on ranks whose bits differ from rank 0's.
    fn hash(&mut self) -> Result<(u64, u64)> {
        let (rank, size) = (self.communicator.rank(), self.communicator.size());
        fill_random(&mut self.vector, rank);
        self.call()?;
        let shown = match self.flags.op {
            Kind::ReduceScatter => part(self.vector.len(), size, rank),
            Kind::Reduce if rank != ROOT => 0..0,
            _ => 0..self.vector.len(),
        };
        let own = hash(bytemuck::cast_slice(&self.vector[shown]));
        let members = self.communicator.gather(Member { flags: own, ..Member::default() })?.members;
        Ok(match self.flags.op {
            Kind::ReduceScatter => (members.iter().fold(0, |hash, member| combine(hash, member.flags)), 0),
            Kind::Reduce => (members[ROOT].flags, 0),
            Kind::AllReduce | Kind::AllGather | Kind::Broadcast => {
                let differing = members.iter().filter(|member| member.flags != members[0].flags).count();
                (members[0].flags, (differing * self.vector.len()) as u64)
            }
        })
    }
}
