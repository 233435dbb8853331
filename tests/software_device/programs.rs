//! Programs find the software device where they would find a GPU, and it says what it is.

use crate::process::{alone, finish};
use crate::software_device::{DRIVER, NVRTC, SoftwareDevice};

#[test]
fn esync_info_shows_that_there_is_no_gpu() {
    let Some(device) = SoftwareDevice::with_libraries(&[DRIVER, NVRTC]) else { return };
    let device = device.set("SOFTWARE_CUDA_DEVICES", 3).set("CUDA_VISIBLE_DEVICES", "2,0");
    let mut command = alone(env!("CARGO_BIN_EXE_esync"));
    let finished = finish(device.apply(command.arg("info")), 60).expect(0);
    assert_eq!(finished.lines_with("software device (no GPU)"), 2, "{}", finished.stdout);
    assert_eq!(finished.lines_with("NCCL not found"), 1, "{}", finished.stdout);
}
