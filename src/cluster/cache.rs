//! Where a cluster's measurements are kept between jobs.

use crate::files::{cache_folder, fingerprint};
use std::path::PathBuf;

/// The file in the user's cache folder for ranks on these hosts (one name for each rank) over this transport: in
/// `$XDG_CACHE_HOME/esync` or `~/.cache/esync`. `None` without either variable.
///
/// ```
/// let path = esync::cluster::cache_path("mpi", &["a", "a", "b"]);
/// assert!(path.is_none_or(|path| path.to_string_lossy().contains("mpi-3-ranks-a-")));
/// ```
pub fn cache_path(transport: &str, hosts: &[&str]) -> Option<PathBuf> {
    Some(cache_folder()?.join(file_name(transport, hosts)))
}

/// Readable at its beginning, exact by a hash of which rank is where.
fn file_name(transport: &str, hosts: &[&str]) -> String {
    let clean = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' };
    let first: String = hosts.first().unwrap_or(&"").chars().take(24).map(clean).collect();
    let all = fingerprint(hosts.iter().flat_map(|host| host.bytes().chain([0])));
    format!("{transport}-{}-ranks-{first}-{all:016x}.toml", hosts.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_tells_clusters_apart() {
        let name = file_name("mpi", &["a", "a", "b"]);
        assert!(name.starts_with("mpi-3-ranks-a-") && name.ends_with(".toml"), "{name}");
        assert_eq!(name, file_name("mpi", &["a", "a", "b"]));
        for other in [["a", "b", "a"], ["a", "b", "b"], ["aa", "", "b"]] {
            assert_ne!(name, file_name("mpi", &other));
        }
        assert_ne!(name, file_name("shm", &["a", "a", "b"]));
        assert!(!file_name("mpi", &["../x y"]).contains(['/', ' ']));
    }
}
