//! The kernels of a GPU, compiled by the host's C++ compiler and run here with the geometry that they would have there: each
//! kernel's twin. It has `tests/software_cuda/shim.h` for what C++ lacks.

use esync::bench::kernels::{Machine, Memory};
use esync::reduce::cuda::{Call, Launch, Module};
use esync::{Error, Result};
use std::collections::HashMap;
use std::ffi::{CStr, CString, c_uint, c_ulonglong, c_void};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

/// `launch_<name>` of the shim.
type Entry = unsafe extern "C" fn(*mut *mut c_void, *const c_uint, c_ulonglong, c_ulonglong);

/// The compiler that the shim is written for, if this host has one.
pub(crate) fn compiler() -> Option<PathBuf> {
    let name = std::env::var_os("CXX").unwrap_or_else(|| "c++".into());
    let runs = Command::new(&name).arg("--version").output().is_ok_and(|output| output.status.success());
    runs.then(|| name.into())
}

/// Twins, or a sentence for whoever runs the tests without a compiler.
pub(crate) fn start(multiprocessors: u32) -> Option<Twin> {
    let compiler = compiler();
    if compiler.is_none() {
        eprintln!("skipped: kernels have no twins without a C++ compiler (c++, or CXX)");
    }
    Some(Twin::new(compiler?, multiprocessors))
}

/// Starts twins.
pub(crate) struct Twin {
    compiler: PathBuf,
    /// What is done to every source first, to plant a fault.
    change: fn(String) -> String,
    multiprocessors: u32,
    /// Which blocks of a grid are run; all of them if there is no range.
    blocks: Mutex<Vec<Range<u64>>>,
    loaded: Mutex<HashMap<Module, usize>>,
}

impl Twin {
    /// A device of so many multiprocessors, which bound the grids.
    pub(crate) fn new(compiler: PathBuf, multiprocessors: u32) -> Self {
        Self::with_change(compiler, multiprocessors, |source| source)
    }

    /// The same with other sources.
    pub(crate) fn with_change(compiler: PathBuf, multiprocessors: u32, change: fn(String) -> String) -> Self {
        Twin {
            compiler,
            change,
            multiprocessors,
            blocks: Mutex::new(Vec::new()),
            loaded: Mutex::new(HashMap::new()),
        }
    }

    /// From now on only these blocks are run.
    pub(crate) fn only(&self, blocks: &[Range<u64>]) {
        *self.blocks.lock().unwrap() = blocks.to_vec();
    }

    /// The handle of a module's library.
    fn library(&self, module: Module) -> Result<usize> {
        let mut loaded = self.loaded.lock().unwrap();
        if let Some(handle) = loaded.get(&module) {
            return Ok(*handle);
        }
        let path = CString::new(self.compile(module)?.into_os_string().into_encoded_bytes()).unwrap();
        // SAFETY: a library that was just made of our own sources, whose initialisers do nothing.
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        if handle.is_null() {
            // SAFETY: `dlopen` just failed, so there is a text.
            let why = unsafe { CStr::from_ptr(libc::dlerror()) };
            return Err(Error::Environment(format!("a twin does not load: {}", why.to_string_lossy())));
        }
        loaded.insert(module, handle as usize);
        Ok(handle as usize)
    }

    /// Compiles a module, if that has not been done before.
    fn compile(&self, module: Module) -> Result<PathBuf> {
        let shim = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/software_cuda/shim.h");
        let mut source = (self.change)(module.source()?);
        for kernel in module.kernels() {
            source += &format!("SHIM_ENTRY({kernel})\n");
        }
        let text = std::fs::read_to_string(&shim).unwrap() + &source;
        let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("twins");
        std::fs::create_dir_all(&folder).unwrap();
        let library = folder.join(format!("{module}-{hash:016x}.so"));
        if library.exists() {
            return Ok(library);
        }
        let made = tempfile::tempdir_in(&folder).unwrap();
        let (file, out) = (made.path().join("twin.cpp"), made.path().join("twin.so"));
        std::fs::write(&file, &source).unwrap();
        let mut command = Command::new(&self.compiler);
        command.args(["-std=c++17", "-O1", "-fPIC", "-shared", "-w"]);
        command.args(["-fno-strict-aliasing", "-fwrapv", "-ffp-contract=off"]);
        if source.contains("__syncthreads") {
            command.arg("-DSHIM_FIBERS");
        }
        let output = command.arg("-include").arg(shim).arg(&file).arg("-o").arg(&out).output().unwrap();
        if !output.status.success() {
            let log = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(Error::Environment(format!("the twin of `{module}` does not compile:\n{log}")));
        }
        std::fs::rename(&out, &library).unwrap();
        Ok(library)
    }
}

impl Launch for Twin {
    type Stream = ();

    fn multiprocessors(&self) -> u32 {
        self.multiprocessors
    }

    unsafe fn launch(&self, _: &(), call: Call<'_>) -> Result<()> {
        let Call { module, kernel, geometry, arguments } = call;
        let name = CString::new(format!("launch_{kernel}")).unwrap();
        // SAFETY: the handle is of a library that is never closed.
        let entry = unsafe { libc::dlsym(self.library(module)? as *mut c_void, name.as_ptr()) };
        assert!(!entry.is_null(), "{kernel} of {module}");
        // SAFETY: the shim defines it so.
        let entry: Entry = unsafe { std::mem::transmute(entry) };
        let geometry = [geometry.blocks, 1, 1, geometry.threads, 1, 1];
        let mut ranges = self.blocks.lock().unwrap().clone();
        if ranges.is_empty() {
            ranges.push(0..u64::from(geometry[0]));
        }
        for blocks in ranges {
            let count = blocks.end - blocks.start;
            // SAFETY: the arguments are the kernel's, as the caller promised.
            unsafe { entry(arguments.as_mut_ptr(), geometry.as_ptr(), blocks.start, count) };
        }
        Ok(())
    }
}

impl Machine for Twin {
    type Memory = TwinMemory;

    fn stream(&self) -> &() {
        &()
    }

    fn allocate(&self, bytes: usize) -> Result<TwinMemory> {
        Ok(TwinMemory(vec![Line([0; 256]); bytes.div_ceil(256)]))
    }

    fn wait(&self) -> Result<()> {
        Ok(())
    }
}

#[derive(Clone, Copy, bytemuck::Zeroable, bytemuck::Pod)]
#[repr(C, align(256))]
struct Line([u8; 256]);

/// Memory of the host.
pub(crate) struct TwinMemory(Vec<Line>);

impl Memory for TwinMemory {
    fn address(&self) -> u64 {
        self.0.as_ptr() as u64
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        bytemuck::cast_slice_mut(&mut self.0)[..bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn read(&self, bytes: &mut [u8]) -> Result<()> {
        bytes.copy_from_slice(&bytemuck::cast_slice(&self.0)[..bytes.len()]);
        Ok(())
    }
}
