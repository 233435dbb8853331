//! NVRTC: the host's C++ compiler, with `shim.h`.

use crate::api::{complain, put_if_wanted};
use crate::handles::Handles;
use crate::module;
use crate::settings::{settings, version};
use cudarc::nvrtc::sys::{nvrtcProgram, nvrtcResult};
use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_int};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};

const SHIM: &str = include_str!("shim.h");
/// Arithmetic as on the device: each operation rounds by itself, integers wrap. What a GPU takes for an error (a 16-byte access
/// to another address) or answers otherwise (a shift by 32) ends the program with an illegal instruction: see `fault.rs`.
const FLAGS: [&str; 10] = [
    "-std=c++17",
    "-shared",
    "-fPIC",
    "-O1",
    "-ffp-contract=off",
    "-fwrapv",
    "-fno-strict-aliasing",
    "-U_FORTIFY_SOURCE",
    "-fsanitize=alignment,bounds,shift,null,integer-divide-by-zero",
    "-fsanitize-undefined-trap-on-error",
];

static PROGRAMS: Handles<Program> = Handles::new();

#[derive(Debug)]
struct Program {
    source: String,
    name: String,
    /// Name and text.
    headers: Vec<(String, String)>,
    compiled: Mutex<Compiled>,
}

#[derive(Debug, Default)]
struct Compiled {
    log: String,
    library: Option<Arc<Vec<u8>>>,
    /// Compiled for a GPU (`sm_90`) rather than for what may be translated later (`compute_90`).
    real: bool,
}

/// The architectures that NVRTC of this version knows.
fn architectures() -> Vec<i32> {
    let new = settings().nvrtc >= version(13, 0, 0);
    let newer = settings().nvrtc >= version(12, 8, 0);
    let mut known = vec![75, 80, 86, 87, 89, 90];
    if !new {
        known.splice(0..0, [50, 52, 53, 60, 61, 62, 70, 72]);
    }
    if newer {
        known.extend([100, 103, 120, 121]);
    }
    if new {
        known.push(110);
        known.push(88);
        known.sort_unstable();
    }
    known
}

#[unsafe(no_mangle)]
extern "C" fn nvrtcVersion(major: *mut c_int, minor: *mut c_int) -> nvrtcResult {
    put_if_wanted(major, settings().nvrtc.major);
    put_if_wanted(minor, settings().nvrtc.minor);
    nvrtcResult::NVRTC_SUCCESS
}

#[unsafe(no_mangle)]
extern "C" fn nvrtcGetNumSupportedArchs(count: *mut c_int) -> nvrtcResult {
    put_if_wanted(count, architectures().len() as c_int);
    nvrtcResult::NVRTC_SUCCESS
}

#[unsafe(no_mangle)]
extern "C" fn nvrtcGetSupportedArchs(to: *mut c_int) -> nvrtcResult {
    for (index, architecture) in architectures().into_iter().enumerate() {
        put_if_wanted(to.wrapping_add(index), architecture);
    }
    nvrtcResult::NVRTC_SUCCESS
}

#[unsafe(no_mangle)]
extern "C" fn nvrtcGetErrorString(result: nvrtcResult) -> *const c_char {
    static TEXTS: Mutex<Option<HashMap<u32, &'static CStr>>> = Mutex::new(None);
    let mut texts = TEXTS.lock().unwrap_or_else(PoisonError::into_inner);
    let text = texts.get_or_insert_default().entry(result as u32).or_insert_with(|| {
        let text = std::ffi::CString::new(format!("{result:?}")).expect("no zeros");
        Box::leak(text.into_boxed_c_str())
    });
    text.as_ptr()
}

/// A text that a caller gave; an empty one for none.
fn text(from: *const c_char) -> Option<String> {
    if from.is_null() {
        return Some(String::new());
    }
    // SAFETY: callers give texts that end with a zero.
    unsafe { CStr::from_ptr(from) }.to_str().ok().map(str::to_owned)
}

/// `count` texts that a caller gave.
fn texts(from: *const *const c_char, count: c_int) -> Option<Vec<String>> {
    let count = usize::try_from(count).ok()?;
    // SAFETY: callers give as many pointers as they say.
    (0..count).map(|index| text(unsafe { from.add(index).read() })).collect()
}

#[unsafe(no_mangle)]
extern "C" fn nvrtcCreateProgram(
    program: *mut nvrtcProgram,
    source: *const c_char,
    name: *const c_char,
    header_count: c_int,
    headers: *const *const c_char,
    include_names: *const *const c_char,
) -> nvrtcResult {
    let read = || {
        let headers =
            texts(include_names, header_count)?.into_iter().zip(texts(headers, header_count)?).collect();
        Some(Program { source: text(source)?, name: text(name)?, headers, compiled: Mutex::default() })
    };
    let Some(mut read) = read() else { return nvrtcResult::NVRTC_ERROR_INVALID_INPUT };
    if read.name.is_empty() {
        "default_program".clone_into(&mut read.name);
    }
    put_if_wanted(program, PROGRAMS.add(Arc::new(read)));
    nvrtcResult::NVRTC_SUCCESS
}

#[unsafe(no_mangle)]
extern "C" fn nvrtcDestroyProgram(program: *mut nvrtcProgram) -> nvrtcResult {
    if program.is_null() {
        return nvrtcResult::NVRTC_ERROR_INVALID_PROGRAM;
    }
    // SAFETY: callers give the address of what they got.
    match PROGRAMS.remove(unsafe { program.read() }) {
        Some(_) => nvrtcResult::NVRTC_SUCCESS,
        None => nvrtcResult::NVRTC_ERROR_INVALID_PROGRAM,
    }
}

#[unsafe(no_mangle)]
extern "C" fn nvrtcCompileProgram(
    program: nvrtcProgram,
    option_count: c_int,
    options: *const *const c_char,
) -> nvrtcResult {
    let Some(program) = PROGRAMS.get(program) else { return nvrtcResult::NVRTC_ERROR_INVALID_PROGRAM };
    let Some(options) = texts(options, option_count) else { return nvrtcResult::NVRTC_ERROR_INVALID_INPUT };
    let mut compiled = program.compiled.lock().unwrap_or_else(PoisonError::into_inner);
    let options = match Options::read(&options) {
        Ok(options) => options,
        Err(why) => {
            compiled.log = format!("nvrtc: error: {why}\n");
            return nvrtcResult::NVRTC_ERROR_INVALID_OPTION;
        }
    };
    match program.compile(&options) {
        Ok(library) => {
            *compiled = Compiled { log: String::new(), library: Some(library), real: options.real };
            nvrtcResult::NVRTC_SUCCESS
        }
        Err(log) => {
            *compiled = Compiled { log, ..Compiled::default() };
            nvrtcResult::NVRTC_ERROR_COMPILATION
        }
    }
}

/// What a caller asked the compiler for.
#[derive(Debug, Hash)]
struct Options {
    architecture: i32,
    real: bool,
    /// As the host's compiler understands them.
    for_host: Vec<String>,
}

impl Options {
    fn read(texts: &[String]) -> Result<Self, String> {
        let mut options = Self { architecture: architectures()[0], real: false, for_host: Vec::new() };
        for text in texts {
            let (name, value) = text.split_once('=').unwrap_or((text, ""));
            match name {
                "--gpu-architecture" | "-arch" => {
                    let (kind, number) = value.split_once('_').unwrap_or((value, ""));
                    let known = number.parse().ok().filter(|number| architectures().contains(number));
                    let (Some(number), "sm" | "compute") = (known, kind) else {
                        return Err(format!("invalid value for --gpu-architecture (-arch): {value}"));
                    };
                    (options.architecture, options.real) = (number, kind == "sm");
                }
                "--include-path" => options.for_host.push(format!("-I{value}")),
                "--define-macro" => options.for_host.push(format!("-D{value}")),
                // The host does neither fuse, nor flush, nor divide less exactly: what is allowed need not be done.
                "--fmad"
                | "-fmad"
                | "--ftz"
                | "-ftz"
                | "--prec-div"
                | "--prec-sqrt"
                | "--std"
                | "-std"
                | "--maxrregcount"
                | "-lineinfo"
                | "--generate-line-info"
                | "--device-as-default-execution-space"
                | "-default-device"
                | "--restrict" => {}
                name if name.starts_with("-I") || name.starts_with("-D") => {
                    options.for_host.push(text.clone())
                }
                _ => return Err(format!("unrecognized option {text} found")),
            }
        }
        Ok(options)
    }
}

impl Program {
    /// The shared object, from one of the caches or from the compiler; else what the compiler said.
    fn compile(&self, options: &Options) -> Result<Arc<Vec<u8>>, String> {
        static CACHE: Mutex<Option<HashMap<u64, Arc<Vec<u8>>>>> = Mutex::new(None);
        let mut hasher = DefaultHasher::new();
        (SHIM, FLAGS, options, &self.source, &self.name, &self.headers).hash(&mut hasher);
        let key = hasher.finish();
        // Held while compiling: several ranks want the same at the same time, and one compiler is enough.
        let mut cache = CACHE.lock().unwrap_or_else(PoisonError::into_inner);
        let cache = cache.get_or_insert_default();
        if let Some(library) = cache.get(&key) {
            return Ok(Arc::clone(library));
        }
        let file = settings().cache.as_ref().map(|folder| folder.join(format!("{key:016x}.so")));
        let kept = file.as_ref().and_then(|file| std::fs::read(file).ok());
        let library = match kept {
            Some(library) => library,
            None => {
                let library = self.run_compiler(options)?;
                if let Some(file) = &file
                    && let Err(error) = keep(file, &library)
                {
                    complain!("{}: compiled kernels cannot be kept: {error}", file.display());
                }
                library
            }
        };
        let library = Arc::new(library);
        cache.insert(key, Arc::clone(&library));
        Ok(library)
    }

    fn run_compiler(&self, options: &Options) -> Result<Vec<u8>, String> {
        let failed = |error: std::io::Error| {
            format!("software device: the host's C++ compiler does not run: {error}\n")
        };
        let folder = tempfile::tempdir().map_err(failed)?;
        let at = |name: &str| folder.path().join(name);
        let write = |name: &str, text: &str| -> std::io::Result<()> {
            let path = at(name);
            path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
            std::fs::write(path, text)
        };
        self.headers.iter().try_for_each(|(name, text)| write(name, text)).map_err(failed)?;
        let source = format!("#line 1 \"{}\"\n{}\n", self.name, self.source);
        write("unit.cpp", &source).and_then(|()| write("shim.h", SHIM)).map_err(failed)?;
        let compiler = std::env::var_os("CXX").unwrap_or_else(|| "c++".into());
        let compile = |arguments: &[&str]| -> Result<Vec<u8>, String> {
            let mut command = Command::new(&compiler);
            command.args(arguments).args(&options.for_host).arg("-I").arg(folder.path()).arg(at("unit.cpp"));
            let output = command.output().map_err(failed)?;
            match output.status.success() {
                true => Ok(output.stdout),
                false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
            }
        };
        // Once without the shim, so that macros that make kernels have made them and __global__ still says which they are.
        let plain = compile(&["-std=c++17", "-E", "-P", "-D__CUDA_SHIM__=1"])?;
        let plain = String::from_utf8_lossy(&plain);
        let mut unit = source;
        for kernel in kernels(&plain) {
            unit += &format!("SHIM_ENTRY({kernel})\n");
        }
        let architecture = options.architecture;
        let symbol = module::ARCHITECTURE;
        unit += &format!(
            "extern \"C\" __attribute__((visibility(\"default\"))) const int {symbol};\nconst int {symbol} = {architecture};\n"
        );
        write("unit.cpp", &unit).map_err(failed)?;
        let (shim, library) = (at("shim.h").display().to_string(), at("unit.so").display().to_string());
        let mut arguments = FLAGS.to_vec();
        arguments.extend(["-include", &shim, "-o", &library]);
        if plain.contains("__syncthreads") {
            arguments.push("-DSHIM_FIBERS");
        }
        compile(&arguments)?;
        std::fs::read(library).map_err(failed)
    }
}

/// So that another process reads all of it or nothing.
fn keep(file: &Path, library: &[u8]) -> std::io::Result<()> {
    let folder = file.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    let mut temporary = tempfile::NamedTempFile::new_in(folder)?;
    temporary.write_all(library)?;
    temporary.persist(file).map(drop).map_err(|error| error.error)
}

/// The names of the functions marked `__global__`.
fn kernels(source: &str) -> Vec<&str> {
    let is_name = |letter: char| letter.is_alphanumeric() || letter == '_';
    let mut names = Vec::new();
    for after in source.split("__global__").skip(1) {
        let Some(rest) = without_bounds(after).strip_prefix("void") else { continue };
        let rest = without_bounds(rest);
        let name = &rest[..rest.find(|letter| !is_name(letter)).unwrap_or(rest.len())];
        if !name.is_empty() && !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// What follows `__launch_bounds__(…)`, which may stand before and after `void`.
fn without_bounds(source: &str) -> &str {
    let source = source.trim_start();
    let Some(bounds) = source.strip_prefix("__launch_bounds__") else { return source };
    let mut depth = 0;
    let end = bounds.find(|letter| {
        depth += i32::from(letter == '(') - i32::from(letter == ')');
        letter == ')' && depth == 0
    });
    end.map_or("", |end| &bounds[end + 1..]).trim_start()
}

/// What a program has to show, written where the caller wants it, or only how many bytes it takes.
fn show(
    program: nvrtcProgram,
    bytes: *mut usize,
    to: *mut c_char,
    what: impl FnOnce(&Compiled) -> Option<Vec<u8>>,
) -> nvrtcResult {
    let Some(program) = PROGRAMS.get(program) else { return nvrtcResult::NVRTC_ERROR_INVALID_PROGRAM };
    let compiled = program.compiled.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(what) = what(&compiled) else { return nvrtcResult::NVRTC_ERROR_INVALID_PROGRAM };
    put_if_wanted(bytes, what.len());
    if !to.is_null() {
        // SAFETY: callers asked for the size before.
        unsafe { to.cast::<u8>().copy_from_nonoverlapping(what.as_ptr(), what.len()) };
    }
    nvrtcResult::NVRTC_SUCCESS
}

fn log(compiled: &Compiled) -> Option<Vec<u8>> {
    Some([compiled.log.as_bytes(), &[0]].concat())
}

fn ptx(compiled: &Compiled) -> Option<Vec<u8>> {
    compiled.library.as_ref().map(|library| module::as_text(library))
}

/// Nothing where the architecture was a virtual one, as NVRTC says.
fn cubin(compiled: &Compiled) -> Option<Vec<u8>> {
    let library = compiled.library.as_ref()?;
    Some(if compiled.real { library.to_vec() } else { Vec::new() })
}

const NO_BYTES: *mut usize = std::ptr::null_mut();
const NO_TEXT: *mut c_char = std::ptr::null_mut();

#[unsafe(no_mangle)]
extern "C" fn nvrtcGetProgramLogSize(program: nvrtcProgram, bytes: *mut usize) -> nvrtcResult {
    show(program, bytes, NO_TEXT, log)
}

#[unsafe(no_mangle)]
extern "C" fn nvrtcGetProgramLog(program: nvrtcProgram, to: *mut c_char) -> nvrtcResult {
    show(program, NO_BYTES, to, log)
}

#[unsafe(no_mangle)]
extern "C" fn nvrtcGetPTXSize(program: nvrtcProgram, bytes: *mut usize) -> nvrtcResult {
    show(program, bytes, NO_TEXT, ptx)
}

#[unsafe(no_mangle)]
extern "C" fn nvrtcGetPTX(program: nvrtcProgram, to: *mut c_char) -> nvrtcResult {
    show(program, NO_BYTES, to, ptx)
}

#[unsafe(no_mangle)]
extern "C" fn nvrtcGetCUBINSize(program: nvrtcProgram, bytes: *mut usize) -> nvrtcResult {
    show(program, bytes, NO_TEXT, cubin)
}

#[unsafe(no_mangle)]
extern "C" fn nvrtcGetCUBIN(program: nvrtcProgram, to: *mut c_char) -> nvrtcResult {
    show(program, NO_BYTES, to, cubin)
}
