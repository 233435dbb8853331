//! `--mode diloco`: many local steps, then one step of Nesterov's momentum on the mean of the workers' deltas (Douillard et
//! al., *DiLoCo: Distributed Low-Communication Training of Language Models*, 2023).
//!
//! The workers' rule is that of [`local_sgd`](super::local_sgd); what makes it DiLoCo are the outer optimiser, which is
//! Nesterov's with rate 0.7 and momentum 0.9 by default, and the length of a round: 500 steps in the paper. With the outer
//! optimiser `sgd` of rate 1 it *is* local SGD, to the last bit.
//!
//! Every worker keeps the same anchor and the same outer momentum, so that there is no server. The local optimiser's state
//! is neither averaged nor reset. A round counts steps, so that the slowest worker holds up each one.

use super::local_sgd::LocalSgd;
use super::rounds::Rounds;
use super::{PolicyOptions, Preset};

/// H of a job of about sixty steps.
const LOCAL_STEPS: u64 = 8;

/// H in the paper.
pub(super) const PAPER_LOCAL_STEPS: u64 = 500;

/// A worker with this many local steps a round.
///
/// ```
/// use esync::policy::{WorkerPolicy, diloco};
/// assert_eq!(diloco::worker(500).name(), "diloco");
/// ```
pub fn worker(local_steps: u64) -> Rounds<LocalSgd> {
    LocalSgd::named("diloco", local_steps)
}

pub(super) fn from_options(options: &PolicyOptions) -> Rounds<LocalSgd> {
    worker(options.local_steps.unwrap_or(match options.preset() {
        Preset::Scaled => LOCAL_STEPS,
        Preset::Paper => PAPER_LOCAL_STEPS,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::rounds::{Plan, script};

    #[test]
    fn rounds_are_those_of_local_sgd() {
        assert_eq!(script::run(&mut worker(7), 3, 3, |_| (1.0, 0.1)).0, [7, 7, 7]);
        let paper = PolicyOptions { preset: Some(Preset::Paper), ..PolicyOptions::default() };
        assert_eq!(from_options(&paper).plan().local_steps(), 500);
        assert_eq!(from_options(&PolicyOptions { local_steps: Some(50), ..paper }).plan().local_steps(), 50);
    }
}
