//! One row at one size: checked, warmed up, timed in slices, and checked again.

use super::numbers::{Contributions, Number, combine, hash};
use super::vectors::Vectors;
use super::{Flags, Refresh, Timing};
use crate::buffer::FlatBuffer;
use crate::collective::{Communicator, Kind, Member};
use crate::error::{Error, Result};
use crate::transport::Rank;
use std::time::{Duration, Instant};

const ROOT: Rank = 0;

/// Back to back, a slice holds about so many batches.
const BATCHES: f64 = 4.0;

/// What one line of results is about, and what was found out about it so far.
#[derive(Debug, Clone, Default)]
pub(super) struct Row {
    /// Which of the sweep's collectives.
    pub(super) collective: usize,
    /// Which of the size's sorts of vectors.
    pub(super) sort: usize,
    pub(super) in_place: bool,
    /// Seconds of an iteration on its slowest rank; back to back, the mean of each batch.
    pub(super) seconds: Vec<f64>,
    /// Timed iterations.
    pub(super) iterations: usize,
    /// Seconds of an iteration that was timed last, for the length of the next batch.
    latest: Option<f64>,
    pub(super) wrong: u64,
    pub(super) hash: u64,
}

impl Row {
    pub(super) fn new(collective: usize, sort: usize, in_place: bool) -> Self {
        Row { collective, sort, in_place, ..Row::default() }
    }

    /// Forgets the times, which another attempt is to replace.
    pub(super) fn restart(&mut self) {
        self.seconds.clear();
        self.iterations = 0;
    }
}

/// What rows of one size need.
pub(super) struct Bench<'a, T: Number> {
    pub(super) flags: &'a Flags,
    pub(super) contributions: Contributions<T>,
    /// What inputs begin with.
    pub(super) master: FlatBuffer<T>,
    pub(super) sorts: Vec<Vectors<T>>,
}

impl<'a, T: Number> Bench<'a, T> {
    pub(super) fn new(flags: &'a Flags, rank: Rank, ranks: usize, count: usize) -> Self {
        let contributions = Contributions::<T>::new(flags.op, flags.operator, rank, ranks).over(flags.wire);
        let mut master = FlatBuffer::new(count);
        contributions.fill(&mut master);
        Bench { flags, contributions, master, sorts: Vec::new() }
    }

    fn call(&mut self, communicator: &mut Communicator, row: &Row) -> Result<()> {
        let operator = self.flags.operator;
        let vectors = &mut self.sorts[row.sort];
        #[cfg(feature = "cuda")]
        if let Some(vector) = vectors.on_gpu() {
            match self.flags.op {
                Kind::AllReduce => communicator.all_reduce_device(vector, operator)?,
                Kind::ReduceScatter => communicator.reduce_scatter_device(vector, operator)?,
                Kind::AllGather => communicator.all_gather_device(vector)?,
                Kind::Broadcast => communicator.broadcast_device(vector, ROOT)?,
                Kind::Reduce => communicator.reduce_device(vector, operator, ROOT)?,
            }
            if self.flags.refresh == Refresh::Rotate {
                vectors.advance();
            }
            return Ok(());
        }
        let (input, output) = vectors.pair();
        match (self.flags.op, output) {
            (Kind::AllReduce, Some(output)) if !row.in_place => {
                communicator.all_reduce_from(input, output, operator)?
            }
            (Kind::AllReduce, _) => communicator.all_reduce(input, operator)?,
            (Kind::ReduceScatter, _) => communicator.reduce_scatter(input, operator).map(drop)?,
            (Kind::AllGather, _) => communicator.all_gather(input)?,
            (Kind::Broadcast, _) => communicator.broadcast(input, ROOT)?,
            (Kind::Reduce, _) => communicator.reduce(input, operator, ROOT)?,
        }
        if self.flags.refresh == Refresh::Rotate {
            vectors.advance();
        }
        Ok(())
    }

    /// One call, whose result is checked element by element on all ranks; none if `flags` want no checks.
    pub(super) fn check(&mut self, communicator: &mut Communicator, row: &mut Row) -> Result<()> {
        self.sorts[row.sort].begin(&self.contributions, &self.master)?;
        if !self.flags.check {
            return Ok(());
        }
        self.call(communicator, row)?;
        self.sorts[row.sort].download()?;
        let vectors = &self.sorts[row.sort];
        let mut wrong = self.contributions.wrong(vectors.result(row.in_place), ROOT);
        if !row.in_place {
            wrong += vectors.changed(&self.master);
        }
        let members = communicator.gather(Member { samples: wrong, ..Member::default() })?.members;
        row.wrong += members.iter().map(|member| member.samples).sum::<u64>();
        Ok(())
    }

    /// Notes a hash of the results of random numbers, and counts as wrong what differs from rank 0's bits.
    pub(super) fn hash(&mut self, communicator: &mut Communicator, row: &mut Row) -> Result<()> {
        if !self.flags.check {
            return Ok(());
        }
        self.sorts[row.sort].begin_random(communicator.rank())?;
        self.call(communicator, row)?;
        self.sorts[row.sort].download()?;
        let result = self.sorts[row.sort].result(row.in_place);
        let len = result.len();
        let own = hash(bytemuck::cast_slice(&result[self.contributions.defined(len, ROOT)]));
        let members = communicator.gather(Member { flags: own, ..Member::default() })?.members;
        row.hash = match self.flags.op {
            Kind::ReduceScatter => members.iter().fold(0, |hash, member| combine(hash, member.flags)),
            Kind::Reduce => members[ROOT].flags,
            Kind::AllReduce | Kind::AllGather | Kind::Broadcast => {
                let differing = members.iter().filter(|member| member.flags != members[0].flags).count();
                row.wrong += (differing * len) as u64;
                members[0].flags
            }
        };
        Ok(())
    }

    /// Untimed calls, after which the vectors are as the timed iterations want them.
    pub(super) fn warm_up(&mut self, communicator: &mut Communicator, row: &Row) -> Result<()> {
        for _ in 0..self.flags.warm_up {
            self.refresh(row)?;
            self.call(communicator, row)?;
        }
        if self.flags.refresh != Refresh::Rewrite {
            self.sorts[row.sort].begin_zero()?;
        }
        Ok(())
    }

    fn refresh(&mut self, row: &Row) -> Result<()> {
        match self.flags.refresh {
            Refresh::Rewrite => self.sorts[row.sort].rewrite(&self.contributions, &self.master),
            Refresh::None | Refresh::Rotate => Ok(()),
        }
    }

    /// Timed iterations, until there are `most` or `limit` is used up. The barrier before each (or before each batch)
    /// carries the time that every rank took for the one before, and rank 0's clock, so that all ranks stop together.
    pub(super) fn slice(
        &mut self,
        communicator: &mut Communicator,
        row: &mut Row,
        limit: Duration,
        most: usize,
    ) -> Result<()> {
        if self.flags.warm_up > 0 {
            // Other rows have used the caches since.
            self.refresh(row)?;
            self.call(communicator, row)?;
        }
        let begun = Instant::now();
        let (mut last, mut done, mut batch) = (None, 0, 1);
        loop {
            if last.is_some() && self.flags.refresh == Refresh::Rewrite {
                // Where ranks take turns on the cores, one that is not back yet must not wait for the rewriting of others.
                communicator.barrier()?;
            }
            self.refresh(row)?;
            let said = Member {
                transfer_seconds: last.unwrap_or_default(),
                step_seconds: begun.elapsed().as_secs_f64(),
                ..Member::default()
            };
            let members = communicator.gather(said)?.members;
            let slowest = members.iter().map(|member| member.transfer_seconds).fold(0.0, f64::max);
            let is_late = members[0].step_seconds >= limit.as_secs_f64();
            if last.is_some() {
                let is_probe = self.flags.timing == Timing::BackToBack && row.latest.is_none() && most > 1;
                row.latest = Some(slowest / batch as f64);
                if !is_probe {
                    row.seconds.push(slowest / batch as f64);
                    row.iterations += batch;
                    done += batch;
                }
            }
            if done >= most || is_late && done > 0 {
                return Ok(());
            }
            batch = self.batch(row, limit, most - done);
            let started = Instant::now();
            for _ in 0..batch {
                self.call(communicator, row)?;
            }
            last = Some(started.elapsed().as_secs_f64());
        }
    }

    /// How many iterations are timed together. All ranks come to the same number, because they know the same times.
    fn batch(&self, row: &Row, limit: Duration, most: usize) -> usize {
        match (self.flags.timing, row.latest) {
            (Timing::BackToBack, Some(latest)) => {
                ((limit.as_secs_f64() / BATCHES / latest.max(1e-9)) as usize).clamp(1, most)
            }
            _ => 1,
        }
    }
}

/// Whether a row's collective refused what was asked of it, which all ranks see alike and before anything is sent.
pub(super) fn is_refusal(error: &Error) -> bool {
    matches!(error, Error::Refused { .. })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collective::{Collective, CommunicatorOptions, Operation, Schedule, Topology};
    use crate::reduce::Operator;
    use crate::transport::threads;
    use clap::{Args, Command, FromArgMatches};
    use std::sync::Arc;

    /// Forgets all other ranks.
    struct Forgetful;

    impl Collective for Forgetful {
        fn name(&self) -> &'static str {
            "forgetful"
        }

        fn schedule(&self, _: &Operation, _: &Topology, _: Rank, _: usize) -> Result<Schedule> {
            Ok(Schedule::empty())
        }
    }

    #[test]
    fn wrong_elements_and_differing_ranks_are_counted() {
        let matches = Flags::augment_args(Command::new("bench")).get_matches_from(["bench"]);
        let flags = Flags::from_arg_matches(&matches).expect("the defaults");
        let rows = threads::run(3, |transport| {
            let options =
                CommunicatorOptions { collective: Arc::new(Forgetful), ..CommunicatorOptions::default() };
            let mut communicator = Communicator::new(Arc::new(transport), options)?;
            let count = 1000;
            let mut rows = Vec::new();
            for in_place in [true, false] {
                let mut bench = Bench::<f32>::new(&flags, communicator.rank(), communicator.size(), count);
                bench.sorts.push(Vectors::new(&communicator, &flags, false, true, count)?);
                let mut row = Row::new(0, 0, in_place);
                bench.check(&mut communicator, &mut row)?;
                let of_elements = row.wrong;
                bench.hash(&mut communicator, &mut row)?;
                rows.push((of_elements, row.wrong - of_elements));
            }
            Ok(rows)
        });
        for row in rows {
            let row = row.expect("it runs");
            let contributions: Vec<_> = (0..3)
                .map(|rank| Contributions::<f32>::new(Kind::AllReduce, Operator::Sum, rank, 3))
                .collect();
            let wrong = contributions.iter().map(|own| {
                let mut vector = vec![0.0; 1000];
                own.fill(&mut vector);
                own.wrong(&vector, ROOT)
            });
            let wrong: u64 = wrong.sum();
            assert!(wrong > 1000, "{wrong}");
            assert_eq!(row, [(wrong, 2000), (wrong, 2000)]);
        }
    }
}
