#!/usr/bin/env python3
"""Runs esync beside Open MPI, MPICH, Intel MPI and Gloo on this host, interleaved in one run, and prints one table with ratios.

    benches/compare_libraries.py --quick                     # under 3 minutes
    benches/compare_libraries.py --tuned --output all.json   # under 25 minutes
    benches/compare_libraries.py --same-algorithm            # esync over MPI against that MPI's algorithms of the same name

float32 sums in place, one process a rank. A time is that of the slowest rank; each process reports the median over its calls,
and the table has the median over the rounds. In a round, for each number of ranks, every library runs one short process over
all sizes; each round begins with another library. Vectors are rewritten before each call, every element is checked, and the
exit code is 1 if one was wrong. Ratios closer to 1 than 1.15 are ties and marked ≈.

With --tuned each peer's algorithm settings are tried first; then the best of each cell runs in the rounds like a library of its
own. The peers are installed by pip, each into a folder of its own; one that cannot be had is named and left out.
"""

import argparse
import collections
import json
import os
import pathlib
import platform
import random
import signal
import statistics
import subprocess
import sys
import time

import realtime
from peers import same_algorithm
from peers.esync import Esync
from peers.libraries import CORES, DEFAULT, Missing, all_libraries
from peers.load import ForeignLoad
from peers.table import judge, markdown, medians, size_text

SIZES = [4, 1 << 10, 64 << 10, 1 << 20, 16 << 20, 64 << 20, 100_000_000]
QUICK_SIZES = [4, 1 << 10, 64 << 10, 1 << 20, 16 << 20]
RANKS, QUICK_RANKS = [2, 3, 4, 6, 8], [2, 4, 8]
LARGEST_TUNED = 64 << 20
# The largest share of the machine that other programs may have used without a word about it.
FOREIGN = 0.10


def say(text):
    print(text, file=sys.stderr, flush=True)


def parse_size(text):
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    number, unit = (text[:-1], units[text[-1].upper()]) if text[-1:].upper() in units else (text, 1)
    size = int(number) * unit
    if size <= 0 or size % 4:
        raise argparse.ArgumentTypeError(f"`{text}` is no multiple of 4 bytes")
    return size


def list_of(parse):
    return lambda text: [parse(word) for word in text.split(",")]


def end(process):
    """Ends a launcher and all its ranks: kindly, so that it can clean up, then not."""
    process.terminate()
    try:
        process.communicate(timeout=5)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def measure_peer(library, setting, ranks, sizes, seconds, timeout, warm_up=3):
    """Records by size. Raises `Missing` if the program fails."""
    arguments = ["--bytes", ",".join(map(str, sizes)), "--seconds", str(seconds), "--warm-up", str(warm_up),
                 "--label", setting.name]
    command, environment = library.command(ranks, setting, arguments)
    # In a session of its own, so that a launcher that hangs can be ended with all its ranks.
    process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        output, errors = process.communicate(timeout=timeout)
    except BaseException as error:
        end(process)
        if isinstance(error, subprocess.TimeoutExpired):
            raise Missing(f"{ranks} ranks did not end within {timeout:.0f} s") from error
        raise
    records = {}
    for line in filter(lambda line: line.startswith("{"), output.splitlines()):
        record = json.loads(line)
        records[record["bytes"]] = record
    if process.returncode not in (0, 1) or len(records) < len(sizes):
        lines = [line for line in errors.splitlines() if line.strip()] or ["no message"]
        raise Missing(f"{ranks} ranks ended with exit code {process.returncode}: {lines[0].strip()}")
    return records


class Comparison:
    """Everything that is measured in one call."""

    def __init__(self, options, libraries, esync):
        self.options, self.libraries, self.esync = options, libraries, esync
        # Records of the rounds by (ranks, bytes), then by (library's key, setting's or variant's name).
        self.records = collections.defaultdict(lambda: collections.defaultdict(list))
        # What tuning found: setting by (library's key, ranks, bytes).
        self.chosen = {}
        self.notes, self.loads = [], []

    def note(self, text):
        if text not in self.notes:
            self.notes.append(text)
            say(f"note: {text}")

    def tune(self):
        """Tries every setting once, in random order, and keeps the fastest of each cell."""
        # Vectors beyond 64 MiB take what is best there: nothing changes any more, and they take most of the time.
        sizes = [bytes_ for bytes_ in self.options.sizes if bytes_ <= LARGEST_TUNED] or self.options.sizes[:1]
        for ranks in self.options.ranks:
            tried = [(library, setting) for library in self.libraries for setting in library.settings(ranks)]
            random.Random(ranks).shuffle(tried)
            best = {}
            for library, setting in tried:
                try:
                    records = measure_peer(library, setting, ranks, sizes, self.options.tuning_seconds,
                                           self.options.tuning_timeout, warm_up=1)
                except Missing as missing:
                    self.note(f"tuning {library.title}, {setting.name}: {missing}")
                    continue
                for bytes_, record in records.items():
                    key = (library.key, ranks, bytes_)
                    if record["wrong"]:
                        self.note(f"tuning {library.title}, {setting.name}: wrong elements at {size_text(bytes_)}")
                    elif key not in best or record["median_us"] < best[key]:
                        best[key] = record["median_us"]
                        self.chosen[key] = setting
            for library in self.libraries:
                largest = self.chosen.get((library.key, ranks, sizes[-1]))
                for bytes_ in self.options.sizes:
                    if largest and bytes_ not in sizes:
                        self.chosen[library.key, ranks, bytes_] = largest
            say(f"tuned for {ranks} ranks: {len(tried)} settings, {time.monotonic() - self.options.begun:.0f} s")

    def programs(self, ranks):
        """What runs in a round: `(name, sizes, measure)`."""
        options, programs = self.options, []
        for library in self.libraries:
            settings = {DEFAULT: options.sizes}
            for bytes_ in options.sizes:
                chosen = self.chosen.get((library.key, ranks, bytes_))
                if chosen:
                    settings[chosen] = [*settings.get(chosen, []), bytes_]
            for setting, sizes in settings.items():
                measure = lambda library=library, setting=setting, sizes=sizes: measure_peer(
                    library, setting, ranks, sizes, options.seconds, options.timeout)
                programs.append(((library.key, setting.name), measure))
        if self.esync:
            for variant in self.esync.variants():
                measure = lambda variant=variant: self.esync.measure(
                    variant, ranks, options.sizes, options.seconds, options.timeout)
                programs.append((("esync", variant.key), measure))
        return programs

    def run(self):
        failed = set()
        for round_ in range(self.options.rounds):
            begun = time.monotonic()
            for ranks in self.options.ranks:
                programs = self.programs(ranks)
                start = round_ * len(programs) // max(self.options.rounds, 1)
                for name, measure in programs[start:] + programs[:start]:
                    if (name, ranks) in failed:
                        continue
                    try:
                        with ForeignLoad() as load:
                            records = measure()
                    except Missing as missing:
                        failed.add((name, ranks))
                        self.note(f"{' '.join(name)}: {missing}")
                        continue
                    self.loads.append(load.share)
                    for bytes_, record in records.items():
                        self.records[ranks, bytes_][name].append({**record, "foreign_load": round(load.share, 3)})
            now = time.monotonic()
            say(f"round {round_ + 1} of {self.options.rounds}: {now - self.options.begun:.0f} s")
            if round_ + 1 < self.options.rounds and 2 * now - begun - self.options.begun > 60 * self.options.minutes:
                self.note(f"{round_ + 1} of {self.options.rounds} rounds fitted into {self.options.minutes:g} minutes")
                break

    def cells(self):
        """One dictionary for each number of ranks and size."""
        titles = {library.key: library.title for library in self.libraries}
        cells = []
        for (ranks, bytes_), programs in sorted(self.records.items()):
            found = {name: medians(records) for name, records in programs.items()}
            cell = {"ranks": ranks, "bytes": bytes_, "default": {}, "tuned": {}, "esync": {}, "over_ceiling": {},
                    "programs": {" / ".join(name): figures for name, figures in found.items()}}
            ceilings = []
            for (key, setting), figures in found.items():
                if key == "esync":
                    cell["esync"][setting] = figures["median_us"]
                    cell["over_ceiling"][setting] = figures["over_ceiling"]
                    ceilings += [record["ceiling_us"] for record in programs[key, setting] if record.get("ceiling_us")]
                    continue
                if setting == DEFAULT.name:
                    cell["default"][titles[key]] = figures["median_us"]
                if self.options.tuned:
                    # The default counts as a setting too.
                    cell["tuned"][f"{titles[key]}, {setting}"] = figures["median_us"]
            # Each process of esync measures it; the host has one, and its median is no luckier than a time's.
            cell["ceiling_us"] = statistics.median(ceilings) if ceilings else None
            cell["verdict"] = judge(cell, bytes_)
            cells.append(cell)
        return cells

    def wrong(self):
        return sum(record["wrong"] or 0 for cell in self.records.values() for records in cell.values() for record in records)


def describe(comparison):
    options, libraries = comparison.options, comparison.libraries
    lines = [f"# esync beside {', '.join(library.title for library in libraries)}", ""]
    versions = [f"{library.title}: {library.version}" for library in libraries]
    if comparison.esync:
        versions.append(f"esync: {comparison.esync.version}, collective {comparison.esync.collective}")
    foreign = sorted(comparison.loads)[len(comparison.loads) // 2] if comparison.loads else 0
    most = max(comparison.loads, default=0)
    lines += [f"- {'; '.join(versions)}",
              f"- {CORES} cores, {platform.machine()}, Linux {platform.release()}; float32 sum in place, one process a rank",
              *(["- all at a real-time priority"] if options.realtime else []),
              f"- {options.rounds} rounds, {options.seconds} s for each size; medians over rounds; ≈ marks ratios below 1.15",
              f"- other programs used {100 * foreign:.0f}% of the cores (median; at most {100 * most:.0f}%)"
              + (": the figures are contaminated" if foreign > FOREIGN else "")]
    return lines + [f"- {note}" for note in comparison.notes] + [""]


def summary(cells):
    lines = [""]
    for kind in ("registered", "private"):
        judged = [cell["verdict"][kind] for cell in cells if cell["verdict"][kind] is not None]
        if judged:
            kept = sum(not failures for failures in judged)
            lines.append(f"{kind} buffers: {kept} of {len(judged)} cells keep what was promised")
    return lines


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer sizes, ranks and rounds: under 3 minutes")
    parser.add_argument("--tuned", action="store_true", help="also the best of each peer's algorithm settings")
    parser.add_argument("--same-algorithm", action="store_true",
                        help="esync's schedules over the system's Open MPI against its algorithms of the same name")
    parser.add_argument("--ranks", type=list_of(int), help="numbers of ranks, such as 2,4,8")
    parser.add_argument("--sizes", type=list_of(parse_size), help="bytes of a vector, such as 4,64K,100000000")
    parser.add_argument("--rounds", type=int, help="interleaved rounds (3; quick: 1)")
    parser.add_argument("--seconds", type=float, help="of timed calls for each size and process (0.4; quick: 0.2)")
    parser.add_argument("--tuning-seconds", type=float, default=0.05, help="the same while settings are tried")
    parser.add_argument("--minutes", type=float, default=25, help="begin no round that would end later (%(default)s)")
    parser.add_argument("--timeout", type=float, default=180, help="seconds after which a process is given up")
    parser.add_argument("--tuning-timeout", type=float, default=40, help="the same while settings are tried")
    realtime.add_flag(parser)
    parser.add_argument("--peers", type=pathlib.Path, help="folder for the installed peers (the user's cache)")
    parser.add_argument("--only", type=lambda text: text.split(","),
                        help="keys of peers: openmpi,mpich,impi,torch,system-openmpi; `none`: esync alone")
    parser.add_argument("--torch-python", help="a Python that has torch, instead of installing one (some GB)")
    parser.add_argument("--esync", help="the program (target/release/esync-bench); `none` leaves esync out")
    parser.add_argument("--collective", help="esync's collective (native; before shared memory exists: the fastest of all)")
    parser.add_argument("--output", type=pathlib.Path, help="write everything that was measured to this file, as JSON")
    options = parser.parse_args()
    options.ranks = options.ranks or (QUICK_RANKS if options.quick else RANKS)
    sizes = same_algorithm.SIZES if options.same_algorithm else QUICK_SIZES if options.quick else SIZES
    options.sizes = sorted(options.sizes or sizes)
    options.rounds = options.rounds or (1 if options.quick else 3)
    options.seconds = options.seconds or (0.2 if options.quick else 0.4)
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
    options.peers = (options.peers or cache / "esync" / "peers").resolve()
    options.begun = time.monotonic()
    realtime.obey_flag(parser, options)
    return options


def usable(options):
    """The libraries that can be had, and why the others cannot."""
    found, missing = [], []
    for library in all_libraries(options.peers, options.torch_python):
        if options.only and library.key not in options.only:
            continue
        try:
            library.install()
            found.append(library)
        except Missing as why:
            missing.append(f"{library.title} is missing: {why}")
    return found, missing


def main():
    options = parse_options()
    # As ^C, so that no launcher is left behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if options.same_algorithm:
        return same_algorithm.compare(options, measure_peer)
    libraries, missing = usable(options)
    esync = None
    if options.esync != "none":
        try:
            esync = Esync(options.esync, options.collective)
        except Missing as why:
            missing.append(f"esync is missing: {why}")
    comparison = Comparison(options, libraries, esync)
    for text in missing:
        comparison.note(text)
    if not libraries and not esync:
        say("nothing to compare")
        return 3
    # Installing took its time.
    options.begun = time.monotonic()
    if options.tuned:
        comparison.tune()
    comparison.run()
    cells = comparison.cells()
    if options.output:
        options.output.write_text(json.dumps({
            "cores": CORES, "rounds": options.rounds, "seconds": options.seconds, "notes": comparison.notes,
            "versions": {library.key: library.version for library in libraries}, "cells": cells}, indent=1) + "\n")
    variants = [variant.key for variant in esync.variants()] if esync else []
    print("\n".join(describe(comparison)))
    print(markdown(cells, [library.title for library in libraries], variants))
    print("\n".join(summary(cells)))
    if comparison.wrong():
        say(f"{comparison.wrong()} elements were wrong")
        return 1
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
