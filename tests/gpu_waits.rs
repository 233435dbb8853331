//! Over NCCL an exchange is put into streams all at once: the host waits for nothing between its stages.

#[path = "common/process.rs"]
mod process;
#[path = "common/software_device.rs"]
mod software_device;

use esync::collective::{Communicator, CommunicatorOptions, collective_by_name};
use esync::device::{Device, DeviceBuffer, DeviceChoice};
use esync::reduce::Operator;
use esync::transport::nccl::Nccl;
use esync::transport::{Transport, threads};
use software_device::{SoftwareDevice, is_inside};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

const RANKS: usize = 4;
/// A ring's, to reduce and to gather.
const STAGES: usize = 2 * (RANKS - 1);

#[test]
fn over_nccl_the_host_does_not_wait_between_stages() {
    let Some(device) = SoftwareDevice::new() else { return };
    let trace = tempfile::NamedTempFile::new().unwrap();
    let device =
        device.set("SOFTWARE_CUDA_DEVICES", RANKS).set("SOFTWARE_CUDA_TRACE", trace.path().display());
    device.run("over_nccl_the_host_does_not_wait_between_stages", reduce_twice);
    if is_inside() {
        return;
    }
    let text = std::fs::read_to_string(trace.path()).unwrap();
    let mut threads: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (thread, rest) in text.lines().filter_map(|line| line.split_once(' ')) {
        threads.entry(thread).or_default().push(rest);
    }
    let mut ranks = 0;
    for lines in threads.values() {
        let Some(last) = lines.iter().rposition(is_transfer) else { continue };
        // The second reduction follows the copy of its operand.
        let copy = lines[..last].iter().rposition(|line| line.contains("HtoD")).expect("a copy before it");
        let exchange: Vec<_> = lines[copy..=last].iter().skip_while(|line| !is_transfer(line)).collect();
        let transfers = exchange.iter().filter(|line| is_transfer(line)).count();
        assert!(transfers >= STAGES, "{transfers} transfers: {exchange:#?}");
        assert!(exchange.iter().any(|line| line.contains("reduce")), "kernels are between: {exchange:#?}");
        assert!(!exchange.iter().any(|line| line.starts_with("wait")), "{exchange:#?}");
        ranks += 1;
    }
    assert_eq!(ranks, RANKS);
}

fn is_transfer(line: &&str) -> bool {
    line.ends_with(" NCCL")
}

/// The first time memory and kernels are made, and waited for.
fn reduce_twice() {
    let options = CommunicatorOptions {
        collective: collective_by_name("ring", None).unwrap(),
        segment_bytes: 4096,
        ..CommunicatorOptions::default()
    };
    let results = threads::run(RANKS, |transport| {
        let device = Device::open(DeviceChoice::Cuda(Some(transport.rank())), 0, || Ok(()))?;
        let gpu = device.gpu().expect("a GPU").clone();
        let transport: Arc<dyn Transport> =
            Arc::new(Nccl::connect(Arc::new(transport), gpu.clone(), Duration::from_secs(30))?);
        let mut communicator = Communicator::new(transport, options.clone())?;
        communicator.agree_devices(&device)?;
        let mut buffer = DeviceBuffer::from_slice(&gpu, &vec![0.0_f32; 20_000])?;
        for _ in 0..2 {
            buffer.as_mut_slice().copy_from(&vec![1.0; 20_000])?;
            communicator.all_reduce_device(&mut buffer, Operator::Sum)?;
        }
        buffer.to_vec()
    });
    for result in results {
        assert_eq!(result.unwrap(), vec![RANKS as f32; 20_000]);
    }
}
