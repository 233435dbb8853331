//! The classic clusters that are built in. They are files like any other.

/// Name and text of each.
const CLUSTERS: [(&str, &str); 6] = [
    ("homogeneous", include_str!("clusters/homogeneous.toml")),
    ("1:1:3", include_str!("clusters/1-1-3.toml")),
    ("esync-12", include_str!("clusters/esync-12.toml")),
    ("wbsp-10", include_str!("clusters/wbsp-10.toml")),
    ("edge-18", include_str!("clusters/edge-18.toml")),
    ("async-diloco-4", include_str!("clusters/async-diloco-4.toml")),
];

/// The names of the built-in clusters.
pub const CLUSTER_NAMES: [&str; CLUSTERS.len()] = {
    let mut names = [""; CLUSTERS.len()];
    let mut index = 0;
    while index < CLUSTERS.len() {
        names[index] = CLUSTERS[index].0;
        index += 1;
    }
    names
};

/// The file of a built-in cluster, to be read and changed.
///
/// ```
/// assert!(esync::sim::cluster_text("esync-12").is_some_and(|text| text.contains("[[workers]]")));
/// ```
pub fn cluster_text(name: &str) -> Option<&'static str> {
    text_of(name)
}

pub(super) fn text_of(name: &str) -> Option<&'static str> {
    CLUSTERS.into_iter().find(|(known, _)| *known == name).map(|(_, text)| text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::SimCluster;

    #[test]
    fn every_built_in_cluster_can_be_used() {
        for (name, size) in CLUSTER_NAMES.into_iter().zip([8, 3, 12, 10, 18, 4]) {
            let cluster = SimCluster::find(name).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(cluster.size(), size, "{name}");
        }
    }

    #[test]
    fn the_published_ratios_are_there() {
        let seconds = |name: &str| -> Vec<f64> {
            let cluster = SimCluster::find(name).unwrap();
            cluster.workers.iter().map(|worker| worker.work_seconds(1, 0, 0)).collect()
        };
        let ratio = |seconds: &[f64]| {
            seconds.iter().copied().fold(0.0, f64::max) / seconds.iter().copied().fold(f64::MAX, f64::min)
        };
        assert!((ratio(&seconds("esync-12")) - 150.0).abs() < 1e-9);
        assert_eq!(seconds("1:1:3"), [0.1, 0.1, 0.3]);
        assert_eq!(seconds("async-diloco-4"), [0.58, 0.75, 1.51, 3.33]);
        assert_eq!(ratio(&seconds("homogeneous")), 1.0);
    }
}
