//! The reductions of this module's parent on a GPU.
//!
//! The sources are in `kernels/`, compiled by NVRTC for the GPU that is found when they are first used, and kept on the disk
//! (`~/.cache/esync/kernels`). [`Kernels`] holds them for one GPU; [`Launch`] has the functions that start them.
//!
//! No GPU is needed to compile them ([`compile()`]), and the host's compiler compiles the same sources too, which is how they
//! are tested without one: see `tests/kernels/`.

mod cache;
mod compile;
mod geometry;
mod launch;
mod module;

pub use compile::{Target, compile, supported_architectures};
pub use geometry::{Geometry, THREADS};
pub use launch::{
    AnchorStep, Call, DequantiseReduce, Launch, MOST_CONTRIBUTIONS, MOST_SOURCES, OuterUpdate, ParameterStep,
};
pub use module::Module;

use crate::device::{Gpu, parts};
use crate::error::{Error, Result};
use cache::Entry;
use cudarc::driver::sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
use cudarc::driver::{CudaFunction, CudaStream, result};
use cudarc::nvrtc::Ptx;
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// The kernels of one GPU. Each [`Module`] is compiled, or read from the disk, when one of its kernels is first started.
pub struct Kernels {
    gpu: Arc<Gpu>,
    target: Target,
    /// What machine code depends on besides source and target.
    versions: String,
    multiprocessors: u32,
    loaded: [OnceLock<Vec<CudaFunction>>; Module::COUNT],
    /// Held while a module is made, so that it is made once.
    making: Mutex<()>,
}

impl Kernels {
    /// The kernels for a GPU, none of them compiled yet.
    ///
    /// # Errors
    /// `Environment` if there is no NVRTC, or if it does not compile for this GPU.
    pub fn load(gpu: &Arc<Gpu>) -> Result<Arc<Kernels>> {
        let (driver, nvrtc) = (parts::driver()?, parts::nvrtc()?);
        let count = gpu
            .context()
            .attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)
            .map_err(|error| gpu.failed("asking for the multiprocessors of", error))?;
        Ok(Arc::new(Kernels {
            gpu: gpu.clone(),
            target: Target::for_capability(gpu.compute_capability())?,
            versions: format!("NVRTC {} driver {}", nvrtc.version, driver.version),
            multiprocessors: count.unsigned_abs(),
            loaded: [const { OnceLock::new() }; Module::COUNT],
            making: Mutex::new(()),
        }))
    }

    /// Whose kernels they are.
    pub fn gpu(&self) -> &Arc<Gpu> {
        &self.gpu
    }

    /// What they are compiled for.
    pub fn target(&self) -> Target {
        self.target
    }

    /// Compiles and loads a module, if that has not been done, so that the first start of its kernels does not wait.
    ///
    /// # Errors
    /// As [`Launch::launch`].
    pub fn prepare(&self, module: Module) -> Result<()> {
        self.functions(module).map(drop)
    }

    fn functions(&self, module: Module) -> Result<&[CudaFunction]> {
        let place = module.index().and_then(|index| self.loaded.get(index));
        let place = place.ok_or_else(|| Error::Usage(format!("there are no kernels `{module}`")))?;
        if let Some(functions) = place.get() {
            return Ok(functions);
        }
        // A panic while it was held has left nothing half done.
        let _making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(functions) = place.get() {
            return Ok(functions);
        }
        let functions = self.make(module)?;
        Ok(place.get_or_init(|| functions))
    }

    fn make(&self, module: Module) -> Result<Vec<CudaFunction>> {
        let (source, options) = (module.source()?, compile::options(self.target).join(" "));
        let entry = Entry::of(&format!("{module}-{}", self.target), &[&source, &options, &self.versions]);
        // A driver that refuses what is stored is as good a reason to compile as a file that is not there.
        if let Some(functions) = entry.load().and_then(|image| self.load_image(module, image).ok()) {
            return Ok(functions);
        }
        let image = compile(module, self.target)?;
        let functions = self.load_image(module, image.clone())?;
        entry.store(&image);
        Ok(functions)
    }

    fn load_image(&self, module: Module, mut image: Vec<u8>) -> Result<Vec<CudaFunction>> {
        // PTX is text, which the driver reads up to its zero.
        if !self.target.is_machine_code && image.last() != Some(&0) {
            image.push(0);
        }
        let failed =
            |error| self.gpu.failed(format_args!("loading kernels `{module}` for {} on", self.target), error);
        let loaded = self.gpu.context().load_module(Ptx::from_binary(image)).map_err(failed)?;
        module.kernels().iter().map(|kernel| loaded.load_function(kernel).map_err(failed)).collect()
    }
}

impl Launch for Kernels {
    type Stream = CudaStream;

    fn multiprocessors(&self) -> u32 {
        self.multiprocessors
    }

    unsafe fn launch(&self, stream: &CudaStream, call: Call<'_>) -> Result<()> {
        let Call { module, kernel, geometry, arguments } = call;
        let functions = self.functions(module)?;
        let function =
            module.kernels().iter().position(|name| *name == kernel).and_then(|at| functions.get(at));
        let function = function
            .ok_or_else(|| Error::Internal(format!("there is no kernel `{kernel}` in `{module}`")))?;
        self.gpu.bind()?;
        let (grid, block) = ((geometry.blocks, 1, 1), (geometry.threads, 1, 1));
        // SAFETY: the caller's promise; the function lives as long as `self`, and the context is bound.
        unsafe {
            result::launch_kernel(function.cu_function(), grid, block, 0, stream.cu_stream(), arguments)
        }
        .map_err(|error| {
            self.gpu.failed(format_args!("starting the kernel `{kernel}` of `{module}` on"), error)
        })
    }
}

impl fmt::Debug for Kernels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Kernels of {} for {}", self.gpu, self.target)
    }
}
