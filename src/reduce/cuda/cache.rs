//! Compiled kernels on the disk, so that only the first job waits for the compiler.

use crate::files::{cache_folder, fingerprint, write_atomically};
use std::path::PathBuf;

/// The first bytes of every file.
const MAGIC: &[u8; 8] = b"esynck1\n";

/// A compiled module's place. Without a home folder there is none, and everything is compiled anew.
pub(super) struct Entry {
    path: Option<PathBuf>,
    key: u64,
}

impl Entry {
    /// `name` is readable, and `key` is everything that the machine code depends on.
    pub(super) fn of(name: &str, key: &[&str]) -> Entry {
        Self::below(cache_folder(), name, key)
    }

    fn below(folder: Option<PathBuf>, name: &str, key: &[&str]) -> Entry {
        let key = fingerprint(key.iter().flat_map(|part| part.bytes().chain([0])));
        let path = folder.map(|folder| folder.join("kernels").join(format!("{name}-{key:016x}")));
        Entry { path, key }
    }

    /// What was stored, if it is whole.
    pub(super) fn load(&self) -> Option<Vec<u8>> {
        let mut file = std::fs::read(self.path.as_ref()?).ok()?;
        let image = file.split_off(file.len().min(HEADER_BYTES));
        (file == self.header(&image)).then_some(image)
    }

    /// Stores it for the next job. A full disk or a folder that cannot be written is no reason to stop: the next job compiles
    /// again.
    pub(super) fn store(&self, image: &[u8]) {
        let Some(path) = &self.path else { return };
        let Some(folder) = path.parent() else { return };
        if std::fs::create_dir_all(folder).is_ok() {
            let _ = write_atomically(path, &[&self.header(image), image]);
        }
    }

    fn header(&self, image: &[u8]) -> Vec<u8> {
        let checksum = fingerprint(image.iter().copied());
        let words = [self.key, image.len() as u64, checksum].map(u64::to_le_bytes);
        [&MAGIC[..], words.as_flattened()].concat()
    }
}

const HEADER_BYTES: usize = MAGIC.len() + 3 * 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_stored_is_loaded_by_the_same_key_only() {
        let folder = tempfile::tempdir().unwrap();
        let entry = |source| Entry::below(Some(folder.path().into()), "reduce-f32", &[source, "sm_90"]);
        assert_eq!(entry("a").load(), None);
        entry("a").store(b"machine code");
        assert_eq!(entry("a").load().as_deref(), Some(&b"machine code"[..]));
        assert_eq!(entry("b").load(), None);
        assert_eq!(Entry::below(None, "reduce-f32", &[]).load(), None);
        Entry::below(None, "reduce-f32", &[]).store(b"nowhere");
    }

    #[test]
    fn a_damaged_file_is_not_trusted() {
        let folder = tempfile::tempdir().unwrap();
        let entry = Entry::below(Some(folder.path().into()), "wire-int8", &["source"]);
        entry.store(b"machine code");
        let path = entry.path.clone().unwrap();
        let whole = std::fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            std::fs::write(&path, damaged).unwrap();
            assert_eq!(entry.load(), None, "byte {at}");
            std::fs::write(&path, &whole[..at]).unwrap();
            assert_eq!(entry.load(), None, "cut at {at}");
        }
        entry.store(b"machine code");
        assert!(entry.load().is_some());
    }
}
