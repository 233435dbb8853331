//! What of CUDA is there: driver, NVRTC, NCCL. Each that is missing or too old is one clear error.
//!
//! The bindings panic when they are used without their library, so everything that uses them asks here first.

use crate::error::{Error, Result};
use cudarc::driver::{result::DriverError, sys as driver_sys};
use cudarc::{nccl::sys as nccl_sys, nvrtc::sys as nvrtc_sys};
use std::fmt;
use std::path::PathBuf;
use std::sync::OnceLock;

/// A version. NVRTC and the driver's have no patch number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// The first number.
    pub major: u32,
    /// The second number.
    pub minor: u32,
    /// The third number, of NCCL only.
    pub patch: u32,
}

/// A library that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Its version; the driver's is the newest CUDA that it knows.
    pub version: Version,
    /// The file that was loaded, if the system tells.
    pub path: Option<PathBuf>,
}

/// What is needed at least. Drivers and NVRTC of CUDA 12.0 and newer have every function that is called here, and NCCL 2.18
/// has communicators that do not block.
const OLDEST_CUDA: Version = Version::new(12, 0, 0);
const OLDEST_NCCL: Version = Version::new(2, 18, 0);

/// From this version on NCCL can put several ranks on one GPU, if [`MULTI_RANK_VARIABLE`] is 1.
pub const MULTI_RANK_NCCL: Version = Version::new(2, 30, 0);

/// The environment variable by which NCCL allows several ranks on one GPU.
pub const MULTI_RANK_VARIABLE: &str = "NCCL_MULTI_RANK_GPU_ENABLE";

impl Version {
    /// A version of three numbers.
    pub const fn new(major: u32, minor: u32, patch: u32) -> Self {
        Version { major, minor, patch }
    }

    /// As `cuDriverGetVersion` writes it: 13000 is 13.0.
    fn of_cuda(number: i32) -> Self {
        let number = number.unsigned_abs();
        Version::new(number / 1000, number % 1000 / 10, 0)
    }

    /// As `ncclGetVersion` writes it: 22809 is 2.28.9; before 2.9 it was 2804 for 2.8.4.
    fn of_nccl(number: i32) -> Self {
        let number = number.unsigned_abs();
        let unit = if number < 10_000 { 1000 } else { 10_000 };
        Version::new(number / unit, number % unit / 100, number % 100)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)?;
        if self.patch > 0 { write!(f, ".{}", self.patch) } else { Ok(()) }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.version)?;
        match &self.path {
            Some(path) => write!(f, ", {}", path.display()),
            None => Ok(()),
        }
    }
}

/// The driver.
///
/// # Errors
/// `Environment` if it is missing, too old, or does not start.
pub fn driver() -> Result<Part> {
    static FOUND: OnceLock<Result<Part>> = OnceLock::new();
    FOUND.get_or_init(find_driver).clone()
}

fn find_driver() -> Result<Part> {
    // SAFETY: opening the driver's library runs its initialisers, which do no more than any program's start with it.
    if !unsafe { driver_sys::is_culib_present() } {
        return Err(Error::Environment(
            "CUDA driver not found (libcuda.so): install NVIDIA's driver on this host, or use --device cpu"
                .into(),
        ));
    }
    let mut number = 0;
    // SAFETY: writes one number; every driver has this function, and it may be called before all others.
    let result = unsafe { driver_sys::cuDriverGetVersion(&mut number) };
    result.result().map_err(|error| driver_error("asking the CUDA driver for its version", error))?;
    let version = Version::of_cuda(number);
    if version < OLDEST_CUDA {
        return Err(Error::Environment(format!(
            "the CUDA driver is too old: it knows CUDA {version}, and CUDA {OLDEST_CUDA} or newer is needed (driver 525 or \
             newer): update NVIDIA's driver, or use --device cpu"
        )));
    }
    Ok(Part { version, path: loaded_from("libcuda.so") })
}

/// How many GPUs the driver shows, at least one.
///
/// # Errors
/// As [`driver`], and `Environment` if there is no GPU or the driver does not start.
pub fn device_count() -> Result<usize> {
    driver()?;
    let none = "the CUDA driver is there but shows no GPU: look at `nvidia-smi` and CUDA_VISIBLE_DEVICES, give the \
                container its GPUs, or use --device cpu";
    let count = cudarc::driver::CudaContext::device_count().map_err(|error| match error.0 {
        driver_sys::CUresult::CUDA_ERROR_NO_DEVICE => Error::Environment(none.into()),
        driver_sys::CUresult::CUDA_ERROR_STUB_LIBRARY => Error::Environment(
            "the libcuda.so that was loaded is the stub for linking: take its folder off LD_LIBRARY_PATH, or install \
             NVIDIA's driver"
                .into(),
        ),
        _ => driver_error("starting the CUDA driver", error),
    })?;
    if count < 1 { Err(Error::Environment(none.into())) } else { Ok(count as usize) }
}

/// The compiler of kernels.
///
/// # Errors
/// `Environment` if it is missing, too old, or newer than the driver.
pub fn nvrtc() -> Result<Part> {
    static FOUND: OnceLock<Result<Part>> = OnceLock::new();
    let part = FOUND.get_or_init(find_nvrtc).clone()?;
    // Without a driver, that is what the caller hears of when it opens a GPU.
    let Ok(driver) = driver() else { return Ok(part) };
    if part.version.major > driver.version.major {
        return Err(Error::Environment(format!(
            "the CUDA driver is too old for NVRTC {}: it knows CUDA {}. Update NVIDIA's driver, or install NVRTC {} \
             (package nvidia-cuda-nvrtc-cu{})",
            part.version, driver.version, driver.version.major, driver.version.major
        )));
    }
    Ok(part)
}

fn find_nvrtc() -> Result<Part> {
    // SAFETY: as in `find_driver`.
    if !unsafe { nvrtc_sys::is_culib_present() } {
        return Err(Error::Environment(
            "NVRTC not found (libnvrtc.so): run `launch/bootstrap --cuda`, or put the folder of libnvrtc.so of a CUDA \
             toolkit on LD_LIBRARY_PATH"
                .into(),
        ));
    }
    let (mut major, mut minor) = (0, 0);
    // SAFETY: writes two numbers; every NVRTC has this function.
    let result = unsafe { nvrtc_sys::nvrtcVersion(&mut major, &mut minor) };
    result
        .result()
        .map_err(|error| Error::Environment(format!("asking NVRTC for its version failed: {error}")))?;
    let version = Version::new(major.unsigned_abs(), minor.unsigned_abs(), 0);
    if version < OLDEST_CUDA {
        return Err(Error::Environment(format!(
            "NVRTC {version} is too old: {OLDEST_CUDA} or newer is needed; run `launch/bootstrap --cuda`"
        )));
    }
    Ok(Part { version, path: loaded_from("libnvrtc.so") })
}

/// The communication library of the transport `nccl`.
///
/// # Errors
/// `Environment` if it is missing or too old.
pub fn nccl() -> Result<Part> {
    static FOUND: OnceLock<Result<Part>> = OnceLock::new();
    FOUND.get_or_init(find_nccl).clone()
}

fn find_nccl() -> Result<Part> {
    // SAFETY: as in `find_driver`.
    if !unsafe { nccl_sys::is_culib_present() } {
        return Err(Error::Environment(
            "NCCL not found (libnccl.so): run `launch/bootstrap --cuda`, put the folder of libnccl.so on LD_LIBRARY_PATH, \
             or use --transport mpi or threads"
                .into(),
        ));
    }
    let number = cudarc::nccl::result::get_nccl_version()
        .map_err(|error| Error::Environment(format!("asking NCCL for its version failed: {:?}", error.0)))?;
    let version = Version::of_nccl(number);
    if version < OLDEST_NCCL {
        return Err(Error::Environment(format!(
            "NCCL {version} is too old: {OLDEST_NCCL} or newer is needed; run `launch/bootstrap --cuda`, or use --transport \
             mpi or threads"
        )));
    }
    Ok(Part { version, path: loaded_from("libnccl.so") })
}

/// What went wrong in a call of the driver, in words.
pub(crate) fn driver_error(what: impl fmt::Display, error: DriverError) -> Error {
    let text = |found: Result<&std::ffi::CStr, DriverError>| {
        found.map(|text| text.to_string_lossy().into_owned()).unwrap_or_else(|_| format!("{:?}", error.0))
    };
    let (name, meaning) = (text(error.error_name()), text(error.error_string()));
    Error::Environment(format!("{what} failed: {meaning} ({name})"))
}

/// The file behind a loaded library.
fn loaded_from(name: &str) -> Option<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let paths = maps.lines().filter_map(|line| line.find('/').map(|start| &line[start..]));
    let is_it = |path: &&str| path.rsplit('/').next().is_some_and(|file| file.starts_with(name));
    paths.filter(is_it).map(PathBuf::from).next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_the_libraries_write_them() {
        assert_eq!(Version::of_cuda(13000).to_string(), "13.0");
        assert_eq!(Version::of_cuda(12080).to_string(), "12.8");
        assert_eq!(Version::of_nccl(22809).to_string(), "2.28.9");
        assert_eq!(Version::of_nccl(23000).to_string(), "2.30");
        assert_eq!(Version::of_nccl(2804).to_string(), "2.8.4");
        assert!(Version::of_nccl(2804) < OLDEST_NCCL && Version::of_nccl(22809) > OLDEST_NCCL);
        assert!(Version::of_nccl(22809) < MULTI_RANK_NCCL && Version::of_nccl(23002) >= MULTI_RANK_NCCL);
    }
}
