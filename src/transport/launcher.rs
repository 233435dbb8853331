//! What a launcher's environment variables say.

/// How many ranks a launcher's environment announces, and which launcher it is.
pub fn announced_ranks() -> Option<(usize, &'static str)> {
    let read = |name: &str| std::env::var(name).ok().and_then(|value| value.parse().ok());
    if let Some(size) = read("OMPI_COMM_WORLD_SIZE") {
        return Some((size, "Open MPI"));
    }
    if let Some(size) = read("PMI_SIZE") {
        return Some((size, "MPICH or Intel MPI"));
    }
    // Inside a plain allocation SLURM_NTASKS is set too; only a step that srun started has ranks.
    let in_step = std::env::var_os("SLURM_STEP_ID").is_some() && std::env::var_os("SLURM_PROCID").is_some();
    read("SLURM_STEP_NUM_TASKS").filter(|_| in_step).map(|size| (size, "Slurm"))
}

/// The number that a launcher gave to this process; 0 without a launcher. For errors that happen before ranks can talk.
pub fn announced_rank() -> usize {
    let names = ["OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID"];
    let read = |name: &&str| std::env::var(name).ok().and_then(|value| value.parse().ok());
    if announced_ranks().is_none() { 0 } else { names.iter().find_map(read).unwrap_or(0) }
}
