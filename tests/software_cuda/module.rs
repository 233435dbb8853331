//! Images of compiled kernels: shared objects of the host, raw as a "cubin", or as text where PTX is asked for.

use crate::api::{CUresult, Outcome, complain};
use crate::settings::settings;
use std::ffi::{CStr, CString, c_void};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::sync::Arc;

/// The first line of what stands for PTX.
const TEXT_HEADER: &str = "// kernels for the software device (no GPU), not PTX\n";
/// What a compiled file says of the architecture it was compiled for.
pub(crate) const ARCHITECTURE: &str = "software_cuda_architecture";

/// Where `shim.h` puts a kernel: arguments, geometry, first block, number of blocks.
type Launch = unsafe extern "C" fn(*mut *mut c_void, *const u32, u64, u64);

#[derive(Debug)]
pub(crate) struct Module {
    library: *mut c_void,
    /// The device in whose context it was loaded.
    device: usize,
}

// SAFETY: the library is never closed, and looking up its symbols is allowed in every thread.
unsafe impl Send for Module {}
// SAFETY: the same.
unsafe impl Sync for Module {}

#[derive(Debug)]
pub(crate) struct Function {
    pub(crate) name: &'static str,
    pub(crate) device: usize,
    pub(crate) launch: Launch,
    pub(crate) parameter_bytes: Vec<usize>,
}

/// The text that stands for PTX.
pub(crate) fn as_text(library: &[u8]) -> Vec<u8> {
    let mut text = TEXT_HEADER.as_bytes().to_vec();
    for byte in library {
        write!(text, "{byte:02x}").expect("memory can be written to");
    }
    text.push(0);
    text
}

/// The compiled file in an image. `Err` is the code for an image that is none.
///
/// # Safety
///
/// The image is a text that ends with a zero, or a complete ELF file.
unsafe fn library_of(image: *const u8) -> Outcome<Vec<u8>> {
    const ELF: [u8; 4] = *b"\x7fELF";
    // SAFETY: neither kind of image is shorter, unless its zero comes first.
    let is_elf = ELF.iter().enumerate().all(|(index, &byte)| unsafe { image.add(index).read() } == byte);
    if is_elf {
        // SAFETY: the header of an ELF file has 64 bytes; its section headers are the file's end.
        let header = unsafe { std::slice::from_raw_parts(image, 64) };
        let number = |at: usize, bytes: usize| {
            header[at..at + bytes].iter().rev().fold(0_usize, |number, &byte| number << 8 | usize::from(byte))
        };
        let bytes = number(0x28, 8) + number(0x3a, 2) * number(0x3c, 2);
        // SAFETY: as many bytes has the file.
        return Ok(unsafe { std::slice::from_raw_parts(image, bytes) }.to_vec());
    }
    // SAFETY: it is a text then.
    let text = unsafe { CStr::from_ptr(image.cast()) }.to_bytes();
    let digits = text.strip_prefix(TEXT_HEADER.as_bytes()).ok_or(CUresult::CUDA_ERROR_INVALID_PTX)?;
    let value = |digit: u8| (digit as char).to_digit(16).map(|digit| digit as u8);
    let byte = |pair: &[u8]| match *pair {
        [high, low] => Some(value(high)? << 4 | value(low)?),
        _ => None,
    };
    let library: Option<Vec<u8>> = digits.chunks(2).map(byte).collect();
    library.filter(|library| library.starts_with(&ELF)).ok_or(CUresult::CUDA_ERROR_INVALID_PTX)
}

impl Module {
    /// # Safety
    ///
    /// As of [`library_of`]; an image that claims to be a compiled file is run as one.
    pub(crate) unsafe fn load(image: *const u8, device: usize) -> Outcome<Arc<Self>> {
        if image.is_null() {
            return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
        }
        // SAFETY: the caller's promise.
        let library =
            unsafe { library_of(image) }.inspect_err(|_| complain!("an image is not of this device"))?;
        let file = rustix::fs::memfd_create("kernels", rustix::fs::MemfdFlags::CLOEXEC);
        let mut file = std::fs::File::from(file.map_err(|_| CUresult::CUDA_ERROR_OPERATING_SYSTEM)?);
        file.write_all(&library).map_err(|_| CUresult::CUDA_ERROR_OUT_OF_MEMORY)?;
        let path = CString::new(format!("/proc/self/fd/{}", file.as_raw_fd())).expect("no zeros");
        // SAFETY: the library has no initialisers but those of the kernels' constants.
        let library = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        if library.is_null() {
            // SAFETY: after a failure, dlerror gives a text.
            let why = unsafe { CStr::from_ptr(libc::dlerror()) };
            complain!("an image cannot be loaded: {why:?}");
            return Err(CUresult::CUDA_ERROR_INVALID_IMAGE);
        }
        // Its file stays open with it: another file with the same number would pass for this one.
        std::mem::forget(file);
        let module = Self { library, device };
        let capability = settings().capability;
        let compiled_for = match module.symbol(ARCHITECTURE) {
            // SAFETY: the compiler was told to put a number there.
            Some(symbol) => unsafe { symbol.cast::<i32>().read() },
            None => return Err(CUresult::CUDA_ERROR_INVALID_IMAGE),
        };
        if compiled_for > capability.major * 10 + capability.minor {
            complain!(
                "kernels for sm_{compiled_for} on a device of capability {}.{}",
                capability.major,
                capability.minor
            );
            return Err(CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU);
        }
        Ok(Arc::new(module))
    }

    fn symbol(&self, name: &str) -> Option<*mut c_void> {
        let name = CString::new(name).ok()?;
        // SAFETY: the library is open.
        let symbol = unsafe { libc::dlsym(self.library, name.as_ptr()) };
        (!symbol.is_null()).then_some(symbol)
    }

    pub(crate) fn function(&self, name: &str) -> Outcome<Function> {
        let launch = self.symbol(&format!("launch_{name}"));
        let parameters = self.symbol(&format!("parameters_{name}"));
        let (Some(launch), Some(parameters)) = (launch, parameters) else {
            complain!("no kernel {name} in the module");
            return Err(CUresult::CUDA_ERROR_NOT_FOUND);
        };
        // SAFETY: `shim.h` makes these symbols: a function of this type, and a pointer to a number and as many sizes.
        let (launch, sizes) = unsafe {
            let sizes = parameters.cast::<*const u32>().read();
            let launch = std::mem::transmute::<*mut c_void, Launch>(launch);
            (launch, std::slice::from_raw_parts(sizes.add(1), sizes.read() as usize))
        };
        let parameter_bytes = sizes.iter().map(|&bytes| bytes as usize).collect();
        // Named in explanations of faults, which outlive everything.
        Ok(Function { name: String::leak(name.to_owned()), device: self.device, launch, parameter_bytes })
    }
}
