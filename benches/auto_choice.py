#!/usr/bin/env python3
"""Is `--collective auto` ever much slower than the best fixed algorithm of the same order?

For every number of ranks: `esync probe` measures (into a file of its own), then `esync-bench` runs every fixed algorithm
and `auto` in turn, several times over, and a table gives the ratio of medians for each size. Exit code 1 if a ratio is
above the limit.

    benches/auto_choice.py --ranks 2,3,4,8 --transport mpi,threads --order canonical,fastest
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict

LIMIT = 1.15

# What accepts the canonical order, and what competes beside it in the order `fastest`.
CANONICAL = ["butterfly", "binary-blocks", "parameter-server", "recursive-doubling", "hierarchical"]
FASTEST = CANONICAL + ["ring", "circulant", "double-tree", "native"]


def launched(program, ranks, transport, arguments, environment):
    """The program's standard output, on so many ranks."""
    if transport == "mpi":
        command = ["mpirun", "-n", str(ranks), program, *arguments]
    else:
        command = [program, arguments[0], "--ranks", str(ranks), *arguments[1:]] if arguments[0] == "probe" else [
            program, "--ranks", str(ranks), *arguments]
    command += ["--transport", transport]
    return subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", default="2,3,4,6,8")
    parser.add_argument("--transport", default="threads,mpi")
    parser.add_argument("--order", default="canonical,fastest")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--largest", default="16M", help="largest vector")
    parser.add_argument("--factor", type=int, default=4, help="from one size to the next")
    parser.add_argument("--seconds-per-size", default="0.05")
    parser.add_argument("--budget", default="20s", help="time of each probe")
    parser.add_argument("--folder", default="target/release", help="where the programs are")
    options = parser.parse_args()
    programs = {name: os.path.join(options.folder, name) for name in ("esync", "esync-bench")}
    environment = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1",
                       OMPI_MCA_rmaps_base_oversubscribe="1")
    worst = 0.0
    print(f"{'transport':10}{'ranks':>6}{'order':>11}{'bytes':>10}{'best fixed':>20}{'µs':>10}{'auto µs':>10}{'ratio':>7}")
    for transport in options.transport.split(","):
        for ranks in map(int, options.ranks.split(",")):
            with tempfile.TemporaryDirectory() as folder:
                topology = os.path.join(folder, "cluster.toml")
                launched(programs["esync"], ranks, transport,
                         ["probe", "--output", topology, "--budget", options.budget], environment)
                environment["ESYNC_TOPOLOGY"] = topology
                for order in options.order.split(","):
                    worst = max(worst, compare(programs["esync-bench"], ranks, transport, order, options, environment))
                del environment["ESYNC_TOPOLOGY"]
    print(f"worst ratio {worst:.2f}, limit {LIMIT}")
    sys.exit(worst > LIMIT)


def compare(bench, ranks, transport, order, options, environment):
    """Prints a row for each size, and answers the largest ratio."""
    medians = defaultdict(lambda: defaultdict(list))
    collectives = ["auto", *(CANONICAL if order == "canonical" else FASTEST)]
    for repetition in range(options.repetitions):
        # Each time in another order, so that none always follows the same one.
        turn = repetition % len(collectives)
        output = launched(bench, ranks, transport,
                          ["-b", "4", "-e", options.largest, "-f", str(options.factor), "-c", "0", "--placement", "in",
                           "--buffers", "private", "--ceiling", "off", "--order", order,
                           "--seconds-per-size", options.seconds_per_size, "--format", "json",
                           "--collective", ",".join(collectives[turn:] + collectives[:turn])], environment)
        for line in output.splitlines():
            record = json.loads(line)
            medians[record["bytes"]][record["collective"]].append(record["time_us"]["median"])
    worst = 0.0
    for size, by_collective in sorted(medians.items()):
        times = {name: statistics.median(values) for name, values in by_collective.items()}
        auto = times.pop("auto")
        best = min(times, key=times.get)
        ratio = auto / times[best]
        worst = max(worst, ratio)
        print(f"{transport:10}{ranks:6}{order:>11}{size:10}{best:>20}{times[best]:10.1f}{auto:10.1f}{ratio:7.2f}", flush=True)
    return worst


if __name__ == "__main__":
    main()
