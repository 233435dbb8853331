//! Kernels: compiled by NVRTC's stand-in, loaded and launched as on a GPU.

use crate::software_device::{DRIVER, NVRTC, SoftwareDevice, is_inside};
use cudarc::driver::sys::CUresult;
use cudarc::driver::{
    CudaContext, CudaFunction, CudaSlice, DevicePtr, DeviceRepr, DriverError, LaunchConfig, PushKernelArg,
};
use cudarc::nvrtc::{CompileError, CompileOptions, Ptx, compile_ptx_with_opts};
use std::sync::Arc;

/// One made by a macro, as ours are; one with a barrier; one that writes where it is told to.
const SOURCE: &str = r#"
typedef unsigned long long u64;
struct Pair { const float *left, *right; };
template <class T> __device__ __forceinline__ T twice(T value) { return value + value; }

#define FILL(NAME, TYPE) \
    extern "C" __global__ void NAME(TYPE *into, TYPE value, u64 count) { \
        u64 step = (u64)gridDim.x * blockDim.x; \
        for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += step) into[i] = twice(value) + (TYPE)i; \
    }
FILL(fill_float, float)
FILL(fill_int, int)

extern "C" __global__ void __launch_bounds__(128) add(Pair from, float *into, unsigned count) {
    for (unsigned i = threadIdx.x; i < count; i += blockDim.x) into[i] = from.left[i] + from.right[i];
}

extern "C" __global__ void block_sums(const int *from, int *into) {
    __shared__ int part[64];
    part[threadIdx.x] = from[blockIdx.x * 64 + threadIdx.x];
    for (unsigned half = 32; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) part[threadIdx.x] += part[threadIdx.x + half];
    }
    if (threadIdx.x == 0) into[blockIdx.x] = part[0];
}

extern "C" __global__ void place(int *x, int *y, int *z) {
    unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    unsigned at = block * blockDim.x * blockDim.y * blockDim.z + thread;
    x[at] = blockIdx.x * blockDim.x + threadIdx.x;
    y[at] = blockIdx.y * blockDim.y + threadIdx.y;
    z[at] = blockIdx.z * blockDim.z + threadIdx.z;
}

extern "C" __global__ void write_at(int *into, long long at) { into[at] = 1; }

struct alignas(16) Four { float lane[4]; };
extern "C" __global__ void copy_four(const float *from, float *into) { *(Four *)into = *(const Four *)from; }
"#;

fn device() -> Option<SoftwareDevice> {
    SoftwareDevice::with_libraries(&[DRIVER, NVRTC])
}

fn compiled(architecture: &'static str) -> Result<Ptx, CompileError> {
    let options = CompileOptions { arch: Some(architecture), fmad: Some(false), ..CompileOptions::default() };
    compile_ptx_with_opts(SOURCE, options)
}

fn kernel(context: &Arc<CudaContext>, name: &str) -> CudaFunction {
    context.load_module(compiled("sm_90").unwrap()).unwrap().load_function(name).unwrap()
}

/// The structure of the same name in the source.
#[repr(C)]
struct Pair([u64; 2]);

// SAFETY: two addresses, there as here.
unsafe impl DeviceRepr for Pair {}

fn geometry(blocks: u32, threads: u32) -> LaunchConfig {
    LaunchConfig { grid_dim: (blocks, 1, 1), block_dim: (threads, 1, 1), shared_mem_bytes: 0 }
}

#[test]
fn kernels_without_a_barrier_run() {
    let Some(device) = device() else { return };
    device.run("kernels::kernels_without_a_barrier_run", || {
        let context = CudaContext::new(0).unwrap();
        let stream = context.new_stream().unwrap();
        for count in [1_usize, 31, 1000] {
            let (floats, ints) = (kernel(&context, "fill_float"), kernel(&context, "fill_int"));
            let mut float_buffer = stream.alloc_zeros::<f32>(count + 1).unwrap();
            let mut int_buffer = stream.alloc_zeros::<i32>(count + 1).unwrap();
            // SAFETY: the kernels write `count` elements.
            unsafe {
                let mut launch = stream.launch_builder(&floats);
                launch
                    .arg(&mut float_buffer)
                    .arg(&1.5_f32)
                    .arg(&(count as u64))
                    .launch(geometry(3, 64))
                    .unwrap();
                let mut launch = stream.launch_builder(&ints);
                launch.arg(&mut int_buffer).arg(&-4_i32).arg(&(count as u64)).launch(geometry(1, 7)).unwrap();
            }
            let (floats, ints) =
                (stream.clone_dtoh(&float_buffer).unwrap(), stream.clone_dtoh(&int_buffer).unwrap());
            for at in 0..count {
                assert_eq!(
                    (floats[at], ints[at]),
                    (3.0 + at as f32, -8 + at as i32),
                    "element {at} of {count}"
                );
            }
            assert_eq!((floats[count], ints[count]), (0.0, 0));
        }
    });
}

#[test]
fn threads_of_a_block_meet_at_barriers() {
    let Some(device) = device() else { return };
    device.run("kernels::threads_of_a_block_meet_at_barriers", || {
        let context = CudaContext::new(1).unwrap();
        let stream = context.new_stream().unwrap();
        let numbers: Vec<i32> = (0..64 * 5).map(|i| i * i % 1000).collect();
        let (from, mut into) = (stream.clone_htod(&numbers).unwrap(), stream.alloc_zeros::<i32>(5).unwrap());
        let sums = kernel(&context, "block_sums");
        // SAFETY: five blocks of 64 read and write as many as there are.
        unsafe { stream.launch_builder(&sums).arg(&from).arg(&mut into).launch(geometry(5, 64)) }.unwrap();
        let expected: Vec<i32> = numbers.chunks(64).map(|block| block.iter().sum()).collect();
        assert_eq!(stream.clone_dtoh(&into).unwrap(), expected);
    });
}

#[test]
fn addresses_in_structures_and_grids_of_three_dimensions_work() {
    let Some(device) = device() else { return };
    device.run("kernels::addresses_in_structures_and_grids_of_three_dimensions_work", || {
        let context = CudaContext::new(0).unwrap();
        let stream = context.new_stream().unwrap();
        let left = stream.clone_htod(&[1.0_f32, 2.0, 3.0]).unwrap();
        let right = stream.clone_htod(&[10.0_f32, 20.0, 30.0]).unwrap();
        let mut sum = stream.alloc_zeros::<f32>(3).unwrap();
        let pair = Pair([&left, &right].map(|of| DevicePtr::device_ptr(of, &stream).0));
        let add = kernel(&context, "add");
        // SAFETY: three elements each.
        unsafe { stream.launch_builder(&add).arg(&pair).arg(&mut sum).arg(&3_u32).launch(geometry(1, 2)) }
            .unwrap();
        assert_eq!(stream.clone_dtoh(&sum).unwrap(), [11.0, 22.0, 33.0]);

        let place = kernel(&context, "place");
        let config = LaunchConfig { grid_dim: (2, 3, 2), block_dim: (4, 2, 3), shared_mem_bytes: 0 };
        let count = 12 * 24;
        let mut places = [(); 3].map(|()| stream.alloc_zeros::<i32>(count).unwrap());
        let [x, y, z] = &mut places;
        // SAFETY: one element for each thread.
        unsafe { stream.launch_builder(&place).arg(x).arg(y).arg(z).launch(config) }.unwrap();
        let places = places.map(|of| stream.clone_dtoh(&of).unwrap());
        let mut all: Vec<_> = (0..count).map(|at| (places[0][at], places[1][at], places[2][at])).collect();
        all.sort_unstable();
        let expected = (0..8).flat_map(|x| (0..6).flat_map(move |y| (0..6).map(move |z| (x, y, z))));
        assert_eq!(all, expected.collect::<Vec<_>>());
    });
}

#[test]
fn errors_of_the_compiler_reach_the_log() {
    let Some(device) = device() else { return };
    device.run("kernels::errors_of_the_compiler_reach_the_log", || {
        let log = |source: &str, options: CompileOptions| match compile_ptx_with_opts(source, options) {
            Err(CompileError::CompileError { log, .. }) => log.into_string().unwrap(),
            other => panic!("{other:?}"),
        };
        let wrong = "extern \"C\" __global__ void wrong(int *into) { into[0] = unknown; }";
        let options = CompileOptions { name: Some("wrong.cu".into()), ..CompileOptions::default() };
        let said = log(wrong, options);
        assert!(said.contains("wrong.cu:1") && said.contains("unknown"), "{said}");
        let old = CompileOptions { arch: Some("sm_70"), ..CompileOptions::default() };
        assert!(log(SOURCE, old).contains("--gpu-architecture"));
        let fast = CompileOptions { options: vec!["--unknown-flag".into()], ..CompileOptions::default() };
        assert!(log(SOURCE, fast).contains("unrecognized option --unknown-flag"));
    });
}

#[test]
fn modules_for_newer_devices_and_other_texts_are_refused() {
    let Some(device) = device() else { return };
    device.run("kernels::modules_for_newer_devices_and_other_texts_are_refused", || {
        let context = CudaContext::new(0).unwrap();
        let error = |ptx| context.load_module(ptx).map(drop).unwrap_err();
        assert_eq!(error(compiled("sm_100").unwrap()), DriverError(CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU));
        let real_ptx = Ptx::from_src(".version 8.0\n.target sm_75\n.address_size 64\n");
        assert_eq!(error(real_ptx), DriverError(CUresult::CUDA_ERROR_INVALID_PTX));
        let module = context.load_module(compiled("compute_75").unwrap()).unwrap();
        let missing = module.load_function("missing").map(drop).unwrap_err();
        assert_eq!(missing, DriverError(CUresult::CUDA_ERROR_NOT_FOUND));
    });
}

/// Runs `write_at` with an index outside of the four elements that there are.
fn write_outside(at: i64) {
    let context = CudaContext::new(0).unwrap();
    let stream = context.new_stream().unwrap();
    let mut buffer = stream.alloc_zeros::<i32>(4).unwrap();
    let write = kernel(&context, "write_at");
    // SAFETY: it is meant to end the program.
    unsafe { stream.launch_builder(&write).arg(&mut buffer).arg(&at).launch(geometry(1, 1)) }.unwrap();
    drop(buffer);
    stream.synchronize().unwrap();
}

#[test]
fn a_kernel_far_outside_of_its_buffer_ends_the_program() {
    const NAME: &str = "kernels::a_kernel_far_outside_of_its_buffer_ends_the_program";
    let Some(device) = device() else { return };
    if is_inside() {
        return write_outside(1 << 20);
    }
    let finished = device.start(NAME);
    assert_eq!(finished.code, 128 + libc::SIGSEGV, "{finished:?}");
    assert_eq!(finished.lines_with("software device: write_at touched 0x"), 1, "{finished:?}");
}

#[test]
fn a_kernel_just_outside_of_its_buffer_is_noticed_at_the_free() {
    const NAME: &str = "kernels::a_kernel_just_outside_of_its_buffer_is_noticed_at_the_free";
    let Some(device) = device() else { return };
    if is_inside() {
        return write_outside(5);
    }
    let finished = device.start(NAME);
    assert_eq!(finished.code, 128 + libc::SIGABRT, "{finished:?}");
    assert_eq!(finished.lines_with("something wrote behind the 16 bytes at 0x"), 1, "{finished:?}");
}

#[test]
fn an_access_that_is_not_aligned_ends_the_program() {
    const NAME: &str = "kernels::an_access_that_is_not_aligned_ends_the_program";
    let Some(device) = device() else { return };
    if is_inside() {
        let context = CudaContext::new(0).unwrap();
        let stream = context.new_stream().unwrap();
        let (from, mut into) =
            (stream.clone_htod(&[1.0_f32; 8]).unwrap(), stream.alloc_zeros::<f32>(8).unwrap());
        let copy = kernel(&context, "copy_four");
        for start in [4, 1] {
            // SAFETY: the second time, it is meant to end the program.
            unsafe {
                let mut launch = stream.launch_builder(&copy);
                launch.arg(&from.slice(start..)).arg(&mut into).launch(geometry(1, 1)).unwrap();
            }
            stream.synchronize().unwrap();
            println!("done with {start}");
        }
        return;
    }
    let finished = device.start(NAME);
    assert_eq!(finished.code, 128 + libc::SIGILL, "{finished:?}");
    assert_eq!(
        finished.lines_with("software device: copy_four: an access that is not aligned"),
        1,
        "{finished:?}"
    );
    assert!(
        finished.lines_with("done with 4") == 1 && finished.lines_with("done with 1") == 0,
        "{finished:?}"
    );
}

#[test]
fn memory_and_modules_of_another_device_are_refused() {
    let Some(device) = device() else { return };
    device.run("kernels::memory_and_modules_of_another_device_are_refused", || {
        let contexts = [0, 1].map(|ordinal| CudaContext::new(ordinal).unwrap());
        // SAFETY: each stream is waited for before another uses the buffer.
        contexts.iter().for_each(|context| unsafe { context.disable_event_tracking() });
        let streams = contexts.each_ref().map(|context| context.new_stream().unwrap());
        let mut elsewhere = streams[1].alloc_zeros::<i32>(4).unwrap();
        streams[1].synchronize().unwrap();
        let fill = kernel(&contexts[0], "fill_int");
        let start = |on: usize, into: &mut CudaSlice<i32>| {
            // SAFETY: both launches are refused.
            unsafe { streams[on].launch_builder(&fill).arg(into).arg(&1).arg(&4_u64).launch(geometry(1, 4)) }
                .map(drop)
        };
        assert_eq!(start(1, &mut elsewhere), Err(DriverError(CUresult::CUDA_ERROR_INVALID_HANDLE)));
        assert_eq!(start(0, &mut elsewhere), Ok(()));
        assert_eq!(streams[0].synchronize(), Err(DriverError(CUresult::CUDA_ERROR_ILLEGAL_ADDRESS)));
        assert_eq!(streams[1].clone_dtoh(&elsewhere).unwrap(), [0; 4]);
        // Dropping what is left would complain of the same.
        std::process::exit(0);
    });
}
