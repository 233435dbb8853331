//! Evaluation between two barriers: every rank measures its share of the test set.

use crate::collective::{Communicator, Member};
use crate::error::Result;
use crate::learner::Learner;
use serde::{Deserialize, Serialize};

/// The whole test set's figures, the same on all ranks.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) struct Score {
    pub(super) accuracy: f64,
    pub(super) loss: f64,
}

/// All ranks call it with identical parameters.
pub(super) fn evaluate(
    learner: &mut (impl Learner + ?Sized),
    communicator: &mut Communicator,
) -> Result<Score> {
    communicator.barrier()?;
    let share = learner.evaluate(communicator.rank(), communicator.size())?;
    let own = Member {
        samples: share.samples,
        local_steps: share.correct,
        loss: share.loss_sum,
        ..Member::default()
    };
    let shares = communicator.gather(own)?;
    // Added in rank order on every rank: the same bits, so the same decisions.
    let (mut samples, mut correct, mut loss) = (0, 0, 0.0);
    for share in shares.members {
        samples += share.samples;
        correct += share.local_steps;
        loss += share.loss;
    }
    let samples = samples.max(1) as f64;
    Ok(Score { accuracy: correct as f64 / samples, loss: loss / samples })
}
