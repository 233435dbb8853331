//! A CUDA device in software, for tests on machines without a GPU.
//!
//! This library exports those functions of the CUDA driver, of NVRTC and of NCCL that esync uses. Tests give it the names
//! `libcuda.so`, `libnvrtc.so` and `libnccl.so` in a folder of their own (`tests/common/software_device.rs`), so that the
//! program under test loads it as it would load the real ones. Nothing that ran here is ever a GPU's result: the device calls
//! itself "software device (no GPU)".
//!
//! What it is good for:
//! - **Order.** Each stream is a queue with a thread of its own, and nothing runs before its call has returned. Events order
//!   streams, and nothing else does. `SOFTWARE_CUDA_DELAYS` makes threads pause at random places, so that a missing event
//!   shows as wrong numbers.
//! - **Memory.** A device pointer is a number that the host cannot read; fresh memory is poison; every copy is checked
//!   against what is allocated at the call and again when it runs; a kernel that leaves its buffers ends the program, and
//!   bytes written behind a buffer are found when it is freed. Addresses are not used twice.
//! - **Hangs.** `cuMemFree` waits for all streams of the device, as the real one does, also for those of other ranks that share
//!   it: a rank that frees memory between exchanges hangs where another rank's exchange waits for it.
//! - **Arithmetic.** NVRTC hands the kernels to the host's C++ compiler (`shim.h`), so our own sources run. Accesses that are
//!   not aligned, which a GPU refuses, end the program.
//! - **NCCL.** Ranks are threads or processes of one host, connected by sockets. Sends wait for their receives, operations
//!   of a communicator run in their order, and what a rank does too little of makes the others wait for ever.
//!
//! What it cannot show: speed, missing fences inside a kernel, races between threads of a block, and whatever a real driver
//! does that its manual does not say.
//!
//! A function that is not exported here makes `cudarc` panic with its name.
//!
//! `tests/software_cuda/run COMMAND…` runs a program on it.
//!
//! | variable | default | meaning |
//! |---|---|---|
//! | `SOFTWARE_CUDA_DEVICES` | 2 | how many devices there are |
//! | `CUDA_VISIBLE_DEVICES` | all | which of them a process sees, by number |
//! | `SOFTWARE_CUDA_MEMORY` | 64 GiB | bytes of each, not taken before they are used |
//! | `SOFTWARE_CUDA_CAPABILITY` | 9.0 | compute capability |
//! | `SOFTWARE_CUDA_DRIVER_VERSION` | 13.0 | the driver's version of CUDA |
//! | `SOFTWARE_CUDA_NVRTC_VERSION` | 13.0 | NVRTC's version |
//! | `SOFTWARE_CUDA_NCCL_VERSION` | 2.28.9 | NCCL's version; from 2.30 on, ranks may share a device if `NCCL_MULTI_RANK_GPU_ENABLE=1` |
//! | `SOFTWARE_CUDA_DELAYS` | none | `SEED:MICROSECONDS`: pauses before operations of streams, random up to so many microseconds, and blocks of kernels in random order |
//! | `SOFTWARE_CUDA_CACHE` | none | a folder that keeps compiled kernels |
//! | `SOFTWARE_CUDA_TRACE` | none | a file that gets a line for each operation given to a stream and each wait of the host |
//! | `SOFTWARE_CUDA_NCCL_STALL` | none | `RANK:OPERATION`: this rank's operation of that number (from 0) never ends |
//! | `SOFTWARE_CUDA_NCCL_ERROR` | none | `RANK:OPERATION`: the same, and `ncclCommGetAsyncError` then tells of a remote error |
//! | `SOFTWARE_CUDA_NCCL_TELLS_OF_ABORTS` | 0 | 1: `ncclCommAbort` makes the other ranks' communicators tell of a remote error, as over a network; else they wait, as over NVLink. A process that ends is always noticed |
#![allow(non_snake_case, reason = "the functions have the names of CUDA's")]

mod api;
mod completion;
mod device;
mod driver;
mod fault;
mod handles;
mod memory;
mod module;
mod nccl;
mod nvrtc;
mod settings;
mod stream;
mod trace;
