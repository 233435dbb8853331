#!/usr/bin/env python3
"""Holds the simulator against reality: four ranks whose steps take 20, 20, 20 and 60 ms, run and simulated.

    benches/sim_versus_real.py [--runs 5] [--modes sync,esync,adsp,ssp] [--launcher mpirun|threads]

The ranks sleep after each step of a small network, so that other programs on the machine hardly matter, and the simulator is
given the sleeps as step times. Both have the same flags and seeds. Prints, for each mode, the median time to 95% on digits and
each worker's median number of local steps until then, and how far the simulated ones are off. Exit code 1 if that is more than
10% for `sync` and `esync`, or 20% for the others. Build first: `launch/bootstrap && cargo build --release`.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
STEP_MILLISECONDS = [20, 20, 20, 60]
# Slow enough that a round or an evaluation more or less is less than a few percent of the time to the target.
FLAGS = ["--batch-size", "32", "--learning-rate", "0.005", "--eval-every", "128", "--epochs", "300",
         "--target-accuracy", "0.95", "--progress", "none"]
CLUSTER = """version = 1

[[hosts]]
name = "here"
ranks = 4
cores = 2
reduce_seconds_per_byte = 1e-10

[[links]]
hosts = "same"
latency_seconds = 20e-6
bandwidth_bytes_per_second = 5e9
""" + "".join(f"""
[[workers]]
ranks = [{rank}]
step_seconds = {milliseconds / 1e3}
""" for rank, milliseconds in enumerate(STEP_MILLISECONDS))


def summary(command, out):
    environment = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1",
                       OMPI_MCA_rmaps_base_oversubscribe="1")
    done = subprocess.run([*command, "--out", str(out)], env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}\nexit code {done.returncode}\n{done.stdout}{done.stderr}")
    return json.loads((out / "summary.json").read_text())


def run(mode, seed, launcher, folder):
    size = str(len(STEP_MILLISECONDS))
    slow = ",".join(f"{rank}:{milliseconds}ms" for rank, milliseconds in enumerate(STEP_MILLISECONDS))
    program = str(ROOT / "target/release/esync-train")
    begin = ["mpirun", "-n", size, program] if launcher == "mpirun" else [program, "--ranks", size]
    return summary([*begin, "--mode", mode, "--seed", str(seed), "--slow", slow, *FLAGS], folder / f"real-{mode}-{seed}")


def simulate(mode, seed, folder):
    command = [str(ROOT / "target/release/esync"), "sim", "--cluster", str(folder / "cluster.toml"), "--mode", mode,
               "--seed", str(seed), *FLAGS]
    return summary(command, folder / f"simulated-{mode}-{seed}")


def figures(summaries):
    """The median time to the target, and each worker's median local steps."""
    seconds = statistics.median(each["time_to_target_seconds"] for each in summaries)
    workers = range(len(STEP_MILLISECONDS))
    return seconds, [statistics.median(each["workers"][rank]["local_steps"] for each in summaries) for rank in workers]


def off(simulated, real):
    return simulated / real - 1


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="runs with as many seeds; their medians are compared")
    parser.add_argument("--modes", default="sync,esync,adsp,ssp")
    parser.add_argument("--launcher", choices=["mpirun", "threads"], default="mpirun")
    options = parser.parse_args()
    is_within = True
    print("| mode | real time to 95% (medians) | simulated | off by | local steps of each worker, real | simulated | off by at most | bound |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        (folder / "cluster.toml").write_text(CLUSTER)
        seeds = range(1, options.runs + 1)
        for mode in options.modes.split(","):
            bound = 0.1 if mode in ("sync", "esync") else 0.2
            real_runs = [run(mode, seed, options.launcher, folder) for seed in seeds]
            real_seconds, real_steps = figures(real_runs)
            seconds, steps = figures([simulate(mode, seed, folder) for seed in seeds])
            time_off = off(seconds, real_seconds)
            steps_off = max((off(a, b) for a, b in zip(steps, real_steps)), key=abs)
            is_within &= max(abs(time_off), abs(steps_off)) <= bound
            spread = [each["time_to_target_seconds"] for each in real_runs]
            words = lambda counts: " ".join(f"{count:.0f}" for count in counts)
            print(f"| `{mode}` | {real_seconds:.2f} s [{min(spread):.2f}, {max(spread):.2f}] | {seconds:.2f} s | "
                  f"{100 * time_off:+.1f}% | {words(real_steps)} | {words(steps)} | {100 * steps_off:+.1f}% | {100 * bound:.0f}% |",
                  flush=True)
    return 0 if is_within else 1


if __name__ == "__main__":
    sys.exit(main())
