//! Which worker trains on which samples.

use super::random::{dirichlet, generator, shuffle};
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// How the training samples are divided between workers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Split {
    /// At random, in equal numbers: each worker sees all classes.
    Iid,
    /// Sorted by class and cut into equal pieces: each worker sees one or two classes.
    ByClass,
    /// In the data set's own order, cut into equal pieces: each worker has a stretch of a text. (Images are shuffled when they
    /// are split into train and test, so that for those without a split of their own it is another `iid`.)
    Contiguous,
    /// Each class is shared out in random proportions, more unequal the smaller this number is (above 0); workers then
    /// also differ in how many samples they hold.
    Dirichlet(f64),
}

impl FromStr for Split {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "iid" => Ok(Split::Iid),
            "by-class" => Ok(Split::ByClass),
            "contiguous" => Ok(Split::Contiguous),
            _ => {
                let alpha = text.strip_prefix("dirichlet:").and_then(|alpha| alpha.parse().ok());
                alpha.filter(|&alpha: &f64| alpha.is_finite() && alpha > 0.0).map(Split::Dirichlet).ok_or_else(|| {
                    Error::Usage(format!(
                        "there is no split `{text}`; there are `iid`, `by-class`, `contiguous`, and `dirichlet:ALPHA` with a \
                         number above 0, such as `dirichlet:0.5`"
                    ))
                })
            }
        }
    }
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Split::Iid => f.write_str("iid"),
            Split::ByClass => f.write_str("by-class"),
            Split::Contiguous => f.write_str("contiguous"),
            Split::Dirichlet(alpha) => write!(f, "dirichlet:{alpha}"),
        }
    }
}

impl TryFrom<String> for Split {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Split> for String {
    fn from(split: Split) -> String {
        split.to_string()
    }
}

/// Gives every sample to exactly one worker: the result has `workers` lists of indices into `labels`.
///
/// Each rank computes the whole partition and takes its own list; the same arguments give the same lists. No list is empty.
/// Sizes differ by at most one, except with [`Split::Dirichlet`].
///
/// # Errors
///
/// [`Error::Usage`] if there are no workers, or fewer samples than workers.
pub fn partition(labels: &[i64], split: Split, workers: usize, seed: u64) -> Result<Vec<Vec<u32>>> {
    let samples = u32::try_from(labels.len()).map_err(|_| {
        Error::Usage(format!("{} samples are more than 2³², the most there can be", labels.len()))
    })?;
    if workers == 0 {
        return Err(Error::Usage("there is no worker to train: all ranks are dedicated servers".into()));
    }
    if labels.len() < workers {
        let few =
            format!("{samples} training samples cannot be divided between {workers} workers; use fewer");
        return Err(Error::Usage(few));
    }
    let mut rng = generator(b"workersp", seed, 0, 0);
    let mut order: Vec<u32> = (0..samples).collect();
    Ok(match split {
        Split::Iid => {
            shuffle(&mut order, &mut rng);
            equal_pieces(&order, workers)
        }
        Split::ByClass => {
            order.sort_by_key(|&index| labels[index as usize]);
            equal_pieces(&order, workers)
        }
        Split::Contiguous => equal_pieces(&order, workers),
        Split::Dirichlet(alpha) => {
            shuffle(&mut order, &mut rng);
            order.sort_by_key(|&index| labels[index as usize]);
            let mut shards = vec![Vec::new(); workers];
            for class in order.chunk_by(|&a, &b| labels[a as usize] == labels[b as usize]) {
                share_out(class, &dirichlet(alpha, workers, &mut rng), &mut shards);
            }
            fill_empty(&mut shards);
            shards
        }
    })
}

/// Contiguous pieces whose lengths differ by at most one, the longer ones first.
fn equal_pieces(order: &[u32], workers: usize) -> Vec<Vec<u32>> {
    let (short, longer) = (order.len() / workers, order.len() % workers);
    let (long_pieces, short_pieces) = order.split_at(longer * (short + 1));
    let pieces = long_pieces.chunks_exact(short + 1).chain(short_pieces.chunks_exact(short));
    pieces.map(<[u32]>::to_vec).collect()
}

/// Cuts one class where the running sum of the shares says.
fn share_out(class: &[u32], shares: &[f64], shards: &mut [Vec<u32>]) {
    let (mut begin, mut sum) = (0, 0.0);
    for (worker, (shard, share)) in shards.iter_mut().zip(shares).enumerate() {
        sum += share;
        let is_last = worker + 1 == shares.len();
        let cut = (sum * class.len() as f64).round() as usize;
        let end = if is_last { class.len() } else { cut.clamp(begin, class.len()) };
        shard.extend_from_slice(&class[begin..end]);
        begin = end;
    }
}

/// A worker without samples could not take a step: it gets one from whoever then holds the most.
fn fill_empty(shards: &mut [Vec<u32>]) {
    while let Some(empty) = shards.iter().position(Vec::is_empty) {
        let largest = (0..shards.len()).max_by_key(|&worker| shards[worker].len());
        let sample = largest.and_then(|worker| shards[worker].pop());
        // There are at least as many samples as workers, so that the largest shard has two or more.
        shards[empty].extend(sample);
    }
}
