//! Collectives on vectors in GPU memory, on the software device: the bits are those of the host, over every transport.

#[path = "common/number.rs"]
mod number;
#[path = "common/process.rs"]
mod process;
#[path = "common/software_device.rs"]
mod software_device;

use esync::collective::{Communicator, CommunicatorOptions, Kind, Order, collective_by_name, part};
use esync::device::{Device, DeviceBuffer, DeviceChoice, Gpu};
use esync::reduce::{Operator, WireFormat};
use esync::transport::nccl::Nccl;
use esync::transport::{Rank, Transport, threads};
use esync::{Error, Result};
use half::{bf16, f16};
use number::{Number, mixed};
use software_device::SoftwareDevice;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A short one, so that a few thousand elements have several.
const SEGMENT_BYTES: usize = 4096;
const LENGTHS: [usize; 5] = [0, 1, 7, 1000, 5003];
const SCHEDULES: [&str; 5] = ["ring", "butterfly", "binary-blocks", "parameter-server", "recursive-doubling"];
const ROOT: Rank = 1;

fn options(collective: &str) -> CommunicatorOptions {
    CommunicatorOptions {
        collective: collective_by_name(collective, None).unwrap(),
        segment_bytes: SEGMENT_BYTES,
        timeout: Duration::from_secs(60),
        ..CommunicatorOptions::default()
    }
}

fn gpu(number: usize) -> Device {
    Device::open(DeviceChoice::Cuda(Some(number)), 0, || Ok(())).unwrap()
}

fn gpu_of(device: &Device) -> &Arc<Gpu> {
    device.gpu().expect("a GPU")
}

fn vector<T: Number>(rank: Rank, len: usize) -> Vec<T> {
    (0..len).map(|index| T::random(mixed(7, rank, index))).collect()
}

/// One operation on this rank's device; the elements that it defines.
fn run<T: Number>(
    communicator: &mut Communicator,
    device: &Device,
    kind: Kind,
    operator: Operator,
    len: usize,
) -> Result<Vec<T>> {
    let (rank, n) = (communicator.rank(), communicator.size());
    let mut values = vector::<T>(rank, len);
    if let Some(gpu) = device.gpu() {
        let mut buffer = DeviceBuffer::from_slice(gpu, &values)?;
        match kind {
            Kind::AllReduce => communicator.all_reduce_device(&mut buffer, operator)?,
            Kind::ReduceScatter => communicator.reduce_scatter_device(&mut buffer, operator)?,
            Kind::AllGather => communicator.all_gather_device(&mut buffer)?,
            Kind::Broadcast => communicator.broadcast_device(&mut buffer, ROOT)?,
            Kind::Reduce => communicator.reduce_device(&mut buffer, operator, ROOT)?,
        }
        values = buffer.to_vec()?;
    } else {
        match kind {
            Kind::AllReduce => communicator.all_reduce(&mut values, operator)?,
            Kind::ReduceScatter => communicator.reduce_scatter(&mut values, operator).map(drop)?,
            Kind::AllGather => communicator.all_gather(&mut values)?,
            Kind::Broadcast => communicator.broadcast(&mut values, ROOT)?,
            Kind::Reduce => communicator.reduce(&mut values, operator, ROOT)?,
        }
    }
    Ok(match kind {
        Kind::ReduceScatter => values[part(len, n, rank)].to_vec(),
        Kind::Reduce if rank != ROOT => Vec::new(),
        _ => values,
    })
}

/// What `body` answers on each of `n` ranks, each on its device. `over` makes the transport of vectors.
fn on_devices<R: Send>(
    n: usize,
    options: &CommunicatorOptions,
    device: impl Fn(Rank) -> Device + Sync,
    over: impl Fn(Arc<dyn Transport>, &Device) -> Result<Arc<dyn Transport>> + Sync,
    body: impl Fn(&mut Communicator, &Device) -> Result<R> + Sync,
) -> Vec<Result<R>> {
    threads::run(n, |transport| {
        let device = device(transport.rank());
        let transport = over(Arc::new(transport), &device)?;
        let mut communicator = Communicator::new(transport.clone(), options.clone())?;
        communicator.agree_devices(&device)?;
        body(&mut communicator, &device).inspect_err(|error| transport.poison(&error.to_string()))
    })
}

fn staged(transport: Arc<dyn Transport>, _: &Device) -> Result<Arc<dyn Transport>> {
    Ok(transport)
}

fn over_nccl(transport: Arc<dyn Transport>, device: &Device) -> Result<Arc<dyn Transport>> {
    Ok(Arc::new(Nccl::connect(transport, gpu_of(device).clone(), Duration::from_secs(30))?))
}

fn all<R>(results: Vec<Result<R>>) -> Vec<R> {
    let failure = |result: &Result<R>| result.as_ref().err().filter(|error| !error.is_secondary()).cloned();
    if let Some(error) = results.iter().find_map(failure) {
        panic!("{error}");
    }
    results.into_iter().map(|result| result.unwrap_or_else(|error| panic!("{error}"))).collect()
}

/// All kinds and lengths of one type, one after the other.
fn sweep<T: Number>(
    communicator: &mut Communicator,
    device: &Device,
    operators: &[Operator],
) -> Result<Vec<Vec<u8>>> {
    let mut found = Vec::new();
    for kind in Kind::ALL {
        let operators = if kind.reduces() { operators } else { &operators[..1] };
        for &operator in operators {
            for len in LENGTHS {
                let values = run::<T>(communicator, device, kind, operator, len)?;
                found.push(bytemuck::cast_slice(&values).to_vec());
            }
        }
    }
    Ok(found)
}

fn check_against_host<T: Number>(
    n: usize,
    collective: &str,
    operators: &[Operator],
    device: impl Fn(Rank) -> Device + Sync,
    over: impl Fn(Arc<dyn Transport>, &Device) -> Result<Arc<dyn Transport>> + Sync,
) {
    let options = options(collective);
    let body = |communicator: &mut Communicator, device: &Device| sweep::<T>(communicator, device, operators);
    let host = all(on_devices(n, &options, |_| Device::Cpu, staged, body));
    let found = all(on_devices(n, &options, device, over, body));
    for (rank, (found, host)) in found.iter().zip(&host).enumerate() {
        for (index, (found, host)) in found.iter().zip(host).enumerate() {
            assert!(found == host, "{collective}, {n} ranks, {}, rank {rank}, case {index}", T::TYPE);
        }
    }
}

#[test]
fn over_threads_every_schedule_gives_the_bits_of_the_host() {
    let Some(device) = SoftwareDevice::new() else { return };
    device.delays(1, 200).run("over_threads_every_schedule_gives_the_bits_of_the_host", || {
        for n in [2, 3, 4, 7, 8] {
            for collective in SCHEDULES.iter().chain(&["auto", "native"]) {
                check_against_host::<f32>(n, collective, &[Operator::Sum], |rank| gpu(rank % 2), staged);
            }
        }
    });
}

#[test]
fn every_type_and_operator_gives_the_bits_of_the_host() {
    let Some(device) = SoftwareDevice::new() else { return };
    device.run("every_type_and_operator_gives_the_bits_of_the_host", || {
        let over = |rank: Rank| gpu(rank % 2);
        check_against_host::<f32>(3, "binary-blocks", &Operator::ALL, over, staged);
        check_against_host::<f64>(3, "binary-blocks", &Operator::ALL, over, staged);
        check_against_host::<i32>(3, "binary-blocks", &Operator::ALL, over, staged);
        check_against_host::<i64>(3, "binary-blocks", &Operator::ALL, over, staged);
        check_against_host::<f16>(3, "binary-blocks", &Operator::ALL, over, staged);
        check_against_host::<bf16>(3, "binary-blocks", &Operator::ALL, over, staged);
    });
}

#[test]
fn ranks_on_cpus_and_gpus_meet_in_one_operation() {
    let Some(device) = SoftwareDevice::new() else { return };
    device.delays(2, 200).run("ranks_on_cpus_and_gpus_meet_in_one_operation", || {
        let mixed = |rank: Rank| if rank.is_multiple_of(2) { gpu(0) } else { Device::Cpu };
        for n in [2, 3, 4, 7, 8] {
            for collective in SCHEDULES.iter().chain(&["auto", "native"]) {
                check_against_host::<f32>(n, collective, &[Operator::Average], mixed, staged);
            }
        }
    });
}

#[test]
fn over_nccl_every_schedule_gives_the_bits_of_the_host() {
    let Some(device) = SoftwareDevice::new() else { return };
    let device = device.set("SOFTWARE_CUDA_DEVICES", 8).delays(3, 200);
    device.run("over_nccl_every_schedule_gives_the_bits_of_the_host", || {
        for n in [2, 3, 4, 7, 8] {
            for collective in SCHEDULES.iter().chain(&["auto"]) {
                check_against_host::<f32>(n, collective, &[Operator::Average], gpu, over_nccl);
            }
        }
        check_against_host::<bf16>(3, "ring", &Operator::ALL, gpu, over_nccl);
        check_against_host::<i64>(3, "ring", &Operator::ALL, gpu, over_nccl);
    });
}

#[test]
fn nccls_own_collectives_give_exact_results() {
    let Some(device) = SoftwareDevice::new() else { return };
    let device = device.set("SOFTWARE_CUDA_DEVICES", 4).delays(4, 200);
    device.run("nccls_own_collectives_give_exact_results", || {
        for n in [2, 3, 4] {
            // Whole numbers, whose results are the same in any order.
            check_against_host::<i32>(n, "native", &Operator::ALL, gpu, over_nccl);
            check_against_host::<i64>(n, "native", &[Operator::Sum], gpu, over_nccl);
        }
        let canonical = CommunicatorOptions { order: Order::Canonical, ..options("native") };
        for result in on_devices(2, &canonical, gpu, over_nccl, |_, _| Ok(())) {
            let error = result.unwrap_err();
            assert!(matches!(error, Error::Refused { .. }), "{error}");
            assert!(error.to_string().contains("NCCL sums in an order of its own"), "{error}");
        }
    });
}

#[test]
fn narrow_wires_give_the_bits_of_the_host() {
    let Some(device) = SoftwareDevice::new() else { return };
    device.run("narrow_wires_give_the_bits_of_the_host", || {
        for wire in [WireFormat::F16, WireFormat::Bf16, WireFormat::Int8] {
            let options = CommunicatorOptions { wire, ..options("auto") };
            let body = |communicator: &mut Communicator, device: &Device| {
                run::<f32>(communicator, device, Kind::AllReduce, Operator::Average, 5003)
            };
            let host = all(on_devices(3, &options, |_| Device::Cpu, staged, body));
            let mixed = |rank: Rank| if rank == 1 { Device::Cpu } else { gpu(rank % 2) };
            assert_eq!(all(on_devices(3, &options, mixed, staged, body)), host, "{wire}");
        }
    });
}

#[test]
fn parts_of_a_vector_that_begin_anywhere_are_reduced_in_place() {
    let Some(device) = SoftwareDevice::new() else { return };
    device.run("parts_of_a_vector_that_begin_anywhere_are_reduced_in_place", || {
        let sums = all(on_devices(3, &options("ring"), gpu_zero, staged, |communicator, device| {
            let mut buffer = DeviceBuffer::from_slice(gpu_of(device), &vec![1i32; 2000])?;
            communicator.all_reduce_device(buffer.as_mut_slice().slice(3..1990), Operator::Sum)?;
            buffer.to_vec()
        }));
        for sum in sums {
            assert!(sum[3..1990].iter().all(|&value| value == 3));
            assert!(sum[..3].iter().chain(&sum[1990..]).all(|&value| value == 1));
        }
    });
}

fn gpu_zero(_: Rank) -> Device {
    gpu(0)
}

#[test]
fn a_rank_that_does_not_come_is_named_at_the_deadline() {
    let Some(device) = SoftwareDevice::new() else { return };
    device.run("a_rank_that_does_not_come_is_named_at_the_deadline", || {
        let options = CommunicatorOptions { timeout: Duration::from_millis(300), ..options("ring") };
        for is_nccl in [false, true] {
            let over = if is_nccl { over_nccl } else { staged };
            let begun = Instant::now();
            let results = on_devices(2, &options, gpu, over, |communicator, device| {
                if communicator.rank() == 1 {
                    std::thread::sleep(Duration::from_secs(1));
                    return Ok(());
                }
                run::<f32>(communicator, device, Kind::AllReduce, Operator::Sum, 100).map(drop)
            });
            assert!(begun.elapsed() < Duration::from_secs(20));
            let error = results[0].as_ref().unwrap_err();
            assert!(matches!(error, Error::Stalled { .. }), "{error}");
            assert!(error.to_string().contains("rank 1"), "{error}");
        }
    });
}

#[test]
fn a_transfer_of_nccl_that_never_ends_is_ended_at_the_deadline() {
    let Some(device) = SoftwareDevice::new() else { return };
    let device = device.set("SOFTWARE_CUDA_NCCL_STALL", "1:0");
    device.run("a_transfer_of_nccl_that_never_ends_is_ended_at_the_deadline", || {
        let options = CommunicatorOptions { timeout: Duration::from_millis(500), ..options("ring") };
        let results = on_devices(2, &options, gpu, over_nccl, |communicator, device| {
            let error = run::<f32>(communicator, device, Kind::AllReduce, Operator::Sum, 5003).unwrap_err();
            // A communicator that failed stays failed, at once.
            let again = run::<f32>(communicator, device, Kind::AllReduce, Operator::Sum, 5003).unwrap_err();
            assert_eq!(again.to_string(), error.to_string());
            Ok(error)
        });
        // The rank whose deadline passes first aborts its communicator, of which the other may hear before its own passes.
        let errors = all(results);
        assert!(errors.iter().any(|error| matches!(error, Error::Stalled { .. })), "{errors:?}");
        for error in errors {
            assert!(matches!(error.exit_code(), 3 | 6), "{error}");
            assert!(error.to_string().contains("all-reduce of 5003 f32"), "{error}");
        }
    });
}

#[test]
fn an_error_that_nccl_tells_of_later_ends_the_operation() {
    let Some(device) = SoftwareDevice::new() else { return };
    let device = device.set("SOFTWARE_CUDA_NCCL_ERROR", "1:0").set("SOFTWARE_CUDA_NCCL_TELLS_OF_ABORTS", 1);
    device.run("an_error_that_nccl_tells_of_later_ends_the_operation", || {
        let options = CommunicatorOptions { timeout: Duration::from_secs(10), ..options("ring") };
        let begun = Instant::now();
        let results = on_devices(2, &options, gpu, over_nccl, |communicator, device| {
            Ok(run::<f32>(communicator, device, Kind::AllReduce, Operator::Sum, 5003).unwrap_err())
        });
        let errors = all(results);
        assert!(begun.elapsed() < Duration::from_secs(30));
        assert!(
            errors.iter().any(|error| error.exit_code() == 3 && error.to_string().contains("NCCL 2.28.9")),
            "{errors:?}"
        );
    });
}

#[test]
fn a_vector_on_the_host_does_not_meet_one_over_nccl() {
    let Some(device) = SoftwareDevice::new() else { return };
    device.run("a_vector_on_the_host_does_not_meet_one_over_nccl", || {
        let results = on_devices(2, &options("ring"), gpu, over_nccl, |communicator, device| {
            let device = if communicator.rank() == 0 { device } else { &Device::Cpu };
            run::<f32>(communicator, device, Kind::AllReduce, Operator::Sum, 100)
        });
        for result in results {
            let error = result.unwrap_err();
            assert!(matches!(error, Error::Mismatch { .. }), "{error}");
            assert!(error.to_string().contains("over nccl"), "{error}");
        }
    });
}

#[test]
fn different_lengths_are_a_mismatch_on_every_rank() {
    let Some(device) = SoftwareDevice::new() else { return };
    device.run("different_lengths_are_a_mismatch_on_every_rank", || {
        let mixed = |rank: Rank| if rank == 0 { Device::Cpu } else { gpu(0) };
        let results = on_devices(3, &options("ring"), mixed, staged, |communicator, device| {
            let len = 100 + communicator.rank() / 2;
            run::<f32>(communicator, device, Kind::AllReduce, Operator::Sum, len)
        });
        for result in results {
            let error = result.unwrap_err();
            assert!(matches!(error, Error::Mismatch { .. }), "{error}");
        }
    });
}

#[test]
fn two_ranks_on_one_gpu_are_refused_by_an_nccl_that_cannot() {
    let Some(device) = SoftwareDevice::new() else { return };
    device.run("two_ranks_on_one_gpu_are_refused_by_an_nccl_that_cannot", || {
        for result in on_devices(3, &options("ring"), |rank| gpu(rank % 2), over_nccl, |_, _| Ok(())) {
            let error = result.unwrap_err();
            assert_eq!(error.exit_code(), 3);
            let text = error.to_string();
            assert!(text.contains("rank 0") && text.contains("rank 2") && text.contains("2.28.9"), "{text}");
        }
    });
}

#[test]
fn two_ranks_share_one_gpu_where_nccl_can() {
    let Some(device) = SoftwareDevice::new() else { return };
    let device = device.set("SOFTWARE_CUDA_NCCL_VERSION", "2.30.0").set("NCCL_MULTI_RANK_GPU_ENABLE", 1);
    device.run("two_ranks_share_one_gpu_where_nccl_can", || {
        check_against_host::<f32>(3, "ring", &[Operator::Sum], gpu_zero, over_nccl);
    });
}

#[test]
fn a_communicator_that_was_told_of_no_gpu_says_what_to_do() {
    let Some(device) = SoftwareDevice::new() else { return };
    device.run("a_communicator_that_was_told_of_no_gpu_says_what_to_do", || {
        let transport = threads::group(1).remove(0);
        let mut communicator = Communicator::new(Arc::new(transport), options("ring")).unwrap();
        let device = gpu(0);
        let mut buffer = DeviceBuffer::from_slice(gpu_of(&device), &[1.0f32]).unwrap();
        let error = communicator.all_reduce_device(&mut buffer, Operator::Sum).unwrap_err();
        assert!(error.to_string().contains("call agree_devices on all ranks first"), "{error}");
    });
}
