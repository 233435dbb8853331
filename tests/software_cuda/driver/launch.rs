//! Launches: what the caller's pointers point to is taken at the call, the kernel runs when the stream comes to it.

use super::modules::FUNCTIONS;
use super::unsupported;
use crate::api::{CUresult, Outcome, code, complain};
use crate::device::{self, Device};
use crate::memory;
use crate::module::Function;
use crate::settings::Pauses;
use crate::stream::stream_for_work;
use cudarc::driver::sys::{CUfunction, CUstream};
use std::ffi::{c_uint, c_void};
use std::sync::atomic::{AtomicU64, Ordering};

/// Into how many parts a grid is cut, which run in random order if there are delays.
const SHARES: u64 = 8;

static LAUNCHES: AtomicU64 = AtomicU64::new(0);

#[unsafe(no_mangle)]
extern "C" fn cuLaunchKernel(
    function: CUfunction,
    grid_x: c_uint,
    grid_y: c_uint,
    grid_z: c_uint,
    block_x: c_uint,
    block_y: c_uint,
    block_z: c_uint,
    shared_bytes: c_uint,
    stream: CUstream,
    parameters: *mut *mut c_void,
    extra: *mut *mut c_void,
) -> CUresult {
    code(|| {
        let (grid, block) = ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]);
        let function = FUNCTIONS.get(function).ok_or(CUresult::CUDA_ERROR_INVALID_HANDLE)?;
        let stream = stream_for_work(stream)?;
        stream.device.check()?;
        if !extra.is_null() {
            return unsupported(format_args!("the parameter `extra` of cuLaunchKernel"));
        }
        if function.device != stream.device.ordinal {
            complain!("{}: of a module of device {}, in a stream of another", function.name, function.device);
            return Err(CUresult::CUDA_ERROR_INVALID_HANDLE);
        }
        if shared_bytes > 0 {
            return unsupported(format_args!(
                "dynamic shared memory ({} wants {shared_bytes} bytes)",
                function.name
            ));
        }
        check_geometry(function.name, grid, block)?;
        let device = stream.device;
        let mut values = Values::read(&function, parameters, device)?;
        let mut pauses = Pauses::of_thread(LAUNCHES.fetch_add(1, Ordering::Relaxed));
        stream.submit(function.name, move || {
            if device.check().is_ok() {
                let geometry = [grid, block].concat();
                let blocks: u64 = grid.iter().map(|&size| u64::from(size)).product();
                let mut pointers = values.pointers();
                let share = blocks.div_ceil(SHARES);
                for index in pauses.order(blocks.div_ceil(share)) {
                    // SAFETY: `shim.h` unpacks as many values, of these sizes, as were read.
                    unsafe {
                        (function.launch)(pointers.as_mut_ptr(), geometry.as_ptr(), index * share, share)
                    };
                }
            }
        });
        Ok(())
    })
}

fn check_geometry(name: &str, grid: [u32; 3], block: [u32; 3]) -> Outcome {
    let threads: u64 = block.iter().map(|&size| u64::from(size)).product();
    let fits = grid[0] <= i32::MAX as u32 && grid[1] <= 65535 && grid[2] <= 65535 && block[2] <= 64;
    if grid.contains(&0) || threads == 0 || threads > u64::from(device::MOST_THREADS_PER_BLOCK) || !fits {
        complain!("{name}: a grid of {grid:?} blocks of {block:?} threads is not possible");
        return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
    }
    Ok(())
}

/// The values of a kernel's parameters. Device pointers in them are those of the storage, which kernels can use.
struct Values(Vec<Vec<u64>>);

impl Values {
    fn read(function: &Function, parameters: *mut *mut c_void, device: &Device) -> Outcome<Self> {
        if parameters.is_null() && !function.parameter_bytes.is_empty() {
            return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
        }
        let read = |(index, &bytes): (usize, &usize)| {
            let mut words = vec![0_u64; bytes.div_ceil(8)];
            // SAFETY: the caller gives a pointer to each parameter's value, and sizes are those of the kernel.
            unsafe {
                let value = parameters.add(index).read().cast::<u8>();
                value.copy_to_nonoverlapping(words.as_mut_ptr().cast(), bytes);
            }
            for word in words.iter_mut().filter(|word| memory::is_device_pointer(**word)) {
                if memory::device_of(*word) != device.ordinal {
                    complain!("{}: {word:#x} is not memory of device {}", function.name, device.ordinal);
                    device.break_with(CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
                }
                *word = memory::storage_of(*word);
            }
            words
        };
        Ok(Self(function.parameter_bytes.iter().enumerate().map(read).collect()))
    }

    fn pointers(&mut self) -> Vec<*mut c_void> {
        self.0.iter_mut().map(|words| words.as_mut_ptr().cast()).collect()
    }
}
