//! Keeps the CUDA half of libtorch in the programs, if this libtorch has one. Nothing of ours calls it, so the linker would leave
//! it out, and libtorch would then know no GPU.

use std::env;
use std::path::PathBuf;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=LIBTORCH");
    println!("cargo::rerun-if-env-changed=LIBTORCH_LIB");
    let has = |feature: &str| env::var_os(feature).is_some();
    if !has("CARGO_FEATURE_TORCH") || !has("CARGO_FEATURE_CUDA") {
        return;
    }
    let folder = env::var_os("LIBTORCH_LIB").or_else(|| env::var_os("LIBTORCH")).map(PathBuf::from);
    let Some(folder) = folder.map(|folder| folder.join("lib")) else { return };
    if !folder.join("libtorch_cuda.so").exists() {
        return;
    }
    // Not for examples: one of them is a library that takes CUDA's place in tests.
    for kind in ["bins", "tests", "benches"] {
        for argument in
            [&format!("-L{}", folder.display()), "-Wl,--no-as-needed", "-ltorch_cuda", "-Wl,--as-needed"]
        {
            println!("cargo::rustc-link-arg-{kind}={argument}");
        }
    }
}
