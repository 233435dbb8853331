//! The kernels on the software device, in its streams and with its NVRTC: what is around them is the same as on a GPU.

use crate::software_device::{DRIVER, NVRTC, SoftwareDevice};
use esync::bench::kernels::{GpuMachine, bandwidth, check};
use esync::device::Gpu;
use esync::reduce::ElementType;
use esync::reduce::cuda::{Kernels, Module};
use std::path::PathBuf;
use std::sync::Arc;

fn device() -> Option<SoftwareDevice> {
    SoftwareDevice::with_libraries(&[DRIVER, NVRTC])
}

fn kernels() -> Arc<Kernels> {
    Kernels::load(&Gpu::open(0).unwrap()).unwrap()
}

#[test]
fn every_kernel_is_right_in_a_stream() {
    let Some(device) = device() else { return };
    device.delays(1, 50).run("device::every_kernel_is_right_in_a_stream", || {
        let machine = GpuMachine::new(&kernels()).unwrap();
        let checked = check(&machine, &[0, 1, 7, 16, 257, 1030]).unwrap_or_else(|error| panic!("{error}"));
        assert!(checked.iter().all(|checked| checked.starts > 0));
    });
}

#[test]
fn every_kernel_is_timed_beside_a_copy() {
    let Some(device) = device() else { return };
    device.run("device::every_kernel_is_timed_beside_a_copy", || {
        let machine = GpuMachine::new(&kernels()).unwrap();
        let rows = bandwidth(&machine, 64 << 10).unwrap();
        assert_eq!((rows[0].kernel.as_str(), rows[0].share_of_copy), ("copy", 1.0));
        assert!(rows.len() > 20, "{rows:?}");
        for row in &rows {
            assert!(row.bytes > 0 && row.seconds > 0.0 && row.share_of_copy > 0.0, "{row:?}");
        }
    });
}

/// The files of compiled kernels.
fn cached() -> Vec<PathBuf> {
    let folder = PathBuf::from(std::env::var_os("XDG_CACHE_HOME").unwrap()).join("esync/kernels");
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    entries.map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn compiled_kernels_are_kept_and_damaged_ones_made_again() {
    let Some(device) = device() else { return };
    device.run("device::compiled_kernels_are_kept_and_damaged_ones_made_again", || {
        let module = Module::Reduce(ElementType::F32);
        assert_eq!(cached().len(), 0);
        kernels().prepare(module).unwrap();
        let [file] = &cached()[..] else { panic!("one file, not {:?}", cached()) };
        let name = file.file_name().unwrap().to_string_lossy();
        assert!(name.starts_with("reduce-f32-sm_"), "{name}");
        let whole = std::fs::read(file).unwrap();

        // Another process, or the same later, takes what is there.
        let times = || file.metadata().unwrap().modified().unwrap();
        let written = times();
        kernels().prepare(module).unwrap();
        assert_eq!(times(), written);

        let mut damaged = whole.clone();
        let last = damaged.len() - 1;
        damaged[last] ^= 1;
        std::fs::write(file, damaged).unwrap();
        kernels().prepare(module).unwrap();
        assert_eq!(std::fs::read(file).unwrap().len(), whole.len());
        assert_ne!(times(), written);

        // All at once.
        std::fs::remove_file(file).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| kernels().prepare(module).unwrap());
            }
        });
        assert_eq!(cached().len(), 1);
    });
}
