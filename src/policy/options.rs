//! What can be chosen about the policies. The names are those of the flags.

use super::esync::Planning;
use serde::Serialize;

/// The policies' options, each only if it was given: a mode has defaults of its own, and refuses what has no meaning in it.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct PolicyOptions {
    // Rounds.
    /// `esync`: the most local steps in a round.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_local_steps: Option<u64>,
    /// `esync`: who decides. Not a flag: the runtime says whether there is a state server.
    #[serde(skip)]
    pub planning: Option<Planning>,
    /// `local-sgd` and its kin, `diloco` and its kin, `easgd`: local steps between two exchanges or pushes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local_steps: Option<u64>,
    // Servers.
    /// `ssp`: the bound in clocks. `bounded-delay`: the bound in versions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub staleness: Option<u64>,
}
