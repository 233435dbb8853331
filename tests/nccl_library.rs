//! NCCL's own library, without a GPU: its version, and the id by which ranks find each other. It is taken from the folder that
//! ESYNC_NCCL names, or from `launch/bootstrap --cuda`; without it this test says that it skips.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Set in the process that is started with the library on its path.
const INSIDE: &str = "ESYNC_TEST_INSIDE_NCCL";

fn library() -> Option<PathBuf> {
    let named = std::env::var_os("ESYNC_NCCL").map(PathBuf::from);
    let fetched = Path::new(env!("CARGO_MANIFEST_DIR")).join(".esync/cuda-libraries");
    let candidates = named.into_iter().chain([fetched]).map(|folder| folder.join("libnccl.so.2"));
    candidates.into_iter().find(|path| path.exists())
}

#[test]
fn nccl_makes_an_id_without_a_gpu() {
    if std::env::var_os(INSIDE).is_some() {
        let part = esync::device::parts::nccl().unwrap();
        println!("NCCL {part}");
        let id = |()| cudarc::nccl::Id::new().map(|id| id.internal().to_vec()).map_err(|error| error.0);
        let (first, second) = (id(()).unwrap(), id(()).unwrap());
        assert!(first.iter().any(|byte| *byte != 0) && first != second);
        return;
    }
    let Some(library) = library() else {
        eprintln!(
            "skipped: NCCL is not here (launch/bootstrap --cuda, or ESYNC_NCCL names the folder of libnccl.so.2)"
        );
        return;
    };
    // The bindings look for the name without a number.
    let folder = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(library.canonicalize().unwrap(), folder.path().join("libnccl.so")).unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "nccl_makes_an_id_without_a_gpu", "--nocapture"])
        .env(INSIDE, "1")
        .env("LD_LIBRARY_PATH", folder.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("NCCL 2."), "{text}");
}
