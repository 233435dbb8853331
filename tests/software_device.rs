//! The software device is what the tests of the feature `cuda` stand on: here it is tested itself, through `cudarc`.

#[path = "software_device/driver.rs"]
mod driver;
#[path = "software_device/kernels.rs"]
mod kernels;
#[path = "software_device/nccl.rs"]
mod nccl;
#[path = "common/process.rs"]
mod process;
#[path = "software_device/programs.rs"]
mod programs;
#[path = "common/software_device.rs"]
mod software_device;
