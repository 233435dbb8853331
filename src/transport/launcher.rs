//! What a launcher's environment variables say.

use std::time::Duration;

/// Set by esync for the processes that it starts itself: the number of ranks, one's own, where the shared segment is, and
/// the process that started them.
pub(crate) const SHM_RANKS: &str = "ESYNC_SHM_RANKS";
pub(crate) const SHM_RANK: &str = "ESYNC_SHM_RANK";
pub(crate) const SHM_SEGMENT: &str = "ESYNC_SHM_SEGMENT";
pub(crate) const SHM_PARENT: &str = "ESYNC_SHM_PARENT";

/// How many ranks a launcher's environment announces, and which launcher it is.
pub fn announced_ranks() -> Option<(usize, &'static str)> {
    let read = |name: &str| std::env::var(name).ok().and_then(|value| value.parse().ok());
    if let Some(size) = read("OMPI_COMM_WORLD_SIZE") {
        return Some((size, "Open MPI"));
    }
    if let Some(size) = read("PMI_SIZE") {
        return Some((size, "MPICH or Intel MPI"));
    }
    if let Some(size) = read(SHM_RANKS) {
        return Some((size, "esync"));
    }
    // Inside a plain allocation SLURM_NTASKS is set too; only a step that srun started has ranks.
    let in_step = std::env::var_os("SLURM_STEP_ID").is_some() && std::env::var_os("SLURM_PROCID").is_some();
    read("SLURM_STEP_NUM_TASKS").filter(|_| in_step).map(|size| (size, "Slurm"))
}

/// The number that a launcher gave to this process; 0 without a launcher. For errors that happen before ranks can talk.
pub fn announced_rank() -> usize {
    let names = ["OMPI_COMM_WORLD_RANK", "PMI_RANK", SHM_RANK, "SLURM_PROCID"];
    let read = |name: &&str| std::env::var(name).ok().and_then(|value| value.parse().ok());
    if announced_ranks().is_none() { 0 } else { names.iter().find_map(read).unwrap_or(0) }
}

/// To be called before printing an error that every process of a job makes alike, before ranks can talk: the first prints
/// and ends at once, and its end makes the launcher end the others while they wait here. (Open MPI needs 1.1 s for that.)
/// A process whose error the first one does not share speaks after some seconds.
pub fn speak_in_turn() {
    let rank = announced_rank().min(8) as u32;
    if rank > 0 {
        std::thread::sleep(Duration::from_secs(3) + Duration::from_millis(500) * (rank - 1));
    }
}
