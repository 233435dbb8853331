//! The order in which a worker draws its samples.

use super::random::{generator, shuffle};
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// Where a [`Batches`] stands: all that a checkpoint needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct BatchPosition {
    /// How many times the shard was gone through.
    pub epoch: u64,
    /// Samples drawn in this epoch.
    pub offset: u64,
}

/// Draws mini-batches from a worker's shard, endlessly.
///
/// In every epoch each sample comes once, in an order made from the seed, the rank and the epoch. All batches have the same
/// size: one that begins at the end of an epoch continues in the next, and a shard may be smaller than a batch.
///
/// ```
/// use esync::data::Batches;
/// let mut batches = Batches::new(vec![10, 11, 12], 2, 1, 0)?;
/// let first_epoch_and_more = [batches.next_batch().to_vec(), batches.next_batch().to_vec()].concat();
/// let mut first_epoch = first_epoch_and_more[..3].to_vec();
/// first_epoch.sort();
/// assert_eq!(first_epoch, [10, 11, 12]);
/// # Ok::<(), esync::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Batches {
    shard: Vec<u32>,
    /// The shard in the order of `position.epoch`.
    order: Vec<u32>,
    batch: Vec<u32>,
    seed: u64,
    stream: u64,
    position: BatchPosition,
}

impl Batches {
    /// Mini-batches of `batch_size` indices out of `shard`. `stream` is the rank: ranks with the same seed draw in
    /// unrelated orders.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] if the shard is empty or the batch size is 0.
    pub fn new(shard: Vec<u32>, batch_size: usize, seed: u64, stream: u64) -> Result<Self> {
        if shard.is_empty() {
            return Err(Error::Usage(format!("worker {stream} has no training samples; use fewer workers")));
        }
        if batch_size == 0 {
            return Err(Error::Usage("the batch size is 0; it must be at least 1".into()));
        }
        let order = shard.clone();
        let mut batches = Batches {
            shard,
            order,
            batch: vec![0; batch_size],
            seed,
            stream,
            position: BatchPosition::default(),
        };
        batches.reorder();
        Ok(batches)
    }

    /// The next mini-batch, as indices into the data set. Allocates nothing.
    pub fn next_batch(&mut self) -> &[u32] {
        let mut filled = 0;
        while filled < self.batch.len() {
            if self.position.offset as usize == self.order.len() {
                self.position = BatchPosition { epoch: self.position.epoch + 1, offset: 0 };
                self.reorder();
            }
            let rest = &self.order[self.position.offset as usize..];
            let count = rest.len().min(self.batch.len() - filled);
            self.batch[filled..filled + count].copy_from_slice(&rest[..count]);
            filled += count;
            self.position.offset += count as u64;
        }
        &self.batch
    }

    /// From the next batch on: `batch_size` samples each, and `data_budget` samples of the shard in an epoch (at most the
    /// shard; all of it with `None`). Each epoch draws others of them. The present epoch ends earlier if it has drawn as many
    /// already.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`], and nothing is changed, if either is 0.
    ///
    /// ```
    /// use esync::data::Batches;
    /// let mut batches = Batches::new((0..100).collect(), 10, 1, 0)?;
    /// batches.resize(4, Some(8))?;
    /// assert_eq!((batches.next_batch().len(), batches.position().epoch), (4, 0));
    /// batches.next_batch();
    /// batches.next_batch();
    /// assert_eq!((batches.position().epoch, batches.position().offset), (1, 4));
    /// # Ok::<(), esync::Error>(())
    /// ```
    pub fn resize(&mut self, batch_size: usize, data_budget: Option<usize>) -> Result<()> {
        if batch_size == 0 || data_budget == Some(0) {
            return Err(Error::Usage(format!(
                "worker {} cannot train on mini-batches of {batch_size} samples out of {data_budget:?}; both must be at least 1",
                self.stream
            )));
        }
        self.batch.resize(batch_size, 0);
        self.order.clear();
        self.order.extend_from_slice(&self.shard);
        self.shuffle_order();
        self.order.truncate(data_budget.unwrap_or(self.shard.len()));
        self.position.offset = self.position.offset.min(self.order.len() as u64);
        Ok(())
    }

    /// Samples in a mini-batch.
    pub fn batch_size(&self) -> usize {
        self.batch.len()
    }

    /// Samples in the shard.
    pub fn shard_len(&self) -> usize {
        self.shard.len()
    }

    /// Where it stands.
    pub fn position(&self) -> BatchPosition {
        self.position
    }

    /// Goes to a position, from which the same batches follow as did when it was taken.
    ///
    /// # Errors
    ///
    /// [`Error::Training`] if the position lies beyond the shard: it was taken from another partition.
    pub fn seek(&mut self, position: BatchPosition) -> Result<()> {
        if position.offset > self.order.len() as u64 {
            return Err(Error::Training(format!(
                "position {} in a shard of {} samples: it was saved with another partition of the data",
                position.offset,
                self.order.len()
            )));
        }
        if position.epoch != self.position.epoch {
            self.position = position;
            self.reorder();
        }
        self.position = position;
        Ok(())
    }

    /// Each epoch's order is made from the shard as given, so that it does not depend on how it was reached.
    fn reorder(&mut self) {
        let budget = self.order.len();
        self.order.clear();
        self.order.extend_from_slice(&self.shard);
        self.shuffle_order();
        self.order.truncate(budget);
    }

    fn shuffle_order(&mut self) {
        let mut rng = generator(b"epochord", self.seed, self.position.epoch, self.stream);
        shuffle(&mut self.order, &mut rng);
    }
}
