//! Models in GPU memory, on the software device: the same rounds end with the bits of models in host memory, and both may be
//! in one job.

#[path = "common/number.rs"]
mod number;
#[path = "common/process.rs"]
mod process;
#[path = "common/software_device.rs"]
mod software_device;

use esync::collective::{Communicator, CommunicatorOptions};
use esync::device::{Device, DeviceBuffer, DeviceChoice};
use esync::learner::{FlatSlice, Layout, Model, TensorLayout};
use esync::policy::esync::Planning;
use esync::policy::streaming_diloco::FragmentMap;
use esync::policy::{Action, Job, Mode, Outer, PolicyOptions, Reason, Weighting};
use esync::reduce::WireFormat;
use esync::runtime::{ExchangeOptions, ExchangeReport, Fragments, Next, Observed, Observer, Step, Worker};
use esync::transport::nccl::Nccl;
use esync::transport::{Rank, Transport, threads};
use esync::{Error, Result};
use number::mixed;
use software_device::SoftwareDevice;
use std::sync::Arc;
use std::time::Duration;

const RANKS: usize = 4;
const SAMPLES: usize = 8;
const LEARNING_RATE: f32 = 0.1;

/// A model whose gradients are random numbers, the same for a rank and a step wherever it lies.
struct Walker {
    layout: Layout,
    rank: usize,
    steps: u64,
    params: Vec<f32>,
    gradient: Vec<f32>,
    on_gpu: Option<OnGpu>,
}

/// Then the host's vectors are only what is copied.
struct OnGpu {
    params: DeviceBuffer<f32>,
    gradient: DeviceBuffer<f32>,
}

impl Walker {
    fn new(rank: usize, device: &Device) -> Result<Walker> {
        let layers = [("a.weight", 7), ("a.bias", 2), ("b.weight", 5), ("c.weight", 600)];
        let layout = Layout::new(layers.map(|(name, len)| (name, vec![len])), [("c.mean", vec![3])]);
        let params: Vec<f32> = (0..layout.len).map(|index| number(0, index)).collect();
        let gradient = vec![0.0; layout.trainable];
        let on_gpu = device.gpu().map(|gpu| {
            let (params, gradient) =
                (DeviceBuffer::from_slice(gpu, &params), DeviceBuffer::from_slice(gpu, &gradient));
            Ok::<_, Error>(OnGpu { params: params?, gradient: gradient? })
        });
        Ok(Walker { layout, rank, steps: 0, params, gradient, on_gpu: on_gpu.transpose()? })
    }

    fn step(&mut self, applies: bool) -> Result<()> {
        self.steps += 1;
        self.fetch()?;
        let seed = self.steps * RANKS as u64 + self.rank as u64;
        for (index, gradient) in self.gradient.iter_mut().enumerate() {
            *gradient = number(seed, index);
        }
        for statistic in &mut self.params[self.layout.trainable..] {
            *statistic = 0.9 * *statistic + 0.1 * number(seed, 999);
        }
        self.store()?;
        if applies { self.apply_gradient() } else { Ok(()) }
    }

    fn fetch(&mut self) -> Result<()> {
        if let Some(on_gpu) = &self.on_gpu {
            on_gpu.params.as_slice().copy_to(&mut self.params)?;
            on_gpu.gradient.as_slice().copy_to(&mut self.gradient)?;
        }
        Ok(())
    }

    fn store(&mut self) -> Result<()> {
        if let Some(on_gpu) = &mut self.on_gpu {
            on_gpu.params.as_mut_slice().copy_from(&self.params)?;
            on_gpu.gradient.as_mut_slice().copy_from(&self.gradient)?;
        }
        Ok(())
    }
}

fn number(seed: u64, index: usize) -> f32 {
    (mixed(seed, 0, index) >> 40) as f32 / (1 << 23) as f32 - 1.0
}

impl Model for Walker {
    fn groups(&self) -> usize {
        1
    }

    fn trainable(&self, _group: usize) -> usize {
        self.layout.trainable
    }

    fn tensors(&self, _group: usize) -> &[TensorLayout] {
        &self.layout.tensors
    }

    fn parameters(&mut self, _group: usize) -> FlatSlice<'_> {
        match &mut self.on_gpu {
            Some(on_gpu) => FlatSlice::Gpu(on_gpu.params.as_mut_slice()),
            None => FlatSlice::F32(&mut self.params),
        }
    }

    fn gradient(&mut self, _group: usize) -> Option<FlatSlice<'_>> {
        Some(match &mut self.on_gpu {
            Some(on_gpu) => FlatSlice::Gpu(on_gpu.gradient.as_mut_slice()),
            None => FlatSlice::F32(&mut self.gradient),
        })
    }

    fn apply_gradient(&mut self) -> Result<()> {
        self.fetch()?;
        for (param, gradient) in self.params.iter_mut().zip(&self.gradient) {
            *param -= LEARNING_RATE * gradient;
        }
        self.store()
    }
}

/// Stops after so many exchanges, and keeps the parameters after each.
struct Watcher {
    exchanges: u64,
    seen: Vec<Vec<f32>>,
}

impl Observer<Walker> for Watcher {
    fn decided(&mut self, _: &Action, _: &Reason) {}

    fn exchanged(&mut self, report: &ExchangeReport, observed: Observed<'_, Walker>) -> Result<bool> {
        observed.model.fetch()?;
        self.seen.push(observed.model.params.clone());
        Ok(report.exchange >= self.exchanges)
    }
}

#[derive(Clone)]
struct Test {
    mode: &'static str,
    policy: PolicyOptions,
    outer: Outer,
    wire: WireFormat,
    weighting: Weighting,
}

impl Test {
    fn new(mode: &'static str) -> Test {
        Test {
            mode,
            policy: PolicyOptions { planning: Some(Planning::Ahead), ..PolicyOptions::default() },
            outer: Outer::Sgd,
            wire: WireFormat::F32,
            weighting: Weighting::Uniform,
        }
    }

    /// What every rank saw, and its parameters at the end.
    fn run(&self, device: impl Fn(Rank) -> Device + Sync, is_nccl: bool) -> Vec<(Vec<Vec<f32>>, Vec<f32>)> {
        let results = threads::run(RANKS, |transport| {
            let (rank, device) = (transport.rank(), device(transport.rank()));
            let mut transport: Arc<dyn Transport> = Arc::new(transport);
            if let Some(gpu) = device.gpu().filter(|_| is_nccl) {
                transport = Arc::new(Nccl::connect(transport, gpu.clone(), Duration::from_secs(30))?);
            }
            let options = CommunicatorOptions { wire: self.wire, ..CommunicatorOptions::default() };
            let mut communicator = Communicator::new(transport, options)?;
            communicator.agree_devices(&device)?;
            let step_seconds: Arc<[f64]> = [0.1, 0.1, 0.1, 0.3].into();
            let job = Job {
                size: RANKS,
                step_seconds: step_seconds.clone(),
                shard_samples: [100; RANKS].into(),
                batch_size: SAMPLES,
                learning_rate: LEARNING_RATE.into(),
                budget_samples: Some(1000),
            };
            let exchange = ExchangeOptions {
                weighting: self.weighting,
                outer: self.outer,
                global_learning_rate: self.outer.default_learning_rate(),
                shard_samples: vec![100; RANKS],
                fragments: self.policy.fragments.map(|count| Fragments { count, map: FragmentMap::Strided }),
                error_feedback: self.wire == WireFormat::Int8,
            };
            let policy = Mode::by_name(self.mode)?.worker(&self.policy, &job, rank)?;
            let mut model = Walker::new(rank, &device)?;
            let mut worker = Worker::new(policy, communicator, None, exchange, &mut model)?;
            let mut watcher = Watcher { exchanges: 5, seen: Vec::new() };
            let mut next = worker.begin(step_seconds.clone(), &mut model, &mut watcher)?;
            while let Next::Step { update } = next {
                model.step(update == esync::policy::Update::Local)?;
                let step = Step { seconds: step_seconds[rank], samples: SAMPLES, loss: 1.0 };
                next = worker.stepped(step, update, &mut model, &mut watcher)?;
            }
            model.fetch()?;
            Ok((watcher.seen, model.params))
        });
        results.into_iter().collect::<Result<Vec<_>>>().unwrap_or_else(|error| panic!("{error}"))
    }

    fn check(&self) {
        let host = self.run(|_| Device::Cpu, false);
        assert!(host[0].1.iter().all(|param| param.is_finite()));
        let gpu = |rank: Rank| gpu(rank % 2);
        assert_eq!(self.run(gpu, false), host, "{}, on GPUs", self.mode);
        let mixed = |rank: Rank| if rank == 1 { Device::Cpu } else { gpu(rank) };
        assert_eq!(self.run(mixed, false), host, "{}, on CPUs and GPUs", self.mode);
    }
}

fn gpu(number: usize) -> Device {
    Device::open(DeviceChoice::Cuda(Some(number)), 0, || Ok(())).unwrap()
}

#[test]
fn rounds_end_with_the_bits_of_the_host() {
    let Some(device) = SoftwareDevice::new() else { return };
    device.delays(5, 200).run("rounds_end_with_the_bits_of_the_host", || {
        for mode in ["sync", "esync", "local-sgd", "diloco"] {
            for overlap in [false, true] {
                let mut test = Test::new(mode);
                if mode == "sync" && overlap {
                    continue;
                }
                test.policy.overlap = overlap;
                if matches!(mode, "local-sgd" | "diloco") {
                    test.policy.local_steps = Some(3);
                }
                if mode == "diloco" {
                    test.outer = Outer::Nesterov;
                }
                if mode == "local-sgd" {
                    test.weighting = Weighting::Samples;
                }
                test.check();
            }
        }
    });
}

#[test]
fn fragments_end_with_the_bits_of_the_host() {
    let Some(device) = SoftwareDevice::new() else { return };
    device.delays(6, 200).run("fragments_end_with_the_bits_of_the_host", || {
        let mut test = Test { outer: Outer::Nesterov, ..Test::new("streaming-diloco") };
        test.policy.local_steps = Some(6);
        test.policy.fragments = Some(3);
        test.check();
    });
}

#[test]
fn narrow_wires_with_error_feedback_end_with_the_bits_of_the_host() {
    let Some(device) = SoftwareDevice::new() else { return };
    device.run("narrow_wires_with_error_feedback_end_with_the_bits_of_the_host", || {
        for wire in [WireFormat::Bf16, WireFormat::Int8] {
            let mut test = Test { wire, ..Test::new("local-sgd") };
            test.policy.local_steps = Some(2);
            test.check();
        }
    });
}

#[test]
fn over_nccl_rounds_end_with_the_bits_of_the_host() {
    let Some(device) = SoftwareDevice::new() else { return };
    let device = device.set("SOFTWARE_CUDA_DEVICES", RANKS).delays(7, 200);
    device.run("over_nccl_rounds_end_with_the_bits_of_the_host", || {
        for mode in ["sync", "esync", "diloco"] {
            let mut test = Test::new(mode);
            test.policy.overlap = mode == "diloco";
            if mode == "diloco" {
                test.policy.local_steps = Some(3);
            }
            let host = test.run(|_| Device::Cpu, false);
            assert_eq!(test.run(gpu, true), host, "{mode}");
        }
    });
}
