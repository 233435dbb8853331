//! What is missing of CUDA, or too old, is one clear error each.

#[path = "common/process.rs"]
mod process;
#[path = "common/software_device.rs"]
mod software_device;

use esync::device::{Device, DeviceChoice, Gpu, parts};
use esync::reduce::cuda::Kernels;
use esync::transport::nccl::Nccl;
use esync::transport::threads;
use software_device::{DRIVER, NCCL, NVRTC, SoftwareDevice};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

const ALL: [&str; 3] = [DRIVER, NVRTC, NCCL];

/// Runs `body` in a process where CUDA is what `device` says.
fn with(device: Option<SoftwareDevice>, name: &str, body: impl FnOnce()) {
    if let Some(device) = device {
        device.run(name, body);
    }
}

/// The error of opening a GPU as `--device cuda` does, which has to be of the environment.
fn refusal() -> String {
    let error = Device::open(DeviceChoice::Cuda(None), 0, || Ok(())).unwrap_err();
    assert_eq!(error.exit_code(), 3, "{error}");
    // What cannot be used is no reason for `auto` to fail.
    assert!(!Device::open(DeviceChoice::Auto, 0, || Ok(())).unwrap().is_gpu());
    error.to_string()
}

#[test]
fn no_driver() {
    // As on this machine, unless it has one.
    with(SoftwareDevice::with_libraries(&[NVRTC, NCCL]), "no_driver", || {
        if parts::driver().is_ok() {
            return println!("skipped: this machine has a CUDA driver");
        }
        let text = refusal();
        assert!(text.starts_with("CUDA driver not found (libcuda.so)"), "{text}");
        assert!(text.contains("--device cpu"), "{text}");
        assert!(parts::nvrtc().is_ok() && parts::nccl().is_ok());
    });
}

#[test]
fn no_device() {
    let device = SoftwareDevice::with_libraries(&ALL).map(|device| device.set("SOFTWARE_CUDA_DEVICES", 0));
    with(device, "no_device", || assert!(refusal().contains("shows no GPU")));
}

#[test]
fn no_such_device() {
    with(SoftwareDevice::with_libraries(&ALL), "no_such_device", || {
        let error = Gpu::open(2).unwrap_err();
        assert_eq!(error.exit_code(), 3);
        assert!(error.to_string().contains("no GPU 2: this process sees 2"), "{error}");
    });
}

#[test]
fn an_old_driver() {
    let device = SoftwareDevice::with_libraries(&ALL);
    with(device.map(|device| device.set("SOFTWARE_CUDA_DRIVER_VERSION", "11.8")), "an_old_driver", || {
        let text = refusal();
        assert!(text.contains("driver is too old: it knows CUDA 11.8"), "{text}");
    });
}

#[test]
fn an_old_card() {
    let device = SoftwareDevice::with_libraries(&ALL);
    with(device.map(|device| device.set("SOFTWARE_CUDA_CAPABILITY", "7.0")), "an_old_card", || {
        let text = refusal();
        assert!(text.contains("is too old: its compute capability is 7.0, and 7.5"), "{text}");
    });
}

#[test]
fn no_nvrtc() {
    with(SoftwareDevice::with_libraries(&[DRIVER, NCCL]), "no_nvrtc", || {
        if parts::nvrtc().is_ok() {
            return println!("skipped: this machine has NVRTC");
        }
        let text = refusal();
        assert!(text.starts_with("NVRTC not found (libnvrtc.so)"), "{text}");
        let kernels = Kernels::load(&Gpu::open(0).unwrap()).unwrap_err();
        assert_eq!(kernels.to_string(), text);
    });
}

#[test]
fn an_old_nvrtc() {
    let device = SoftwareDevice::with_libraries(&ALL);
    with(device.map(|device| device.set("SOFTWARE_CUDA_NVRTC_VERSION", "11.2")), "an_old_nvrtc", || {
        let text = refusal();
        assert!(text.contains("NVRTC 11.2 is too old"), "{text}");
    });
}

#[test]
fn an_nvrtc_that_is_newer_than_the_driver() {
    let device = SoftwareDevice::with_libraries(&ALL);
    let device = device.map(|device| device.set("SOFTWARE_CUDA_DRIVER_VERSION", "12.4"));
    with(device, "an_nvrtc_that_is_newer_than_the_driver", || {
        let text = refusal();
        assert!(text.contains("driver is too old for NVRTC 13.0: it knows CUDA 12.4"), "{text}");
    });
}

/// The error of starting NCCL on one rank.
fn nccl_refusal() -> String {
    let transport = Arc::new(threads::group(1).remove(0));
    let error = Nccl::connect(transport, Gpu::open(0).unwrap(), Duration::from_secs(5)).unwrap_err();
    assert_eq!(error.exit_code(), 3, "{error}");
    error.to_string()
}

#[test]
fn no_nccl() {
    with(SoftwareDevice::with_libraries(&[DRIVER, NVRTC]), "no_nccl", || {
        if parts::nccl().is_ok() {
            return println!("skipped: this machine has NCCL");
        }
        let text = nccl_refusal();
        assert!(text.contains("rank 0") && text.contains("NCCL not found (libnccl.so)"), "{text}");
    });
}

#[test]
fn an_old_nccl() {
    let device = SoftwareDevice::with_libraries(&ALL);
    with(device.map(|device| device.set("SOFTWARE_CUDA_NCCL_VERSION", "2.8.4")), "an_old_nccl", || {
        let text = nccl_refusal();
        assert!(text.contains("NCCL 2.8.4 is too old"), "{text}");
    });
}

#[test]
fn info_names_every_part_and_what_is_missing() {
    let Some(device) = SoftwareDevice::with_libraries(&[DRIVER, NVRTC]) else { return };
    let mut command = Command::new(env!("CARGO_BIN_EXE_esync"));
    let finished = process::finish(device.apply(&mut command).arg("info"), 60).expect(0);
    let line = |name: &str| finished.stdout.lines().find(|line| line.starts_with(name)).unwrap_or_default();
    assert!(line("feature cuda").contains("yes"), "{}", finished.stdout);
    assert!(line("CUDA driver").contains("for CUDA 13.0"), "{}", finished.stdout);
    assert!(line("NVRTC").contains("13.0"), "{}", finished.stdout);
    assert!(line("NCCL").contains("NCCL not found (libnccl.so)"), "{}", finished.stdout);
    assert!(line("GPU").contains("software device (no GPU), sm_90"), "{}", finished.stdout);
}
