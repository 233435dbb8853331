//! Which device a rank's vectors lie on, and what of CUDA this machine has.
//!
//! A rank asks for a device with a [`DeviceChoice`], as `--device` has it, and gets a [`Device`]. The rest of this module
//! exists with the feature `cuda`: `parts` says which libraries are there, `Gpu` is one card, `DeviceBuffer` is memory on
//! it. Driver, NVRTC and NCCL are loaded when they are first asked for, so that a program with the feature starts anywhere.

#[cfg(feature = "cuda")]
mod buffer;
mod choice;
#[cfg(feature = "cuda")]
mod gpu;
#[cfg(feature = "cuda")]
pub mod parts;
#[cfg(feature = "cuda")]
mod pinned;
#[cfg(feature = "cuda")]
mod waiting;

#[cfg(feature = "cuda")]
pub use buffer::{DeviceBuffer, DeviceSlice, DeviceSliceMut};
pub use choice::{Device, DeviceChoice, DeviceChoices};
#[cfg(feature = "cuda")]
pub use gpu::{Gpu, OLDEST_COMPUTE_CAPABILITY};
#[cfg(feature = "cuda")]
pub use pinned::PinnedBuffer;
#[cfg(feature = "cuda")]
pub(crate) use waiting::{gpu_stalled, is_complete, wait_for_event};
