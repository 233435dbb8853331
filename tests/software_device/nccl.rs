//! NCCL among threads and processes.

use crate::software_device::{DRIVER, NCCL, SoftwareDevice};
use cudarc::driver::{CudaContext, CudaSlice, CudaStream, DevicePtr, DevicePtrMut};
use cudarc::nccl::result::{self, NcclError, group_end, group_start};
use cudarc::nccl::sys::{
    self, ncclComm_t, ncclConfig_t, ncclDataType_t, ncclRedOp_t, ncclResult_t, ncclUniqueId,
};
use std::cell::Cell;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

fn device(ranks: usize) -> Option<SoftwareDevice> {
    Some(SoftwareDevice::with_libraries(&[DRIVER, NCCL])?.set("SOFTWARE_CUDA_DEVICES", ranks))
}

/// One rank, on the device of its number, with a stream.
struct Rank {
    rank: usize,
    communicator: ncclComm_t,
    stream: Arc<CudaStream>,
    aborted: Cell<bool>,
}

impl Drop for Rank {
    fn drop(&mut self) {
        self.abort();
    }
}

fn succeeded(code: ncclResult_t) {
    assert_eq!(code, ncclResult_t::ncclSuccess);
}

impl Rank {
    fn on(id: ncclUniqueId, rank: usize, ranks: usize, ordinal: usize) -> Result<Self, ncclResult_t> {
        let stream = CudaContext::new(ordinal).unwrap().new_stream().unwrap();
        let mut communicator = std::ptr::null_mut();
        // SAFETY: the pointer is to a communicator's place.
        match unsafe { result::comm_init_rank(&mut communicator, ranks as i32, id, rank as i32) } {
            Ok(_) => Ok(Self { rank, communicator, stream, aborted: Cell::new(false) }),
            Err(NcclError(code)) => Err(code),
        }
    }

    fn buffer(&self, values: &[f32]) -> CudaSlice<f32> {
        self.stream.clone_htod(values).unwrap()
    }

    fn values(&self, buffer: &CudaSlice<f32>) -> Vec<f32> {
        self.stream.clone_dtoh(buffer).unwrap()
    }

    fn raw_stream(&self) -> sys::cudaStream_t {
        self.stream.cu_stream().cast()
    }

    fn send(&self, from: &CudaSlice<f32>, count: usize, peer: usize) {
        let address = from.device_ptr(&self.stream).0 as *const _;
        let of = ncclDataType_t::ncclFloat32;
        // SAFETY: the buffer outlives the test.
        unsafe { result::send(address, count, of, peer as i32, self.communicator, self.raw_stream()) }
            .unwrap();
    }

    fn receive(&self, to: &mut CudaSlice<f32>, count: usize, peer: usize) {
        let address = to.device_ptr_mut(&self.stream).0 as *mut _;
        let of = ncclDataType_t::ncclFloat32;
        // SAFETY: the buffer outlives the test.
        unsafe { result::recv(address, count, of, peer as i32, self.communicator, self.raw_stream()) }
            .unwrap();
    }

    fn all_reduce(&self, from: u64, to: u64, count: usize, with: ncclRedOp_t) -> ncclResult_t {
        let (from, to, of) = (from as *const _, to as *mut _, ncclDataType_t::ncclFloat32);
        // SAFETY: the buffers outlive the test.
        unsafe { sys::ncclAllReduce(from, to, count, of, with, self.communicator, self.raw_stream()) }
    }

    fn asynchronous_error(&self) -> ncclResult_t {
        let mut error = ncclResult_t::ncclSuccess;
        // SAFETY: the pointer is to an error's place.
        succeeded(unsafe { sys::ncclCommGetAsyncError(self.communicator, &mut error) });
        error
    }

    /// The error that the communicator comes to tell of.
    fn error_in_time(&self) -> ncclResult_t {
        let until = Instant::now() + Duration::from_secs(20);
        while self.asynchronous_error() == ncclResult_t::ncclSuccess && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.asynchronous_error()
    }

    fn abort(&self) {
        if !self.aborted.replace(true) {
            // SAFETY: ours, and not used again.
            unsafe { result::comm_abort(self.communicator) }.unwrap();
        }
    }

    /// Whether all given to the stream is done, without waiting for it.
    fn is_done(&self) -> bool {
        self.stream.record_event(None).unwrap().try_is_complete().unwrap()
    }
}

/// Runs `body` as each of `ranks` threads.
fn on_ranks<R: Send>(ranks: usize, body: impl Fn(&Rank) -> R + Sync) -> Vec<R> {
    let id = result::get_uniqueid().unwrap();
    std::thread::scope(|scope| {
        let start = |rank| {
            let body = &body;
            scope.spawn(move || body(&Rank::on(id, rank, ranks, rank).unwrap()))
        };
        let threads: Vec<_> = (0..ranks).map(start).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// What rank `rank` has as element `i`.
fn value(rank: usize, i: usize) -> f32 {
    (rank * 1000 + i % 100) as f32
}

fn own_values(rank: &Rank, count: usize) -> CudaSlice<f32> {
    rank.buffer(&(0..count).map(|i| value(rank.rank, i)).collect::<Vec<_>>())
}

#[test]
fn grouped_messages_travel_around_a_ring() {
    let Some(device) = device(4) else { return };
    device.delays(1, 300).run("nccl::grouped_messages_travel_around_a_ring", || {
        for (ranks, count) in [(2, 1), (3, 1000), (4, 300_001)] {
            on_ranks(ranks, |rank| {
                let mut held = own_values(rank, count);
                for step in 1..=ranks {
                    let mut next = rank.stream.alloc_zeros::<f32>(count).unwrap();
                    group_start().unwrap();
                    rank.send(&held, count, (rank.rank + 1) % ranks);
                    rank.receive(&mut next, count, (rank.rank + ranks - 1) % ranks);
                    group_end().unwrap();
                    held = next;
                    let origin = (rank.rank + ranks - step % ranks) % ranks;
                    let values = rank.values(&held);
                    assert!(
                        values.iter().enumerate().all(|(i, &got)| got == value(origin, i)),
                        "{ranks} ranks, step {step}"
                    );
                }
            });
        }
    });
}

#[test]
fn native_collectives_give_what_they_promise() {
    let Some(device) = device(4) else { return };
    device.delays(2, 200).run("nccl::native_collectives_give_what_they_promise", || {
        for (ranks, count) in [(1, 5), (2, 1), (3, 1001), (4, 100_000)] {
            on_ranks(ranks, |rank| {
                let over = |i: usize| (0..ranks).map(move |rank| value(rank, i));
                let own = own_values(rank, count);
                let address = own.device_ptr(&rank.stream).0;
                let check = |what: &str, got: &[f32], expected: &dyn Fn(usize) -> f32| {
                    for (i, &got) in got.iter().enumerate() {
                        assert_eq!(got, expected(i), "{what}, rank {} of {ranks}, element {i}", rank.rank);
                    }
                };
                for (with, expected) in [
                    (ncclRedOp_t::ncclSum, &(|i| over(i).sum()) as &dyn Fn(usize) -> f32),
                    (ncclRedOp_t::ncclMax, &|i| value(ranks - 1, i)),
                    (ncclRedOp_t::ncclAvg, &|i| over(i).sum::<f32>() / ranks as f32),
                ] {
                    let mut result = rank.stream.alloc_zeros::<f32>(count).unwrap();
                    let to = result.device_ptr_mut(&rank.stream).0;
                    succeeded(rank.all_reduce(address, to, count, with));
                    check(&format!("{with:?}"), &rank.values(&result), expected);
                }
                check("the source", &rank.values(&own), &|i| value(rank.rank, i));
                let in_place = own_values(rank, count);
                let to = in_place.device_ptr(&rank.stream).0;
                succeeded(rank.all_reduce(to, to, count, ncclRedOp_t::ncclSum));
                check("in place", &rank.values(&in_place), &|i| over(i).sum());
            });
        }
    });
}

#[test]
fn scattering_gathering_and_rooted_collectives_work() {
    let Some(device) = device(3) else { return };
    device.run("nccl::scattering_gathering_and_rooted_collectives_work", || {
        const PART: usize = 7;
        on_ranks(3, |rank| {
            let (of, sum) = (ncclDataType_t::ncclFloat32, ncclRedOp_t::ncclSum);
            let (communicator, stream) = (rank.communicator, rank.raw_stream());
            let whole = own_values(rank, 3 * PART);
            let from = whole.device_ptr(&rank.stream).0 as *const _;
            let fresh = |count: usize| rank.stream.alloc_zeros::<f32>(count).unwrap();
            let place = |buffer: &mut CudaSlice<f32>| buffer.device_ptr_mut(&rank.stream).0 as *mut _;
            let (mut part, mut all, mut rooted, mut cast) =
                (fresh(PART), fresh(9 * PART), fresh(3 * PART), fresh(PART));
            // SAFETY: the buffers are as long as said, and live until the stream is done.
            unsafe {
                result::reduce_scatter(from, place(&mut part), PART, of, sum, communicator, stream).unwrap();
                result::all_gather(from, place(&mut all), 3 * PART, of, communicator, stream).unwrap();
                result::reduce(from, place(&mut rooted), 3 * PART, of, sum, 2, communicator, stream).unwrap();
                result::broadcast(from, place(&mut cast), PART, of, 1, communicator, stream).unwrap();
            }
            let sum_at = |i: usize| (0..3).map(|rank| value(rank, i)).sum::<f32>();
            let expected: Vec<f32> = (0..PART).map(|i| sum_at(rank.rank * PART + i)).collect();
            assert_eq!(rank.values(&part), expected);
            let expected: Vec<f32> =
                (0..3).flat_map(|rank| (0..3 * PART).map(move |i| value(rank, i))).collect();
            assert_eq!(rank.values(&all), expected);
            let at_root = |i: usize| if rank.rank == 2 { sum_at(i) } else { 0.0 };
            assert_eq!(rank.values(&rooted), (0..3 * PART).map(at_root).collect::<Vec<_>>());
            assert_eq!(rank.values(&cast), (0..PART).map(|i| value(1, i)).collect::<Vec<_>>());
        });
    });
}

#[test]
fn ranks_may_be_processes() {
    const NAME: &str = "nccl::ranks_may_be_processes";
    const ID: &str = "TEST_NCCL_ID";
    let Some(device) = device(2) else { return };
    device.run(NAME, || {
        let work = |rank: Rank| {
            let count = 200_003;
            let own = own_values(&rank, count);
            let to = own.device_ptr(&rank.stream).0;
            succeeded(rank.all_reduce(to, to, count, ncclRedOp_t::ncclSum));
            let values = rank.values(&own);
            assert!(values.iter().enumerate().all(|(i, &got)| got == value(0, i) + value(1, i)));
        };
        if let Ok(text) = std::env::var(ID) {
            let mut id = ncclUniqueId { internal: [0; 128] };
            for (to, byte) in id.internal.iter_mut().zip(text.split(',')) {
                *to = byte.parse().unwrap();
            }
            return work(Rank::on(id, 1, 2, 1).unwrap());
        }
        let id = result::get_uniqueid().unwrap();
        let text: Vec<_> = id.internal.iter().map(ToString::to_string).collect();
        let mut other = Command::new(std::env::current_exe().unwrap());
        other.args([NAME, "--exact", "--nocapture"]).env(ID, text.join(","));
        let mut other = other.spawn().unwrap();
        work(Rank::on(id, 0, 2, 0).unwrap());
        assert!(other.wait().unwrap().success());
    });
}

#[test]
fn a_send_ends_with_its_receive() {
    let Some(device) = device(2) else { return };
    device.run("nccl::a_send_ends_with_its_receive", || {
        let received = std::sync::Barrier::new(2);
        on_ranks(2, |rank| {
            let mut buffer = own_values(rank, 4);
            if rank.rank == 0 {
                rank.send(&buffer, 4, 1);
                std::thread::sleep(Duration::from_millis(30));
                assert!(!rank.is_done());
                received.wait();
            } else {
                received.wait();
                rank.receive(&mut buffer, 4, 0);
                assert_eq!(rank.values(&buffer), (0..4).map(|i| value(0, i)).collect::<Vec<_>>());
            }
            rank.stream.synchronize().unwrap();
        });
    });
}

#[test]
fn messages_to_oneself_are_possible_in_a_group() {
    let Some(device) = device(1) else { return };
    device.run("nccl::messages_to_oneself_are_possible_in_a_group", || {
        on_ranks(1, |rank| {
            let (from, mut to) = (own_values(rank, 9), rank.stream.alloc_zeros::<f32>(9).unwrap());
            group_start().unwrap();
            rank.send(&from, 9, 0);
            rank.receive(&mut to, 9, 0);
            group_end().unwrap();
            assert_eq!(rank.values(&to), rank.values(&from));
            group_start().unwrap();
            rank.send(&from, 9, 0);
            assert_eq!(group_end().err(), Some(NcclError(ncclResult_t::ncclInvalidUsage)));
        });
    });
}

#[test]
fn an_abort_releases_what_waits_for_a_silent_rank() {
    let Some(device) = device(2) else { return };
    let device = device.set("SOFTWARE_CUDA_NCCL_STALL", "1:1");
    device.run("nccl::an_abort_releases_what_waits_for_a_silent_rank", || {
        let both_wait = std::sync::Barrier::new(2);
        on_ranks(2, |rank| {
            let own = own_values(rank, 10);
            let to = own.device_ptr(&rank.stream).0;
            succeeded(rank.all_reduce(to, to, 10, ncclRedOp_t::ncclSum));
            rank.stream.synchronize().unwrap();
            succeeded(rank.all_reduce(to, to, 10, ncclRedOp_t::ncclSum));
            std::thread::sleep(Duration::from_millis(30));
            assert!(!rank.is_done());
            // The silent rank's abort ends its own operation, and tells the other rank nothing.
            if rank.rank == 1 {
                rank.abort();
            }
            both_wait.wait();
            std::thread::sleep(Duration::from_millis(10));
            if rank.rank == 0 {
                assert!(!rank.is_done());
                assert_eq!(rank.asynchronous_error(), ncclResult_t::ncclSuccess);
                rank.abort();
            }
            rank.stream.synchronize().unwrap();
        });
    });
}

#[test]
fn errors_of_other_ranks_are_told() {
    let Some(device) = device(2) else { return };
    let device = device.set("SOFTWARE_CUDA_NCCL_ERROR", "0:0").set("SOFTWARE_CUDA_NCCL_TELLS_OF_ABORTS", 1);
    device.run("nccl::errors_of_other_ranks_are_told", || {
        on_ranks(2, |rank| {
            let own = own_values(rank, 10);
            let to = own.device_ptr(&rank.stream).0;
            succeeded(rank.all_reduce(to, to, 10, ncclRedOp_t::ncclSum));
            // Rank 0 is told to fail; when it has aborted, rank 1 has lost it.
            assert_eq!(rank.error_in_time(), ncclResult_t::ncclRemoteError);
            assert!(!rank.is_done());
            let more = rank.all_reduce(to, to, 10, ncclRedOp_t::ncclSum);
            assert_eq!(more, ncclResult_t::ncclRemoteError);
        });
    });
}

#[test]
fn messages_that_do_not_match_are_errors() {
    let Some(device) = device(2) else { return };
    device.run("nccl::messages_that_do_not_match_are_errors", || {
        let seen = std::sync::Barrier::new(2);
        on_ranks(2, |rank| {
            let mut buffer = own_values(rank, 10);
            match rank.rank {
                0 => rank.send(&buffer, 10, 1),
                _ => {
                    rank.receive(&mut buffer, 9, 0);
                    assert_eq!(rank.error_in_time(), ncclResult_t::ncclInvalidUsage);
                }
            }
            // Rank 0 must not be gone before.
            seen.wait();
        });
    });
}

#[test]
fn two_ranks_on_one_device_are_refused_by_an_old_version() {
    let Some(device) = device(1) else { return };
    device.run("nccl::two_ranks_on_one_device_are_refused_by_an_old_version", || {
        assert_eq!(result::get_nccl_version().unwrap(), 22809);
        let id = result::get_uniqueid().unwrap();
        std::thread::scope(|scope| {
            for rank in 0..2 {
                scope.spawn(move || {
                    let refused = Rank::on(id, rank, 2, 0).map(drop);
                    assert_eq!(refused, Err(ncclResult_t::ncclInvalidUsage));
                });
            }
        });
    });
}

#[test]
fn a_new_version_allows_them_if_asked_to() {
    let Some(device) = device(1) else { return };
    let device = device.set("SOFTWARE_CUDA_NCCL_VERSION", "2.30.3").set("NCCL_MULTI_RANK_GPU_ENABLE", 1);
    device.run("nccl::a_new_version_allows_them_if_asked_to", || {
        assert_eq!(result::get_nccl_version().unwrap(), 23003);
        let id = result::get_uniqueid().unwrap();
        std::thread::scope(|scope| {
            for rank in 0..2 {
                scope.spawn(move || {
                    let rank = Rank::on(id, rank, 2, 0).unwrap();
                    let own = own_values(&rank, 10);
                    let to = own.device_ptr(&rank.stream).0;
                    succeeded(rank.all_reduce(to, to, 10, ncclRedOp_t::ncclSum));
                    assert_eq!(rank.values(&own)[3], value(0, 3) + value(1, 3));
                });
            }
        });
    });
}

/// NCCL's own initial values.
fn non_blocking() -> ncclConfig_t {
    let undefined = i32::MIN;
    // SAFETY: numbers and pointers, for which zeros are values.
    let mut config: ncclConfig_t = unsafe { std::mem::zeroed() };
    config.size = size_of::<ncclConfig_t>();
    config.magic = 0xcafe_beef;
    config.version = 22809;
    for field in
        [&mut config.cgaClusterSize, &mut config.minCTAs, &mut config.maxCTAs, &mut config.splitShare]
    {
        *field = undefined;
    }
    config.blocking = 0;
    config
}

#[test]
fn a_start_that_does_not_block_can_be_watched_and_aborted() {
    let Some(device) = device(2) else { return };
    device.delays(3, 500).run("nccl::a_start_that_does_not_block_can_be_watched_and_aborted", || {
        let start = |id, rank: usize| {
            let stream = CudaContext::new(rank).unwrap().new_stream().unwrap();
            let (mut communicator, mut config) = (std::ptr::null_mut(), non_blocking());
            // SAFETY: places for a communicator and a configuration.
            let code =
                unsafe { sys::ncclCommInitRankConfig(&mut communicator, 2, id, rank as i32, &mut config) };
            assert_eq!(code, ncclResult_t::ncclInProgress);
            Rank { rank, communicator, stream, aborted: Cell::new(false) }
        };
        let settle = |rank: &Rank| {
            let until = Instant::now() + Duration::from_secs(20);
            while rank.asynchronous_error() == ncclResult_t::ncclInProgress && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(1));
            }
            rank.asynchronous_error()
        };
        let id = result::get_uniqueid().unwrap();
        let first = start(id, 0);
        let own = own_values(&first, 1);
        let address = own.device_ptr(&first.stream).0;
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(first.asynchronous_error(), ncclResult_t::ncclInProgress, "rank 1 is not there yet");
        let early = first.all_reduce(address, address, 1, ncclRedOp_t::ncclSum);
        assert_eq!(early, ncclResult_t::ncclInvalidUsage);
        let second = start(id, 1);
        for rank in [&first, &second] {
            assert_eq!(settle(rank), ncclResult_t::ncclSuccess);
        }
        let others = own_values(&second, 1);
        for (rank, buffer) in [(&first, &own), (&second, &others)] {
            let to = buffer.device_ptr(&rank.stream).0;
            // With delays, the operation is given to the stream only later.
            let code = rank.all_reduce(to, to, 1, ncclRedOp_t::ncclSum);
            assert_eq!(code, ncclResult_t::ncclInProgress);
        }
        for (rank, buffer) in [(&first, &own), (&second, &others)] {
            assert_eq!(settle(rank), ncclResult_t::ncclSuccess);
            assert_eq!(rank.values(buffer), [value(0, 0) + value(1, 0)]);
        }
        // Dropped, that is aborted, while it waits for a rank that never comes.
        drop(start(result::get_uniqueid().unwrap(), 0));
    });
}

#[test]
fn memory_of_the_host_and_of_other_devices_is_refused() {
    let Some(device) = device(2) else { return };
    device.run("nccl::memory_of_the_host_and_of_other_devices_is_refused", || {
        on_ranks(2, |rank| {
            let refused = ncclResult_t::ncclInvalidArgument;
            let host = [0.0_f32; 4];
            let address = host.as_ptr() as u64;
            assert_eq!(rank.all_reduce(address, address, 4, ncclRedOp_t::ncclSum), refused);
            let elsewhere = CudaContext::new(1 - rank.rank).unwrap().new_stream().unwrap();
            let other = elsewhere.alloc_zeros::<f32>(4).unwrap();
            let address = other.device_ptr(&elsewhere).0;
            assert_eq!(rank.all_reduce(address, address, 4, ncclRedOp_t::ncclSum), refused);
            let own = own_values(rank, 4);
            let address = own.device_ptr(&rank.stream).0;
            assert_eq!(rank.all_reduce(address, address, 5, ncclRedOp_t::ncclSum), refused);
        });
    });
}
