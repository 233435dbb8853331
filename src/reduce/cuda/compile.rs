//! From source to what a driver loads, by NVRTC. No GPU is needed for it.

use super::Module;
use crate::device::parts;
use crate::error::{Error, Result};
use cudarc::nvrtc::{result, sys};
use std::ffi::{CStr, CString};
use std::fmt;
use std::sync::OnceLock;

/// What to compile for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// The compute capability, as NVRTC writes it: 90 is 9.0.
    pub architecture: u32,
    /// Machine code of that architecture, or else PTX, from which the driver makes that of a newer one.
    pub is_machine_code: bool,
}

impl Target {
    /// For a GPU of this compute capability, by the NVRTC that is installed.
    ///
    /// # Errors
    /// `Environment` if there is no NVRTC, or if it no longer knows so old a GPU.
    pub fn for_capability(capability: (u32, u32)) -> Result<Target> {
        let part = parts::nvrtc()?;
        let supported = supported_architectures()?;
        let wanted = capability.0 * 10 + capability.1;
        Self::choose(wanted, &supported).ok_or_else(|| {
            let oldest = supported.iter().min().copied().unwrap_or_default();
            Error::Environment(format!(
                "NVRTC {} does not compile for this GPU (sm_{wanted}): sm_{oldest} is the oldest that it knows; use an \
                 older NVRTC, or --device cpu",
                part.version
            ))
        })
    }

    /// Machine code if NVRTC knows the architecture, else PTX of the newest before it.
    fn choose(wanted: u32, supported: &[u32]) -> Option<Target> {
        let architecture = supported.iter().copied().filter(|known| *known <= wanted).max()?;
        Some(Target { architecture, is_machine_code: architecture == wanted })
    }
}

/// As in NVRTC's option: `sm_90`, or `compute_90` for PTX.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.is_machine_code { "sm" } else { "compute" };
        write!(f, "{kind}_{}", self.architecture)
    }
}

/// The options of every compilation. No multiplication is fused with an addition, so that results are the host's.
pub(super) fn options(target: Target) -> [String; 3] {
    [format!("--gpu-architecture={target}"), "--fmad=false".into(), "--std=c++17".into()]
}

/// NVRTC opens a second library, of its built-in declarations, by its name only, and would look for it in the system's folders and in
/// LD_LIBRARY_PATH: it is opened here first, where NVRTC itself was found.
fn open_builtins() -> Result<()> {
    static OPENED: OnceLock<()> = OnceLock::new();
    let part = parts::nvrtc()?;
    OPENED.get_or_init(|| {
        let Some(path) = part.path.as_deref().and_then(|path| path.canonicalize().ok()) else { return };
        let name = format!("libnvrtc-builtins.so.{}", part.version);
        let Ok(path) = CString::new(path.with_file_name(name).into_os_string().into_encoded_bytes()) else {
            return;
        };
        // If it is not there, NVRTC looks elsewhere, and its log says what it did not find.
        // SAFETY: the library belongs to NVRTC, which opens it too; its initialisers do no more than any library's.
        unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW) };
    });
    Ok(())
}

/// Compiles a module: machine code (a cubin) or PTX, as the target says. Takes a few tenths of a second.
///
/// # Errors
/// `Environment` if there is no NVRTC; `Internal` with NVRTC's log if it refuses the source.
pub fn compile(module: Module, target: Target) -> Result<Vec<u8>> {
    open_builtins()?;
    compile_source(&module.name(), &module.source()?, target)
}

fn compile_source(name: &str, source: &str, target: Target) -> Result<Vec<u8>> {
    let text = |text: String| {
        CString::new(text)
            .map_err(|_| Error::Internal(format!("the source of kernels `{name}` holds a zero")))
    };
    let (source, file) = (text(source.into())?, text(format!("{name}.cu"))?);
    let failed = |what: &str, error: result::NvrtcError| {
        Error::Environment(format!("NVRTC could not {what} kernels `{name}` for {target}: {error}"))
    };
    let program = result::create_program(&source, Some(&file)).map_err(|error| failed("begin", error))?;
    let program = Program(program);
    let options = options(target);
    // SAFETY: the program was created and is not destroyed before the end of this function; so for all calls below.
    if let Err(error) = unsafe { result::compile_program(program.0, &options) } {
        // SAFETY: as above.
        let log = unsafe { result::get_program_log(program.0) }.unwrap_or_default();
        let log =
            CStr::from_bytes_until_nul(bytemuck::cast_slice(&log)).unwrap_or_default().to_string_lossy();
        return Err(Error::Internal(format!(
            "NVRTC did not compile kernels `{name}` with {}: {error}\n{}",
            options.join(" "),
            log.trim()
        )));
    }
    if !target.is_machine_code {
        // SAFETY: as above.
        let ptx = unsafe { result::get_ptx(program.0) }.map_err(|error| failed("write PTX of", error))?;
        return Ok(ptx.into_iter().map(|byte| byte as u8).collect());
    }
    let mut bytes = 0;
    // SAFETY: as above; one number is written.
    let size = unsafe { sys::nvrtcGetCUBINSize(program.0, &mut bytes) };
    size.result().map_err(|error| failed("write machine code of", error))?;
    let mut image = vec![0u8; bytes];
    // SAFETY: as above; the image is as long as NVRTC just said.
    let written = unsafe { sys::nvrtcGetCUBIN(program.0, image.as_mut_ptr().cast()) };
    written.result().map_err(|error| failed("write machine code of", error))?;
    Ok(image)
}

/// Destroys the program at the end.
struct Program(sys::nvrtcProgram);

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: created by `create_program`, and destroyed nowhere else. There is nothing to do about a refusal.
        let _ = unsafe { result::destroy_program(self.0) };
    }
}

/// The architectures that the installed NVRTC knows: 75 is `sm_75`.
///
/// # Errors
/// `Environment` if there is no NVRTC.
pub fn supported_architectures() -> Result<Vec<u32>> {
    parts::nvrtc()?;
    let failed = |error: result::NvrtcError| {
        Error::Environment(format!("NVRTC does not say what it compiles for: {error}"))
    };
    let mut count = 0;
    // SAFETY: one number is written.
    unsafe { sys::nvrtcGetNumSupportedArchs(&mut count) }.result().map_err(failed)?;
    let mut architectures = vec![0i32; usize::try_from(count).unwrap_or_default()];
    // SAFETY: the array is as long as NVRTC just said.
    unsafe { sys::nvrtcGetSupportedArchs(architectures.as_mut_ptr()) }.result().map_err(failed)?;
    Ok(architectures.into_iter().filter_map(|known| u32::try_from(known).ok()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machine_code_where_nvrtc_knows_the_gpu_and_ptx_for_a_newer_one() {
        let known = [75, 80, 86, 90, 100, 120];
        let chosen = |wanted| Target::choose(wanted, &known).map(|target| target.to_string());
        assert_eq!(chosen(75).as_deref(), Some("sm_75"));
        assert_eq!(chosen(90).as_deref(), Some("sm_90"));
        assert_eq!(chosen(89).as_deref(), Some("compute_86"));
        assert_eq!(chosen(130).as_deref(), Some("compute_120"));
        assert_eq!(chosen(70), None);
        assert_eq!(Target::choose(90, &[]), None);
    }
}
