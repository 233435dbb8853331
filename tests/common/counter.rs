//! A learner whose steps add small whole numbers, so that sums, halves and quarters of them are exact in `f32`, whatever their
//! order.

use esync::Result;
use esync::data::BatchPosition;
use esync::learner::{Evaluation, Layout, Learner, LearnerState, StepOutcome};
use esync::policy::Update;

pub(crate) const ELEMENTS: usize = 12;
const BATCH_SIZE: usize = 8;

/// What step `step` (from 1) of `rank` adds to element `index`.
pub(crate) fn amount(rank: usize, step: u64, index: usize) -> u64 {
    ((rank as u64 + 1) * step + index as u64) % 13
}

pub(crate) struct Counter {
    rank: usize,
    steps: u64,
    parameters: Vec<f32>,
    gradient: Vec<f32>,
    layout: Layout,
}

impl Counter {
    /// Begins at 0.
    pub(crate) fn new(rank: usize) -> Counter {
        let layout = Layout::new([("a.weight", vec![5]), ("b.weight", vec![ELEMENTS - 5])], []);
        Counter { rank, steps: 0, parameters: vec![0.0; ELEMENTS], gradient: vec![0.0; ELEMENTS], layout }
    }
}

impl Learner for Counter {
    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn parameters(&mut self) -> &mut [f32] {
        &mut self.parameters
    }

    fn gradient(&mut self) -> &mut [f32] {
        &mut self.gradient
    }

    fn step(&mut self, update: Update) -> Result<StepOutcome> {
        assert_eq!(update, Update::Local, "only deltas are counted");
        self.steps += 1;
        for (index, parameter) in self.parameters.iter_mut().enumerate() {
            *parameter += amount(self.rank, self.steps, index) as f32;
        }
        Ok(StepOutcome { loss: 1.0, samples: BATCH_SIZE })
    }

    fn apply_gradient(&mut self) -> Result<()> {
        Ok(())
    }

    fn set_learning_rate(&mut self, _learning_rate: f64) {}

    fn evaluate(&mut self, _part: usize, _parts: usize) -> Result<Evaluation> {
        self.held_out()
    }

    fn held_out(&mut self) -> Result<Evaluation> {
        Ok(Evaluation { loss_sum: 1.0, correct: 0, samples: 1 })
    }

    fn set_batch(&mut self, _batch_size: usize, _data_budget: Option<usize>) -> Result<()> {
        Ok(())
    }

    fn save_state(&self) -> Result<LearnerState> {
        Ok(LearnerState {
            parameters: self.parameters.clone(),
            gradient: self.gradient.clone(),
            optimizer: Vec::new(),
            position: BatchPosition { epoch: 0, offset: self.steps },
        })
    }

    fn load_state(&mut self, state: &LearnerState) -> Result<()> {
        self.parameters.copy_from_slice(&state.parameters);
        self.steps = state.position.offset;
        Ok(())
    }
}
