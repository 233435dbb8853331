#!/usr/bin/env python3
"""Trains in every mode to 95% test accuracy and says which of them got there: on digits with default flags, on MNIST with
one budget and one learning rate for all (SIMULATED).

    benches/all_modes.py [--ranks 8] [--seeds 3]                      digits, one rank four times slower, under mpirun
    benches/all_modes.py --sim --data-dir DIR [--seeds 1]             MNIST on the cluster wbsp-10, in the simulator

DIR holds MNIST's files (its t10k pair is enough). Exit code 1 if a run did not reach the target. Build first:
`launch/bootstrap && cargo build --release`.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Every mode that trains together, as `--mode` lists them.
MODES = ["esync", "sync", "local-sgd", "post-local-sgd", "adacomm", "diloco", "streaming-diloco", "wbsp", "wbsp-overlap",
         "async-diloco", "hermes", "adsp", "async", "dc-asgd", "ssp", "bounded-delay", "easgd", "r2sp"]
TARGET = ["--target-accuracy", "0.95", "--progress", "none"]
# Defaults are for digits. On MNIST ten passes are too few for the slowest modes, and rate 0.05 is too much for LeNet where
# momentum acts on both sides of the exchange; delayed Nesterov, which renews it once in ten pushes, wants an outer rate to match.
SIMULATED = ["--epochs", "30", "--learning-rate", "0.01"]
SIMULATED_MODE = {"async-diloco": ["--global-lr", "0.2"]}


def command(mode, seed, options):
    own = ["--mode", mode, "--seed", str(seed), *TARGET]
    if options.sim:
        return [str(ROOT / "target/release/esync"), "sim", "--cluster", "wbsp-10", "--dataset", "mnist", "--data-dir",
                options.data_dir, "--network", options.network, *SIMULATED, *SIMULATED_MODE.get(mode, []), *own]
    return ["mpirun", "-n", str(options.ranks), str(ROOT / "target/release/esync-train"), "--slow", f"{options.ranks - 1}:4x",
            *own]


def run(mode, seed, options):
    """The exit code and the summary, if there is one."""
    environment = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1",
                       OMPI_MCA_rmaps_base_oversubscribe="1")
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder, "run")
        done = subprocess.run([*command(mode, seed, options), *options.flags, "--out", str(out)], env=environment,
                              capture_output=True, text=True)
        found = out / "summary.json"
        if not found.exists():
            print(done.stdout + done.stderr, file=sys.stderr)
            return done.returncode, None
        return done.returncode, json.loads(found.read_text())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=3, help="runs of each mode, with seeds from 1 on")
    parser.add_argument("--modes", default=",".join(MODES))
    parser.add_argument("--sim", action="store_true", help="in the simulator, with MNIST")
    parser.add_argument("--data-dir", help="of MNIST, for --sim")
    parser.add_argument("--network", default="lenet", help="for --sim")
    parser.add_argument("flags", nargs="*", help="more flags of the program, after --")
    options = parser.parse_args()
    if options.sim and not options.data_dir:
        parser.error("--sim needs --data-dir")
    print("| mode | seed | exit code | accuracy | samples | seconds to 95% | passes of all data | wall |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    missed = 0
    for mode in options.modes.split(","):
        for seed in range(1, options.seeds + 1):
            began = time.monotonic()
            code, summary = run(mode, seed, options)
            wall = time.monotonic() - began
            missed += code != 0
            if summary is None:
                print(f"| `{mode}` | {seed} | {code} | – | – | – | – | {wall:.1f} s |", flush=True)
                continue
            reached = summary["time_to_target_seconds"]
            training = 8000 if options.sim else 1437
            print(f"| `{mode}` | {seed} | {code} | {100 * summary['final_accuracy']:.2f}% | {summary['samples']} | "
                  f"{'–' if reached is None else f'{reached:.3f}'} | {summary['samples'] / training:.1f} | {wall:.1f} s |", flush=True)
    print(f"\n{missed} runs did not reach the target" if missed else "\nall runs reached the target")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
