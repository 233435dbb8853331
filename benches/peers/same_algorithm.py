"""esync's schedules over MPI against the same MPI's own algorithms of the same name, on one host."""

import collections
import json
import sys

from peers.esync import Esync, Variant
from peers.libraries import Missing, SystemOpenMpi
from peers.load import ForeignLoad
from peers.table import medians, ratio_text, size_text, time_text

SIZES = [1 << 20, 4 << 20, 16 << 20, 64 << 20]

# esync's name, and Open MPI's for the same algorithm. Rabenseifner's is the butterfly.
PAIRS = [("ring", ("ring", "segmented-ring")), ("butterfly", ("rabenseifner",)),
         ("recursive-doubling", ("recursive-doubling",))]


def compare(options, measure_peer):
    """Interleaved rounds of every pair; prints one table. Returns the exit code."""
    try:
        library = SystemOpenMpi(options.peers)
        library.install()
        ours = {name: Esync(options.esync, name, "mpi") for name, _ in PAIRS}
    except Missing as why:
        print(why, file=sys.stderr)
        return 3
    variant = Variant("private", "fastest")
    records, loads = collections.defaultdict(list), []
    for round_ in range(options.rounds):
        for ranks in options.ranks:
            runs = []
            for name, theirs in PAIRS:
                runs.append((("esync", name), lambda name=name: ours[name].measure(
                    variant, ranks, options.sizes, options.seconds, options.timeout)))
                for algorithm in theirs:
                    runs.append((("theirs", algorithm), lambda algorithm=algorithm: measure_peer(
                        library, library.algorithm(algorithm), ranks, options.sizes, options.seconds, options.timeout)))
            start = round_ % len(runs)
            for (side, name), measure in runs[start:] + runs[:start]:
                with ForeignLoad() as load:
                    found = measure()
                loads.append(load.share)
                for bytes_, record in found.items():
                    records[ranks, bytes_, side, name].append(record)
    figures = {key: medians(of_cell) for key, of_cell in records.items()}
    report(figures, options, library, sorted(loads))
    if options.output:
        cells = [dict(zip(("ranks", "bytes", "side", "algorithm"), key), **found) for key, found in figures.items()]
        options.output.write_text(json.dumps(cells, indent=1) + "\n")
    wrong = sum(found["wrong"] for found in figures.values())
    return 1 if wrong else 0


def report(figures, options, library, loads):
    print(f"# esync over {library.title} against its own algorithms of the same name, forced\n")
    print(f"Other programs used {100 * loads[len(loads) // 2]:.0f}% of the cores (median). {options.rounds} rounds.\n")
    print("| ranks | size | algorithm | esync | Open MPI, of medians | ratio | ratio of minima |\n|---|---|---|---|---|---|---|")
    for ranks in options.ranks:
        for bytes_ in options.sizes:
            for name, theirs in PAIRS:
                own = figures[ranks, bytes_, "esync", name]
                peers = {algorithm: figures[ranks, bytes_, "theirs", algorithm] for algorithm in theirs}
                best = min(peers, key=lambda algorithm: peers[algorithm]["median_us"])
                least = min(found["min_us"] for found in peers.values())
                print(f"| {ranks} | {size_text(bytes_)} | {name} | {time_text(own['median_us'])} | "
                      f"{time_text(peers[best]['median_us'])} ({best}) | {ratio_text(own['median_us'], peers[best]['median_us'])} | "
                      f"{own['min_us'] / least:.2f} |")
