#!/usr/bin/env python3
"""Simulates the set-ups of published results, and prints what was published beside what `esync sim` finds.

    benches/published_shapes.py --data-dir MNIST --text-file input.txt --output shapes.json
    benches/published_shapes.py --only esync --only wbsp --text-file input.txt
    benches/published_shapes.py --quick --data-dir MNIST --text-file input.txt

MNIST is the directory of MNIST's IDX files (the t10k pair is enough: 8,000 images to train, 2,000 to test), `--text-file` any
plain text (tinyshakespeare). Clusters, targets, budgets and grids of learning rates stand in `benches/shapes/`, one file for
each paper; all policies of a comparison have the same. Simulated, so that other programs on the machine change nothing but
the time that it takes. Build first: `launch/bootstrap && cargo build --release`.

The exit code is 0 if every simulation ran, whatever it found, and 1 if one failed.
"""

import argparse
import json
import pathlib
import sys
import time

from shapes.adsp import adsp
from shapes.bounded_delay import bounded_delay
from shapes.claim import markdown
from shapes.diloco import diloco
from shapes.esync import esync
from shapes.hermes import hermes
from shapes.simulator import Failed, Simulator
from shapes.wbsp import wbsp

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAPERS = {"esync": esync, "adsp": adsp, "wbsp": wbsp, "hermes": hermes, "bounded-delay": bounded_delay, "diloco": diloco}


class Choice:
    """What the papers' files ask of the command line."""

    def __init__(self, quick, data_dir, text_file):
        self.quick, self.data_dir, self.text_file = quick, data_dir, text_file
        self.seeds = 1 if quick else 3
        # Where a simulation takes long.
        self.few_seeds = 1 if quick else 2

    def rates(self, *grid):
        """The grid of learning rates; its middle if it has to be quick."""
        return [grid[len(grid) // 2]] if self.quick else list(grid)

    def mnist(self):
        return ["--dataset", "mnist", "--data-dir", self.needed(self.data_dir, "--data-dir")]

    def characters(self):
        return ["--network", "char-mlp", "--dataset", "tinyshakespeare", "--data-dir",
                self.needed(self.text_file, "--text-file"), "--batch-size", "32"]

    def needed(self, path, flag):
        if path is None:
            raise Failed(f"give {flag}, or leave this paper out with --only")
        return str(path)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=pathlib.Path, metavar="DIR", help="the directory of MNIST's IDX files")
    parser.add_argument("--text-file", type=pathlib.Path, metavar="FILE", help="a plain text for the character model")
    parser.add_argument("--only", action="append", choices=PAPERS, metavar="NAME",
                        help=f"one of {', '.join(PAPERS)}; may be given several times (all)")
    parser.add_argument("--quick", action="store_true", help="one seed, one learning rate, easier targets: to see that it runs")
    parser.add_argument("--jobs", type=int, default=1, help="simulations at a time (%(default)s)")
    parser.add_argument("--esync", default=ROOT / "target/release/esync", help="the program (%(default)s)")
    parser.add_argument("--keep", type=pathlib.Path, metavar="DIR", help="keep the files of all runs there, for `esync plot`")
    parser.add_argument("--output", type=pathlib.Path, metavar="FILE", help="write all figures to this file, as JSON")
    options = parser.parse_args(arguments)
    simulator = Simulator(options.esync, options.jobs, options.keep)
    choice = Choice(options.quick, options.data_dir, options.text_file)
    claims, failed = [], False
    for name in options.only or PAPERS:
        began, before = time.monotonic(), simulator.simulations
        try:
            claims += PAPERS[name](simulator, choice)
        except Failed as why:
            print(f"{name}: {why}", file=sys.stderr)
            failed = True
        print(f"# {name}: {simulator.simulations - before} simulations in {time.monotonic() - began:.0f} s", file=sys.stderr,
              flush=True)
    for claim in claims:
        rates = claim.figures.get("learning_rates")
        if rates:
            print(f"{claim.claim}: best learning rates " + ", ".join(f"{name} {rate:g}" for name, rate in rates.items()))
    print("\n" + markdown(claims))
    if options.output:
        options.output.write_text(json.dumps([claim.record() for claim in claims], indent=1, ensure_ascii=False) + "\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
