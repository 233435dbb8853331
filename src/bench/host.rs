//! What the benchmark must know of the host: its cores, its free memory, and what other programs do meanwhile.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};
use std::fs::read_to_string;

/// The numbers of the cores that this process may use, even if a launcher has bound its threads to some of them.
pub(super) fn cores() -> Vec<usize> {
    // In a thread of its own, whose end takes the change with it. What the system then allows is the process's share of
    // the machine (its cpuset).
    let allowed = std::thread::spawn(|| {
        let mut every = CpuSet::new();
        (0..CpuSet::MAX_CPU).for_each(|core| every.set(core));
        // If it is refused, the launcher's binding is all there is.
        let _ = sched_setaffinity(None, &every);
        sched_getaffinity(None).ok()
    });
    match allowed.join().ok().flatten() {
        Some(set) if set.count() > 0 => (0..CpuSet::MAX_CPU).filter(|&core| set.is_set(core)).collect(),
        _ => vec![0],
    }
}

/// Keeps the calling thread on one core.
pub(super) fn pin(core: usize) {
    let mut only = CpuSet::new();
    only.set(core);
    // Refused in some sandboxes: then the thread runs where the system puts it, and the figures are a little worse.
    let _ = sched_setaffinity(None, &only);
}

/// What the processor calls itself.
pub(super) fn processor() -> String {
    let text = read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    name.map_or_else(|| std::env::consts::ARCH.into(), |(_, name)| name.trim().to_string())
}

/// Bytes that can be had without swapping: what the system offers, or what is left of the container's limit.
pub(super) fn available_bytes() -> Option<usize> {
    let number = |path: &str| read_to_string(path).ok()?.trim().parse::<usize>().ok();
    let text = read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let system = line.split_whitespace().next()?.parse::<usize>().ok()? << 10;
    let left = number("/sys/fs/cgroup/memory.max")
        .zip(number("/sys/fs/cgroup/memory.current"))
        .map(|(limit, used)| limit.saturating_sub(used));
    Some(left.map_or(system, |left| left.min(system)))
}

/// Seconds of a core's time that this process has used so far, in all threads.
pub(super) fn own_seconds() -> f64 {
    let used = clock_gettime(ClockId::ProcessCPUTime);
    used.tv_sec as f64 + used.tv_nsec as f64 * 1e-9
}

/// Seconds of the cores' time so far.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct CoreSeconds {
    busy: f64,
    all: f64,
}

/// Below this, the clock ticks in which the system counts are too coarse for a share.
const SHORTEST_SECONDS: f64 = 0.1;

impl CoreSeconds {
    /// Now, if the system tells.
    pub(super) fn now(cores: &[usize]) -> Option<CoreSeconds> {
        let ticks_per_second = rustix::param::clock_ticks_per_second() as f64;
        CoreSeconds::from_text(&read_to_string("/proc/stat").ok()?, cores, ticks_per_second)
    }

    fn from_text(text: &str, cores: &[usize], ticks_per_second: f64) -> Option<CoreSeconds> {
        let mut sum = CoreSeconds { busy: 0.0, all: 0.0 };
        for line in text.lines() {
            let Some((name, ticks)) = line.split_once(' ') else { continue };
            let number = name.strip_prefix("cpu").and_then(|number| number.parse::<usize>().ok());
            if !number.is_some_and(|number| cores.contains(&number)) {
                continue;
            }
            // user, nice, system, idle, waiting for IO, interrupts, soft interrupts, stolen by the hypervisor; guests are
            // part of user.
            let ticks: Vec<f64> = ticks.split_whitespace().take(8).filter_map(|t| t.parse().ok()).collect();
            let idle: f64 = ticks.get(3..5)?.iter().sum();
            let all: f64 = ticks.iter().sum();
            sum.busy += (all - idle) / ticks_per_second;
            sum.all += all / ticks_per_second;
        }
        (sum.all > 0.0).then_some(sum)
    }

    /// The share of the time since `earlier` that was spent on something else than the `own` seconds; nothing if it was
    /// too short to say.
    pub(super) fn foreign_share(&self, earlier: &CoreSeconds, own: f64) -> Option<f64> {
        let (busy, all) = (self.busy - earlier.busy, self.all - earlier.all);
        (all >= SHORTEST_SECONDS).then(|| ((busy - own) / all).clamp(0.0, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_core_and_memory() {
        let cores = cores();
        assert!(!cores.is_empty() && cores.is_sorted());
        assert!(!processor().is_empty());
        if cfg!(target_os = "linux") {
            assert!(available_bytes().is_some_and(|bytes| bytes > 1 << 20));
            assert!(CoreSeconds::now(&cores).is_some());
        }
    }

    #[test]
    fn foreign_load_is_what_is_neither_idle_nor_ours() {
        let at = |text: &str| CoreSeconds::from_text(text, &[0, 2], 100.0).expect("two cores");
        let before = at(
            "cpu 9 9 9 9 9 9 9 9\ncpu0 100 0 0 500 0 0 0 0 0 0\ncpu1 1 1 1 1 1 1 1 1\ncpu2 0 0 0 600 0 0 0 0 0 0\n",
        );
        let after =
            at("cpu0 150 0 10 540 0 0 0 0 0 0\ncpu1 9 9 9 9 9 9 9 9\ncpu2 40 0 0 640 10 0 0 10 0 0\n");
        // Two cores for a second: 1.1 s busy, of which 0.7 s were ours.
        let share = after.foreign_share(&before, 0.7).expect("long enough");
        assert!((share - 0.2).abs() < 1e-9, "{share}");
        assert_eq!(after.foreign_share(&before, 1.5), Some(0.0));
        assert_eq!(before.foreign_share(&before, 0.0), None);
    }
}
