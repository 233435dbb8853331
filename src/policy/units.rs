//! Staleness has three units in the literature. Types keep them apart.

macro_rules! unit {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[derive(serde::Serialize, serde::Deserialize)]
        pub struct $name(pub u64);

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

unit!(
    /// A worker's clock: how many steps (or commits) it has completed (SSP, Ho et al. 2013).
    Clocks
);
unit!(
    /// Mini-batches of one worker since its last exchange or pull.
    LocalSteps
);
unit!(
    /// Updates that a server has applied (bounded delay; FALCON). A bound of `s` clocks is about `s · K` versions.
    Versions
);
