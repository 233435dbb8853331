//! A `tch` training loop, made to run on unequal workers with one call a step.
//!
//! Four ranks as threads learn digits with Adam; the last one is four times slower, and the others fill its time with local
//! steps. `cargo run --release --example tch_loop` should reach 95%.

use esync::collective::{Communicator, CommunicatorOptions};
use esync::data::{Batches, Split, load, partition};
use esync::learner::set_threads;
use esync::transport::threads;
use esync::{Synchronized, Synchronizer, SynchronizerOptions};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tch::nn::{self, ModuleT, OptimizerConfig};
use tch::{Device, Tensor};

const RANKS: usize = 4;
const BATCH: usize = 32;

pub(crate) fn main() -> esync::Result<()> {
    let data = load("digits", None)?;
    let shards = partition(&data.train.labels, Split::Iid, RANKS, 1)?;
    let results = threads::run(RANKS, |transport| {
        set_threads(1);
        let communicator = Communicator::new(Arc::new(transport), CommunicatorOptions::default())?;
        let rank = communicator.rank();

        // An ordinary model and optimiser.
        let mut variables = nn::VarStore::new(Device::Cpu);
        let root = variables.root();
        let model = nn::seq_t()
            .add(nn::linear(&root / "fc1", 64, 64, Default::default()))
            .add_fn(|x| x.relu())
            .add(nn::linear(&root / "fc2", 64, 10, Default::default()));
        let mut optimizer = nn::Adam::default().build(&variables, 3e-3).expect("Adam");
        let images = Tensor::from_slice(&data.train.pixels).view([-1, 64]);
        let labels = Tensor::from_slice(&data.train.labels);

        // The first line that makes it distributed.
        let options = SynchronizerOptions { max_samples: Some(30_000), ..SynchronizerOptions::default() };
        let mut synchronizer = Synchronizer::new(&mut variables, communicator, options)?;

        let mut batches = Batches::new(shards[rank].clone(), BATCH, 1, rank as u64)?;
        loop {
            let started = Instant::now();
            let batch: Vec<i64> = batches.next_batch().iter().map(|&index| index.into()).collect();
            let batch = Tensor::from_slice(&batch);
            let output = model.forward_t(&images.index_select(0, &batch), true);
            let loss = output.cross_entropy_for_logits(&labels.index_select(0, &batch));
            optimizer.backward_step(&loss);
            if rank == RANKS - 1 {
                std::thread::sleep(3 * started.elapsed() + Duration::from_millis(2));
            }
            // The second.
            if synchronizer.step_done(BATCH, loss.double_value(&[]))? == Synchronized::Stop {
                break;
            }
        }
        let test = Tensor::from_slice(&data.test.pixels).view([-1, 64]);
        let accuracy =
            model.forward_t(&test, false).accuracy_for_logits(&Tensor::from_slice(&data.test.labels));
        Ok((synchronizer.totals(), accuracy.double_value(&[])))
    });
    for (rank, result) in results.into_iter().enumerate() {
        let (totals, accuracy) = result?;
        println!(
            "rank {rank}: {} local steps in {} rounds, accuracy {:.1}%",
            totals.local_steps,
            totals.exchanges,
            100.0 * accuracy
        );
        assert!(accuracy > 0.93, "rank {rank}: {accuracy}");
    }
    Ok(())
}
