//! All rows of one size, interleaved.
//!
//! The rows take turns in slices of their time, so that what the machine does meanwhile (its clock, its other programs)
//! meets all of them alike and their medians compare. The ceiling is sampled in the same turns.

use super::ceiling::{Ceiling, Meter, Parts};
use super::host::{self, CoreSeconds};
use super::measure::{Bench, Row, is_refusal};
use super::numbers::Number;
use super::record::CONTAMINATED;
use super::vectors::Vectors;
use super::{Flags, Placement};
use crate::collective::{Communicator, Kind, Member};
use crate::error::{Error, Result};
use indicatif::ProgressBar;

/// Turns of each row; with one iteration in each at least, so many iterations.
pub(super) const TURNS: usize = 5;

/// What was found at one size.
pub(super) struct Found {
    pub(super) rows: Vec<Row>,
    /// For each sort of vectors, whether other ranks could reach them.
    pub(super) registered: Vec<bool>,
    pub(super) ceiling: Option<Ceiling>,
    pub(super) foreign_share: Option<f64>,
    pub(super) repeats: u32,
    /// The collectives that refused, with what they said.
    pub(super) refused: Vec<(usize, Error)>,
}

/// What one size needs besides its vectors.
pub(super) struct Size<'a> {
    pub(super) flags: &'a Flags,
    pub(super) communicators: &'a mut [Communicator],
    /// Which of the communicators take part.
    pub(super) taking_part: &'a [usize],
    /// The sorts of memory: registered or not.
    pub(super) sorts: &'a [bool],
    /// Measures the ceiling, on rank 0.
    pub(super) meter: Option<&'a mut Meter>,
    pub(super) cores: &'a [usize],
    /// How often it may be measured again.
    pub(super) most_repeats: u32,
    pub(super) progress: &'a ProgressBar,
}

/// Where results may go, for an operation.
pub(super) fn placements(flags: &Flags) -> &'static [bool] {
    match (flags.op, flags.placement) {
        _ if !flags.device.are_cpu() => &[true],
        (Kind::AllReduce, Placement::Both) => &[false, true],
        (Kind::AllReduce, Placement::Out) => &[false],
        _ => &[true],
    }
}

impl Size<'_> {
    pub(super) fn measure<T: Number>(mut self, count: usize) -> Result<Found> {
        let (rank, ranks) = (self.leader().rank(), self.leader().size());
        let mut bench = Bench::<T>::new(self.flags, rank, ranks, count);
        let in_place = placements(self.flags);
        for &registered in self.sorts {
            let out_of_place = in_place.contains(&false);
            let flags = self.flags;
            bench.sorts.push(Vectors::new(self.leader(), flags, registered, out_of_place, count)?);
        }
        let registered = self.agree_on_registered(&bench)?;
        let mut rows = Vec::new();
        for &collective in self.taking_part {
            for sort in 0..self.sorts.len() {
                rows.extend(in_place.iter().map(|&in_place| Row::new(collective, sort, in_place)));
            }
        }
        let refused = self.prepare(&mut bench, &mut rows)?;
        let bytes = count * size_of::<T>();
        let (mut foreign_share, mut samples) = self.attempt(&mut bench, &mut rows, bytes)?;
        let mut repeats = 0;
        while foreign_share.is_some_and(|share| share > CONTAMINATED) && repeats < self.most_repeats {
            repeats += 1;
            let mut again = rows.clone();
            again.iter_mut().for_each(Row::restart);
            let (share, parts) = self.attempt(&mut bench, &mut again, bytes)?;
            if share < foreign_share {
                (rows, foreign_share, samples) = (again, share, parts);
            }
        }
        for row in &mut rows {
            let communicator = &mut self.communicators[row.collective];
            bench.check(communicator, row)?;
            bench.hash(communicator, row)?;
        }
        let ceiling = self.meter.and_then(|meter| meter.ceiling(bytes, &samples));
        Ok(Found { rows, registered, ceiling, foreign_share, repeats, refused })
    }

    fn leader(&mut self) -> &mut Communicator {
        &mut self.communicators[self.taking_part[0]]
    }

    /// Memory is registered if it is on every rank.
    fn agree_on_registered<T: Number>(&mut self, bench: &Bench<'_, T>) -> Result<Vec<bool>> {
        let bit = |(sort, vectors): (usize, &Vectors<T>)| u64::from(vectors.are_registered()) << sort;
        let own = bench.sorts.iter().enumerate().map(bit).sum();
        let members = self.leader().gather(Member { flags: own, ..Member::default() })?.members;
        let all = members.iter().fold(u64::MAX, |all, member| all & member.flags);
        Ok((0..bench.sorts.len()).map(|sort| all >> sort & 1 == 1).collect())
    }

    /// The first calls, checked, and the warm-up. Rows whose collective refuses are taken out.
    fn prepare<T: Number>(
        &mut self,
        bench: &mut Bench<'_, T>,
        rows: &mut Vec<Row>,
    ) -> Result<Vec<(usize, Error)>> {
        let mut refused: Vec<(usize, Error)> = Vec::new();
        let mut index = 0;
        while let Some(row) = rows.get_mut(index) {
            let communicator = &mut self.communicators[row.collective];
            match bench.check(communicator, row) {
                Err(error) if is_refusal(&error) => {
                    let collective = row.collective;
                    refused.push((collective, error));
                    rows.retain(|row| row.collective != collective);
                }
                other => {
                    other?;
                    bench.warm_up(communicator, row)?;
                    index += 1;
                }
            }
        }
        Ok(refused)
    }

    /// All turns of all rows; the share of the cores' time that other programs took meanwhile, and samples of the ceiling.
    fn attempt<T: Number>(
        &mut self,
        bench: &mut Bench<'_, T>,
        rows: &mut [Row],
        bytes: usize,
    ) -> Result<(Option<f64>, Vec<Parts>)> {
        let wanted = self.flags.iterations.map_or(usize::MAX, |iterations| iterations as usize);
        let turns = TURNS.min(wanted);
        let limit = self.flags.seconds_per_size / turns as u32;
        let mut samples = Vec::new();
        self.leader().barrier()?;
        let (before, own_before) = (CoreSeconds::now(self.cores), host::own_seconds());
        for turn in 0..turns {
            if let Some(meter) = &mut self.meter {
                samples.push(meter.sample(bytes));
            }
            for row in &mut *rows {
                let most = wanted.saturating_sub(row.iterations).div_ceil(turns - turn);
                if most > 0 {
                    bench.slice(&mut self.communicators[row.collective], row, limit, most)?;
                }
                self.progress.inc(1);
            }
        }
        Ok((self.foreign_share(before, host::own_seconds() - own_before)?, samples))
    }

    /// What rank 0 finds out about its host, told to all ranks, which decide by it.
    fn foreign_share(&mut self, before: Option<CoreSeconds>, own: f64) -> Result<Option<f64>> {
        let said = Member { extra: [own, 0.0], samples: std::process::id().into(), ..Member::default() };
        let members = self.leader().gather(said)?.members.to_vec();
        let after = CoreSeconds::now(self.cores);
        let mut processes: Vec<u64> = Vec::new();
        let mut ours = 0.0;
        let topology = self.leader().topology();
        for (rank, member) in members.iter().enumerate() {
            // Ranks that are threads all tell of the same process.
            if topology.host(rank) == topology.host(0) && !processes.contains(&member.samples) {
                processes.push(member.samples);
                ours += member.extra[0];
            }
        }
        let share = before.zip(after).and_then(|(before, after)| after.foreign_share(&before, ours));
        let said = Member { extra: [share.unwrap_or(f64::NAN), 0.0], ..Member::default() };
        let agreed = self.leader().gather(said)?.members[0].extra[0];
        Ok((!agreed.is_nan()).then_some(agreed))
    }
}
