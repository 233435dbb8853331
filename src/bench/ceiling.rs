//! The host's own ceiling: what no collective on these cores can undercut, measured in the same run.
//!
//! An operation of n ranks on c cores takes at least `(⌈n/c⌉ − 1)·t_switch + t_flag + bytes/B`: every rank has to get a
//! core once, the last one's arrival has to reach the others, and the bytes have to be read and written. `bytes/B` is
//! measured as the operation's direct form, in which all cores together do just that on n vectors that all of them see:
//! an all-reduce reads n vectors and writes n (2nS), a reduction reads n and writes one, a broadcast reads one and writes
//! n − 1.
//!
//! The first rank's process measures while the others sleep. The cores repeat the operation on the same vectors, each on
//! its slice, which is as kind to the caches as it can be: a ceiling may be too high, never too low.

mod handover;

use super::host;
use crate::buffer::FlatBuffer;
use crate::collective::Kind;
use crate::reduce::{ElementType, Operator, ReduceMany, Store, Tree, reduce_many};
use std::sync::Barrier;
use std::time::Instant;

/// A pass over the memory is repeated for so long.
const SLICE_SECONDS: f64 = 0.004;

/// Vectors of more bytes together than this are also tried with stores that bypass the caches, unless they are summed in place.
const CACHED_BYTES: usize = 4 << 20;

/// Vectors lie so many bytes after the end of a page, each another number of times, so that the cores do not meet all n
/// vectors in the same set of their caches.
const STAGGER_BYTES: usize = 256;

/// What is measured: an operation of all ranks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Work {
    pub(super) kind: Kind,
    pub(super) element: ElementType,
    pub(super) operator: Operator,
    pub(super) ranks: usize,
}

impl Work {
    /// Vectors that are read and vectors that are written.
    fn vectors(&self) -> (usize, usize) {
        match self.kind {
            Kind::AllReduce => (self.ranks, self.ranks),
            Kind::ReduceScatter | Kind::Reduce => (self.ranks, 1),
            Kind::AllGather | Kind::Broadcast => (1, self.ranks - 1),
        }
    }
}

/// The parts of a ceiling, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Parts {
    /// From one thread to another one of the same core.
    pub(super) switch: f64,
    /// A cache line, from one core to another; 0 if there is one core.
    pub(super) flag: f64,
    /// All cores together over all vectors.
    pub(super) memory: f64,
}

/// The ceiling at one size.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Ceiling {
    pub(super) seconds: f64,
    pub(super) parts: Parts,
    /// Bytes that are read and written.
    pub(super) moved_bytes: f64,
}

impl Ceiling {
    /// 10⁹ bytes that all cores together read and write in a second.
    pub(super) fn gbps(&self) -> f64 {
        if self.parts.memory > 0.0 { self.moved_bytes / self.parts.memory / 1e9 } else { 0.0 }
    }
}

/// Measures the ceiling of one operation, at any size.
pub(super) struct Meter {
    work: Work,
    cores: Vec<usize>,
    memory: FlatBuffer<i64>,
    /// The most bytes of one vector that there is memory for.
    most_bytes: usize,
}

impl Meter {
    /// For operations on at most `largest` bytes of each rank, with at most half of the memory that is free now.
    pub(super) fn new(work: Work, cores: &[usize], largest: usize) -> Meter {
        let free = host::available_bytes().unwrap_or(usize::MAX);
        let most_bytes = largest.min(free / 2 / work.ranks) / 64 * 64;
        Meter { work, cores: cores.to_vec(), memory: FlatBuffer::new(0), most_bytes }
    }

    /// If vectors of `bytes` do not fit, the rate of smaller ones is taken for theirs.
    pub(super) fn bytes_measured(&self, bytes: usize) -> usize {
        bytes.min(self.most_bytes.max(64))
    }

    /// The parts at a size of `bytes`, measured once; to be called now and then beside what is compared with it.
    pub(super) fn sample(&mut self, bytes: usize) -> Parts {
        let (switch, flag) = (handover::switch(self.cores[0]), handover::flag(&self.cores));
        let (reads, writes) = self.work.vectors();
        Parts { switch, flag, memory: self.pass(bytes, reads, writes) }
    }

    /// What the samples of one size say together.
    pub(super) fn ceiling(&self, bytes: usize, samples: &[Parts]) -> Option<Ceiling> {
        let median = |part: fn(&Parts) -> f64| {
            let mut values: Vec<f64> = samples.iter().map(part).collect();
            values.sort_unstable_by(f64::total_cmp);
            values.get(values.len() / 2).copied()
        };
        let parts = Parts {
            switch: median(|parts| parts.switch)?,
            flag: median(|parts| parts.flag)?,
            memory: median(|parts| parts.memory)?,
        };
        let turns = self.work.ranks.div_ceil(self.cores.len()) - 1;
        let (reads, writes) = self.work.vectors();
        let seconds = turns as f64 * parts.switch + parts.flag + parts.memory;
        Some(Ceiling { seconds, parts, moved_bytes: ((reads + writes) * bytes) as f64 })
    }

    /// Rates of the simplest loops on vectors of `bytes` for each core, in 10⁹ bytes read and written per second: a copy,
    /// and `a += b`.
    pub(super) fn simple_rates(&mut self, bytes: usize) -> (f64, f64) {
        let rate = |vectors: usize, seconds: f64| (vectors * bytes) as f64 / seconds.max(1e-12) / 1e9;
        // The source is the last vector, so that a copy's two are different.
        let copy = rate(2, self.pass_of(bytes, 1, 1, false));
        (copy, rate(3, self.pass(bytes, 2, 1)))
    }

    /// Seconds that the cores need together to reduce `reads` vectors into `writes` vectors.
    fn pass(&mut self, bytes: usize, reads: usize, writes: usize) -> f64 {
        self.pass_of(bytes, reads, writes, reads > 1)
    }

    fn pass_of(&mut self, bytes: usize, reads: usize, writes: usize, in_place: bool) -> f64 {
        let measured = self.bytes_measured(bytes);
        let whole = measured.next_multiple_of(FlatBuffer::<i64>::ALIGNMENT);
        let vectors = if in_place { reads.max(writes) } else { reads + writes };
        let each = whole + STAGGER_BYTES;
        let words = (each * vectors).div_ceil(8);
        if self.memory.len() < words {
            self.memory = FlatBuffer::new(words);
            // Pages come with the first write, which is not to be measured.
            self.memory.fill(0);
        }
        let start = self.memory.as_mut_ptr().cast::<u8>();
        // SAFETY: the memory holds `vectors` vectors of `each` bytes.
        let vector = |number: usize| unsafe { start.add(number * each) };
        let sources: Vec<*mut u8> = (0..reads).map(vector).collect();
        let first_target = if in_place { 0 } else { reads };
        let targets: Vec<*mut u8> = (first_target..first_target + writes).map(vector).collect();
        // More cores than ranks cannot be at work in an operation of these ranks.
        let cores = &self.cores[..self.cores.len().min(self.work.ranks).max(1)];
        let job = Job { work: self.work, sources, targets, bytes: measured };
        let mut fastest = job.seconds(cores, Store::Ordinary);
        if !in_place && vectors * measured > CACHED_BYTES {
            fastest = fastest.min(job.seconds(cores, Store::Streaming));
        }
        fastest * bytes as f64 / measured.max(1) as f64
    }
}

/// A reduction of whole vectors.
struct Job {
    work: Work,
    sources: Vec<*mut u8>,
    targets: Vec<*mut u8>,
    bytes: usize,
}

// SAFETY: the pointers lead to memory that the meter owns and lends to the job; each core touches a slice of its own.
unsafe impl Sync for Job {}

impl Job {
    /// Seconds of one pass over all vectors, by all `cores` at once.
    fn seconds(&self, cores: &[usize], store: Store) -> f64 {
        if self.bytes == 0 {
            return 0.0;
        }
        let once = self.time(cores, store, 1);
        let passes = (SLICE_SECONDS / once.max(1e-9)).clamp(1.0, 1e6) as usize;
        if passes == 1 { once } else { self.time(cores, store, passes) }
    }

    /// Seconds of a pass on the core that needs longest, where every core repeats its slice `passes` times.
    fn time(&self, cores: &[usize], store: Store, passes: usize) -> f64 {
        let line = 64;
        let begin = Barrier::new(cores.len());
        let run = |index: usize| {
            host::pin(cores[index]);
            let lines = self.bytes.div_ceil(line);
            let part = crate::collective::part(lines, cores.len(), index);
            let bytes = part.start * line..(part.end * line).min(self.bytes);
            // SAFETY: every vector has `self.bytes` bytes, and the range lies inside.
            let at = |vector: &*mut u8| unsafe { vector.add(bytes.start) };
            let sources: Vec<*const u8> = self.sources.iter().map(|vector| at(vector).cast_const()).collect();
            let targets: Vec<*mut u8> = self.targets.iter().map(at).collect();
            let Work { element, operator, .. } = self.work;
            let job = ReduceMany {
                element,
                operator,
                tree: Tree::Canonical,
                sources: &sources,
                targets: &targets,
                bytes: bytes.len(),
                store,
            };
            begin.wait();
            let started = Instant::now();
            for _ in 0..passes {
                // SAFETY: the ranges of the vectors are valid, and no other core touches them; a target is a source's own
                // range or overlaps none.
                unsafe { reduce_many(std::hint::black_box(&job)) };
            }
            started.elapsed().as_secs_f64() / passes as f64
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..cores.len()).map(|index| scope.spawn(move || run(index))).collect();
            // A thread that panicked has no time, and the largest of the others stands.
            threads.into_iter().filter_map(|thread| thread.join().ok()).fold(0.0, f64::max)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meter(kind: Kind, ranks: usize, cores: &[usize]) -> Meter {
        let work = Work { kind, element: ElementType::F32, operator: Operator::Sum, ranks };
        Meter::new(work, cores, 1 << 16)
    }

    #[test]
    fn a_ceiling_is_the_sum_of_its_parts() {
        let samples = [(3e-6, 1e-7, 7e-6), (1e-6, 3e-7, 5e-6), (2e-6, 2e-7, 6e-6)]
            .map(|(switch, flag, memory)| Parts { switch, flag, memory });
        // Five ranks on two cores: two switches. Medians of each part.
        let ceiling = meter(Kind::AllReduce, 5, &[0, 1]).ceiling(600, &samples).expect("samples");
        assert!((ceiling.seconds - (2.0 * 2e-6 + 2e-7 + 6e-6)).abs() < 1e-12, "{ceiling:?}");
        assert!((ceiling.gbps() - 1.0).abs() < 1e-9, "{ceiling:?}");
        assert_eq!(meter(Kind::AllReduce, 5, &[0]).ceiling(600, &[]), None);
    }

    #[test]
    fn every_operation_has_a_direct_form() {
        let cores = host::cores();
        for kind in Kind::ALL {
            for ranks in [2, 5] {
                let mut meter = meter(kind, ranks, &cores);
                for bytes in [0, 4, 1000 * 4, 1 << 16] {
                    let parts = meter.sample(bytes);
                    assert!(parts.switch > 0.0 && parts.memory < 1.0, "{kind}, {ranks} ranks: {parts:?}");
                    assert_eq!(
                        parts.memory > 0.0,
                        bytes > 0,
                        "{kind}, {ranks} ranks, {bytes} bytes: {parts:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn what_does_not_fit_has_the_rate_of_what_does() {
        let mut meter = meter(Kind::AllReduce, 2, &host::cores());
        assert_eq!((meter.bytes_measured(1 << 10), meter.bytes_measured(1 << 40)), (1 << 10, 1 << 16));
        assert!(meter.sample(1 << 40).memory > 0.1);
        let (copy, add) = meter.simple_rates(1 << 16);
        assert!(copy > 0.01 && add > 0.01, "{copy} {add}");
    }
}
