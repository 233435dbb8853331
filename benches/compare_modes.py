#!/usr/bin/env python3
"""Compares `--mode esync` with `--mode sync` on unequal and on equal workers, under mpirun, in interleaved runs.

    benches/compare_modes.py --data-dir DIR [--ranks 8] [--runs 3]

DIR holds MNIST's files (its t10k pair is enough). Prints, for each workload, the best learning rate of each mode out of a
grid, the median time to 95% at that rate, their ratio, and what the workers spent their time on. Build first:
`launch/bootstrap && cargo build --release`.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
RATES = ["0.02", "0.05", "0.1"]


def run(arguments, ranks, flags):
    """One run's summary.json."""
    environment = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1",
                       OMPI_MCA_rmaps_base_oversubscribe="1")
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder, "run")
        command = ["mpirun", "-n", str(ranks), str(ROOT / "target/release/esync-train"),
                   "--progress", "none", "--out", str(out), *arguments, *flags]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        # 8: the target was not reached; those runs count as infinitely long.
        if done.returncode not in (0, 8):
            raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
        return json.loads((out / "summary.json").read_text())


def seconds(summary):
    return summary["time_to_target_seconds"] or float("inf")


def to_target(name, workload, slow, epochs, options):
    print(f"\n## {name}: seconds of training to 95%, {options.ranks} ranks, --slow {slow}")
    flags = [*workload, "--batch-size", "32", "--target-accuracy", "0.95", "--slow", slow, "--epochs", str(epochs)]
    best = {}
    for mode in ["sync", "esync"]:
        times = {}
        for rate in RATES:
            times[rate] = seconds(run(["--mode", mode, "--learning-rate", rate], options.ranks, flags))
        best[mode] = min(times, key=times.get)
        print(f"{mode:6} by learning rate: " + ", ".join(f"{rate}: {time:.2f}" for rate, time in times.items())
              + f"  -> {best[mode]}", flush=True)
    runs = {"sync": [], "esync": []}
    for _ in range(options.runs):
        for mode in runs:
            runs[mode].append(run(["--mode", mode, "--learning-rate", best[mode]], options.ranks, flags))
    median = {mode: statistics.median(map(seconds, summaries)) for mode, summaries in runs.items()}
    for mode, summaries in runs.items():
        fast = [w for s in summaries for w in s["workers"][:-1]]
        waiting = statistics.median(w["wait_seconds"] / w["total_seconds"] for w in fast)
        print(f"{mode:6} median {median[mode]:.2f} s of {[round(seconds(s), 2) for s in summaries]}, "
              f"{statistics.median(s['exchanges'] for s in summaries):.0f} exchanges, "
              f"fast workers wait {100 * waiting:.1f}% of the time")
    print(f"esync is {median['sync'] / median['esync']:.1f} times sooner", flush=True)


def per_sample(name, workload, options):
    print(f"\n## {name}: microseconds of training per sample, {options.ranks} equal ranks")
    flags = [*workload, "--batch-size", "32", "--max-samples", "40960", "--eval-every", "1000000"]
    cost = {"sync": [], "esync": []}
    shares = []
    for _ in range(5):
        for mode, costs in cost.items():
            summary = run(["--mode", mode], options.ranks, flags)
            costs.append(1e6 / summary["samples_per_second"])
            if mode == "esync":
                shares += [w["decide_seconds"] / w["compute_seconds"] for w in summary["workers"]]
    median = {mode: statistics.median(costs) for mode, costs in cost.items()}
    for mode, costs in cost.items():
        print(f"{mode:6} median {median[mode]:.1f} of {[round(c, 1) for c in costs]}")
    print(f"esync / sync = {median['esync'] / median['sync']:.3f}; deciding (the query and the policy) costs "
          f"{100 * statistics.median(shares):.2f}% of computing", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    mnist = ["--network", "lenet", "--dataset", "mnist", "--data-dir", options.data_dir]
    last = options.ranks - 1
    per_sample("MNIST LeNet", mnist, options)
    to_target("digits MLP", ["--network", "mlp", "--dataset", "digits"], f"{last}:20ms", 30, options)
    to_target("MNIST LeNet", mnist, f"{last}:400ms", 5, options)


if __name__ == "__main__":
    main()
