//! Files that appear whole or not at all, and where those are that outlive a job.

use crate::error::{Error, Result};
use std::io::Write;
use std::path::{Path, PathBuf};

/// The user's cache folder for this library: `$XDG_CACHE_HOME/esync` or `~/.cache/esync`. `None` without either variable.
pub(crate) fn cache_folder() -> Option<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let folder = variable("XDG_CACHE_HOME").or_else(|| Some(variable("HOME")?.join(".cache")))?;
    Some(folder.join("esync"))
}

/// FNV-1a, which stays the same from release to release, as the standard library's hash need not.
pub(crate) fn fingerprint(bytes: impl IntoIterator<Item = u8>) -> u64 {
    let start = 0xcbf2_9ce4_8422_2325;
    bytes.into_iter().fold(start, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Writes `parts`, one after the other, beside `path`, brings them to the disk, and renames.
pub(crate) fn write_atomically(path: &Path, parts: &[&[u8]]) -> Result<()> {
    let failed = |e: std::io::Error| Error::file(path, format!("cannot write: {e}"));
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut builder = tempfile::Builder::new();
    builder.prefix(".esync-");
    // Temporary files are private by default; the result is to be as readable as any other file of its user.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut file = builder.tempfile_in(folder).map_err(failed)?;
    for part in parts {
        file.write_all(part).map_err(failed)?;
    }
    file.as_file().sync_all().map_err(failed)?;
    file.persist(path).map_err(|e| failed(e.error))?;
    Ok(())
}
