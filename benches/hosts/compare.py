"""Every collective of esync-bench across the hosts: time, and bytes over each link."""

import collections
import json
import pathlib
import random
import re
import statistics
import subprocess
import sys
import tempfile

from hosts.launch import Failed, output_of
from hosts.network import Hosts, NotPossible
from peers.esync import known_flags

# Ratios closer to 1 than this are ties.
TIE = 1.15
OPERATION = "all-reduce"


def parse_size(text):
    units = {"K": 1 << 10, "M": 1 << 20}
    return int(text[:-1]) * units[text[-1]] if text[-1] in units else int(text)


def collectives_of(program):
    """The names that the program knows. It lists them when it is given another."""
    try:
        done = subprocess.run([program, "--ranks", "1", "--collective", "?"], capture_output=True, text=True)
    except OSError as error:
        raise NotPossible(f"{program}: {error.strerror}; build it with `cargo build --release`") from error
    names = re.findall(r"`([a-z][a-z-]*)`", done.stderr.partition("choose one of")[2])
    names = [name for name in dict.fromkeys(names) if name != "all"]
    if not names:
        raise NotPossible(f"{program} does not say which collectives it has: {done.stderr.strip()}")
    return names


class Cell:
    """One collective at one length on one layout."""

    def __init__(self):
        self.times, self.minima, self.sent, self.links, self.wrong = [], [], [], [], 0

    def add(self, record, traffic):
        # Each call moves the same bytes, the entry's short messages and the barrier's included; starting MPI does not count.
        calls = record["iterations"]
        self.times.append(record["time_us"]["median"])
        self.minima.append(record["time_us"]["min"])
        self.sent.append(sum(sent for sent, _ in traffic) / calls)
        self.links.append([[sent / calls, received / calls] for sent, received in traffic])
        self.wrong += record["wrong"] or 0

    def figures(self):
        return {"median_us": statistics.median(self.times), "min_us": min(self.minima),
                "bytes_over_links": statistics.median(self.sent),
                "links": [[statistics.median(one[host][way] for one in self.links) for way in (0, 1)]
                          for host in range(len(self.links[0]))], "rounds": len(self.times), "wrong": self.wrong}


class Comparison:
    def __init__(self, options, hosts, slots, names):
        self.options, self.hosts, self.slots, self.names = options, hosts, slots, names
        self.sizes = [parse_size(word) for word in options.sizes.split(",")]
        help_text = subprocess.run([options.esync, "--help"], capture_output=True, text=True).stdout
        # One record a run, of calls that are all counted.
        self.fixed = known_flags(help_text, {"--buffers": "private", "--placement": "in", "--refresh": "rewrite",
                                             "--timing": "barrier", "--ceiling": "off", "--repeat-contaminated": "0"})
        self.fixed += ["--order", options.order]
        self.launcher_flags = ()
        self.cells = collections.defaultdict(Cell)
        self.refused = {}

    def probe(self, folder):
        """Lets `esync probe` measure the hosts; `auto` reads the file, which every host sees."""
        file = pathlib.Path(folder) / "cluster.toml"
        program = pathlib.Path(self.options.esync).parent / "esync"
        output_of(self.hosts, self.slots, [str(program), "probe", "--transport", "mpi", "--budget", self.options.probe,
                                           "--output", str(file)], timeout=300)
        self.launcher_flags = ("-x", f"ESYNC_TOPOLOGY={file}")

    def bench(self, name, bytes_, *flags):
        command = [self.options.esync, "--transport", "mpi", "--op", OPERATION, "--collective", name, "-b", str(bytes_), "-e",
                   str(bytes_), "--seconds-per-size", str(self.options.seconds), "--format", "json", "--timeout", "60s",
                   *self.fixed, *flags]
        output, traffic = output_of(self.hosts, self.slots, command, 150, self.launcher_flags)
        records = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
        if len(records) != 1:
            raise Failed(f"`{' '.join(command)}` printed {len(records)} records, not one")
        return records[0], traffic

    def check(self):
        """Every collective once with every element checked; those that fail are left out."""
        for name in list(self.names):
            try:
                record, _ = self.bench(name, min(self.sizes), "-n", "1", "-w", "0")
            except Failed as why:
                self.names.remove(name)
                self.refused[name] = str(why)
                print(f"note: left out: {name}: {why}", file=sys.stderr)
                continue
            if record["wrong"]:
                raise Failed(f"{name}: {record['wrong']} wrong elements")

    def start_bytes(self):
        """What starting and ending MPI moves, for each host: a run of next to nothing."""
        _, traffic = self.bench(self.names[0], 4, "-n", "1", "-w", "0", "-c", "0")
        return traffic

    def run(self):
        self.check()
        start = self.start_bytes()
        for round_ in range(self.options.rounds):
            for bytes_ in self.sizes:
                order = random.Random(f"{round_} {bytes_}").sample(self.names, len(self.names))
                for name in order:
                    # Unchecked and not warmed up, so that every byte belongs to a call that is counted. A median does not
                    # mind the first, slower call.
                    record, traffic = self.bench(name, bytes_, "-w", "0", "-c", "0")
                    traffic = [(max(0, sent - idle[0]), max(0, received - idle[1]))
                               for (sent, received), idle in zip(traffic, start)]
                    self.cells[bytes_, name].add(record, traffic)
            print(f"{'+'.join(map(str, self.slots))}: round {round_ + 1} of {self.options.rounds}", file=sys.stderr)

    def figures(self):
        return [{"slots": self.slots, "bytes": bytes_, "collective": name, **cell.figures()}
                for (bytes_, name), cell in sorted(self.cells.items(), key=lambda item: (item[0][0], item[1].figures()["median_us"]))]

    def markdown(self):
        layout = "+".join(map(str, self.slots))
        rates = ", ".join(host.rate for host in self.hosts.hosts)
        lines = [f"## {layout} ranks, links of {rates}, order {self.options.order}", "",
                 "| bytes | collective | time | over the fastest | sent over all links / bytes | busiest link / bytes |",
                 "|---|---|---|---|---|---|"]
        winners = []
        for bytes_ in self.sizes:
            figures = {name: self.cells[bytes_, name].figures() for name in self.names}
            by_time = sorted(figures, key=lambda name: figures[name]["median_us"])
            best = figures[by_time[0]]["median_us"]
            for name in by_time:
                own = figures[name]
                ratio = own["median_us"] / best
                busiest = max(way for link in own["links"] for way in link)
                tie = "≈ " if 1 < ratio < TIE else ""
                lines.append(f"| {bytes_} | {name} | {own['median_us'] / 1e3:.2f} ms | {tie}{ratio:.2f} | "
                             f"{own['bytes_over_links'] / bytes_:.2f} | {busiest / bytes_:.2f} |")
            ties = [name for name in by_time if figures[name]["median_us"] < TIE * best]
            least = min(figures, key=lambda name: figures[name]["bytes_over_links"])
            winners.append(f"- {bytes_} bytes: fastest {' ≈ '.join(ties)}; fewest bytes over the links: {least}")
        return "\n".join([*lines, "", *winners, ""])


def compare(options, rates_of):
    names = options.collectives.split(",") if options.collectives else collectives_of(options.esync)
    found = []
    for slots in options.slots:
        with Hosts(rates_of(options, len(slots))) as hosts:
            comparison = Comparison(options, hosts, slots, list(names))
            with tempfile.TemporaryDirectory() as folder:
                if options.probe != "0":
                    comparison.probe(folder)
                comparison.run()
            found.append({"slots": slots, "rates": [host.rate for host in hosts.hosts], "refused": comparison.refused,
                          "cells": comparison.figures()})
            print(comparison.markdown(), flush=True)
    if options.output:
        options.output.write_text(json.dumps(found, indent=1) + "\n")
    return 0
