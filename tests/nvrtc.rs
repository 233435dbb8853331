//! The compiler that makes the kernels' machine code, without a GPU: NVRTC from `launch/bootstrap --nvrtc`, or from a folder that
//! ESYNC_NVRTC names. Without it these tests say that they skip.

use esync::reduce::cuda::{Module, Target, compile, supported_architectures};
use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The oldest architecture that CUDA 13 compiles for, and one of each generation since.
const ARCHITECTURES: [u32; 5] = [75, 80, 90, 100, 120];

/// Opens NVRTC, so that the bindings find it by its name. `None` if it is not here.
fn nvrtc() -> Option<PathBuf> {
    static OPENED: OnceLock<Option<PathBuf>> = OnceLock::new();
    OPENED
        .get_or_init(|| {
            let found = folders().into_iter().find_map(|folder| library_in(&folder));
            let Some(path) = found else {
                eprintln!(
                    "skipped: kernels are not compiled for GPUs, because NVRTC is not here (launch/bootstrap --nvrtc)"
                );
                return None;
            };
            let name = CString::new(path.clone().into_os_string().into_encoded_bytes()).unwrap();
            // SAFETY: NVRTC's initialisers do no more than any library's.
            let opened = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
            assert!(!opened.is_null(), "{} does not load", path.display());
            Some(path)
        })
        .clone()
}

fn folders() -> Vec<PathBuf> {
    let store = Path::new(env!("CARGO_MANIFEST_DIR")).join(".esync");
    let named = std::env::var_os("ESYNC_NVRTC").map(PathBuf::from);
    let below = std::fs::read_dir(&store).into_iter().flatten().flatten().map(|entry| entry.path());
    let fetched = below
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("nvrtc-")));
    named.into_iter().chain([store.join("cuda-libraries")]).chain(fetched).collect()
}

fn library_in(folder: &Path) -> Option<PathBuf> {
    let mut files = std::fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path());
    files.find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("libnvrtc.so.")))
}

/// The number of the machine in an ELF file's header: NVIDIA's GPUs.
const CUDA_MACHINE: [u8; 2] = [190, 0];

fn compile_all(architecture: u32) {
    if nvrtc().is_none() {
        return;
    }
    for module in Module::all() {
        let target = Target { architecture, is_machine_code: true };
        let image = compile(module, target).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(image[..4], *b"\x7fELF", "{module} for {target}");
        assert_eq!(image[18..20], CUDA_MACHINE, "{module} for {target}");
        for kernel in module.kernels() {
            let name = format!("\0{kernel}\0");
            let there = image.windows(name.len()).any(|bytes| bytes == name.as_bytes());
            assert!(there, "{kernel} is not in {module} for {target}");
        }
    }
}

#[test]
fn every_kernel_compiles_for_turing() {
    compile_all(ARCHITECTURES[0]);
}

#[test]
fn every_kernel_compiles_for_ampere() {
    compile_all(ARCHITECTURES[1]);
}

#[test]
fn every_kernel_compiles_for_hopper() {
    compile_all(ARCHITECTURES[2]);
}

#[test]
fn every_kernel_compiles_for_blackwell() {
    compile_all(ARCHITECTURES[3]);
}

#[test]
fn every_kernel_compiles_for_the_blackwell_of_desktops() {
    compile_all(ARCHITECTURES[4]);
}

#[test]
fn a_gpu_that_is_newer_than_the_compiler_gets_ptx() {
    if nvrtc().is_none() {
        return;
    }
    let known = supported_architectures().unwrap();
    assert!(ARCHITECTURES.iter().all(|architecture| known.contains(architecture)), "{known:?}");
    let newest = known.iter().copied().max().unwrap();
    let target = Target::for_capability((99, 0)).unwrap();
    assert_eq!(target, Target { architecture: newest, is_machine_code: false });
    let module = Module::Reduce(esync::reduce::ElementType::F32);
    let ptx = String::from_utf8(compile(module, target).unwrap()).unwrap();
    assert!(ptx.contains(&format!(".target sm_{newest}")) && ptx.contains(".entry reduce_sum("), "{ptx}");
    // Accesses are of 16 bytes, and no multiplication is fused with an addition.
    assert!(ptx.contains("ld.global.v4") && ptx.contains("st.global.v4") && !ptx.contains("fma.rn"), "{ptx}");
}

#[test]
fn a_gpu_that_is_too_old_for_the_compiler_is_refused() {
    if nvrtc().is_none() {
        return;
    }
    let error = Target::for_capability((5, 2)).unwrap_err();
    assert_eq!(error.exit_code(), 3);
    assert!(error.to_string().contains("does not compile for this GPU (sm_52)"), "{error}");
}
