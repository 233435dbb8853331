#!/usr/bin/env python3
"""Tests of the comparison scripts' own arithmetic and of their hosts: `python3 benches/test_tools.py`.

The test of the hosts is skipped where network namespaces are not allowed, that of `allreduce.c` where there is no Open MPI, and
that of the simulations where the program `esync` has not been built.
"""

import argparse
import contextlib
import io
import json
import pathlib
import subprocess
import sys
import tempfile
import tomllib
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import compare_libraries
import published_shapes
import three_hosts
from hosts.compare import Cell
from hosts.network import Hosts, NotPossible, processes
from peers.esync import sweeps
from peers.libraries import DEFAULT, Missing, Mpich, OpenMpi, SystemOpenMpi
from peers.table import judge, markdown, medians, ratio_text, size_text, time_text
from shapes import claim
from shapes.clusters import cluster
from shapes.simulator import median_of, time_to_target


def expand(first, last, factor):
    size = first
    while size <= last:
        yield size
        size *= factor


class Sizes(unittest.TestCase):
    def test_sweeps_cover_every_size_once_and_are_few(self):
        for sizes in (compare_libraries.SIZES, compare_libraries.QUICK_SIZES, [4], [4, 6, 12], [8, 16, 32, 100]):
            found = [size for sweep in sweeps(sizes) for size in expand(*sweep)]
            self.assertEqual(sorted(found), sizes)
        self.assertEqual(sweeps([4, 1 << 10, 64 << 10, 1 << 20, 16 << 20]), [(4, 1024, 256), (65536, 16 << 20, 16)])

    def test_sizes_have_suffixes_and_whole_elements(self):
        self.assertEqual(compare_libraries.parse_size("64k"), 65536)
        for wrong in ("3", "0"):
            self.assertRaises(argparse.ArgumentTypeError, compare_libraries.parse_size, wrong)

    def test_slots_and_rates(self):
        self.assertEqual(three_hosts.parse_slots("3+2+1"), [3, 2, 1])
        options = argparse.Namespace(rate="1gbit", slow="2:100mbit")
        self.assertEqual(three_hosts.rates_of(options, 3), ["1gbit", "1gbit", "100mbit"])
        self.assertRaises(SystemExit, three_hosts.rates_of, argparse.Namespace(rate="1gbit", slow="3:1mbit"), 3)


class Table(unittest.TestCase):
    def cell(self, bytes_, default, tuned, ceiling, **esync):
        esync = {name.replace("_", " "): time for name, time in esync.items()}
        return {"ranks": 2, "bytes": bytes_, "default": {"Open MPI 5": default}, "tuned": {"Intel MPI, adjust 3": tuned},
                "esync": esync, "over_ceiling": {name: time / ceiling for name, time in esync.items() if ceiling},
                "ceiling_us": ceiling}

    def judged(self, bytes_, *arguments, **esync):
        return judge(self.cell(bytes_, *arguments, **esync), bytes_)

    def test_a_cell_that_keeps_everything(self):
        found = self.judged(64 << 20, 300, 240, 85, registered_canonical=100, private_fastest=180)
        self.assertEqual(found, {"registered": [], "private": []})

    def test_each_promise_can_be_broken(self):
        found = self.judged(64 << 20, 239, 229, 79, registered_canonical=100, private_fastest=180)
        self.assertEqual([text.split()[0] for text in found["registered"]], ["1.27", "2.39", "2.29"])
        self.assertEqual([text.split()[0] for text in found["private"]], ["1.27"])
        # At 1 MiB the private buffers only have to be no slower, and a tie is no failure.
        self.assertEqual(self.judged(1 << 20, 100, 90, None, private_fastest=103)["private"], [])
        self.assertEqual(len(self.judged(1 << 20, 100, 80, None, private_fastest=120)["private"]), 2)

    def test_what_was_not_measured_is_not_judged(self):
        self.assertEqual(self.judged(4, 1, 1, None), {"registered": None, "private": None})
        # Four bytes have no limit over the ceiling, and none over the tuned peers.
        self.assertEqual(self.judged(4, 30, 1, 0.1, registered_canonical=10)["registered"], [])

    def test_texts(self):
        self.assertEqual([time_text(time) for time in (0.5, 23.4, 12345, 2.5e6, None)],
                         ["0.50 µs", "23.4 µs", "12.3 ms", "2.50 s", "–"])
        self.assertEqual([size_text(size) for size in (4, 1024, 64 << 20, 100_000_000)], ["4 B", "1 KiB", "64 MiB", "100 MB"])
        self.assertEqual([ratio_text(*pair) for pair in ((2, 1), (1.1, 1), (1, 1.1), (1, 2), (None, 1))],
                         ["2.00", "≈ 1.10", "≈ 0.91", "0.50", "–"])

    def test_every_row_has_every_column(self):
        rows = [self.cell(1024, 3, 2, 0.2, registered_canonical=1, private_fastest=1), self.cell(4, 3, 2, None)]
        lines = markdown(rows, ["Open MPI 5", "Gloo"], ["registered canonical", "private fastest"]).splitlines()
        self.assertEqual(len({line.count("|") for line in lines}), 1)

    def test_medians_over_rounds(self):
        rounds = [{"median_us": time, "min_us": time - 1, "p95_us": time + 1, "iterations": 10, "wrong": 0} for time in (9, 2, 3)]
        found = medians(rounds)
        self.assertEqual((found["median_us"], found["min_us"], found["iterations"], found["over_ceiling"]), (3, 1, 30, None))
        # Each against its own ceiling: memory was twice as fast in the second round.
        for record, ceiling in zip(rounds, (6, 1, 2)):
            record["ceiling_us"] = ceiling
        self.assertEqual(medians(rounds)["over_ceiling"], 1.5)


class Commands(unittest.TestCase):
    def test_no_variable_of_one_library_reaches_another(self):
        library = Mpich("/nowhere")
        library.program = "program"
        _, environment = library.command(4, DEFAULT, [])
        self.assertFalse([name for name in environment if name.startswith(("OMPI", "PRTE", "I_MPI"))])

    def test_settings_have_names_of_their_own(self):
        for library in (OpenMpi("/nowhere"), Mpich("/nowhere")):
            for ranks in (2, 64):
                names = [setting.name for setting in library.settings(ranks)]
                self.assertEqual(len(names), len(set(names)))


class Programs(unittest.TestCase):
    def test_the_program_of_the_peers_checks_and_prints(self):
        with tempfile.TemporaryDirectory() as folder:
            library = SystemOpenMpi(folder)
            try:
                library.install()
            except Missing as why:
                self.skipTest(str(why))
            records = compare_libraries.measure_peer(library, DEFAULT, 3, [4, 4100], 0.02, 60)
            self.assertEqual([(record["wrong"], record["ranks"]) for record in records.values()], [(0, 3)] * 2)
            # Not a multiple of an element.
            self.assertRaises(Missing, compare_libraries.measure_peer, library, DEFAULT, 2, [5], 0.02, 60)

    def test_a_program_that_hangs_is_given_up(self):
        class Sleeper:
            title = "sleeper"

            def command(self, ranks, setting, arguments):
                return ["sleep", "60"], {"PATH": "/usr/bin:/bin"}

        self.assertRaises(Missing, compare_libraries.measure_peer, Sleeper(), DEFAULT, 2, [4], 0.01, 0.2)


class Network(unittest.TestCase):
    def test_bytes_per_call_leave_out_nothing(self):
        cell = Cell()
        cell.add({"iterations": 4, "time_us": {"median": 2.0, "min": 1.0}, "wrong": None}, [(400, 80), (40, 360)])
        self.assertEqual(cell.figures()["links"], [[100, 20], [10, 90]])
        self.assertEqual(cell.figures()["bytes_over_links"], 110)

    def test_hosts_have_names_and_counters_and_go(self):
        try:
            with Hosts(["100mbit", "100mbit"]) as hosts:
                first, second = hosts.hosts
                names = [subprocess.run(hosts.inside(host, "hostname"), capture_output=True, text=True).stdout.strip()
                         for host in hosts.hosts]
                self.assertEqual(names, ["host0", "host1"])
                before = hosts.traffic()
                self.send(hosts, first, second, 3_000_000)
                sent = hosts.traffic()[0].sent - before[0].sent
                self.assertTrue(3_000_000 < sent < 3_500_000, sent)
                left = subprocess.Popen(hosts.inside(first, "sleep", "60"))
                while not processes(first.namespace):
                    pass
        except NotPossible as why:
            self.skipTest(str(why))
        self.assertNotEqual(left.wait(10), 0)
        done = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True)
        self.assertNotIn(hosts.prefix, done.stdout)
        self.assertFalse(hosts.folder.exists())

    def send(self, hosts, sender, receiver, count):
        """So many bytes over a connection; it cannot be faster than the link."""
        serve = ("import socket; s = socket.create_server(('0.0.0.0', 7000)); print('ready', flush=True); c, _ = s.accept()\n"
                 "while c.recv(1 << 16): pass")
        send = ("import socket, time; s = socket.create_connection(('%s', 7000)); t = time.time(); s.sendall(b'x' * %d); "
                "s.shutdown(socket.SHUT_WR); s.recv(1); print(time.time() - t)" % (receiver.address, count))
        server = subprocess.Popen(hosts.inside(receiver, sys.executable, "-c", serve), stdout=subprocess.PIPE, text=True)
        self.assertEqual(server.stdout.readline(), "ready\n")
        client = subprocess.run(hosts.inside(sender, sys.executable, "-c", send), capture_output=True, text=True, timeout=30)
        self.assertGreater(float(client.stdout), 0.9 * count * 8 / 100e6)
        server.stdout.close()
        server.wait(10)


class Shapes(unittest.TestCase):
    def published_shapes(self, *arguments):
        """The exit code, and what was printed."""
        printed, complaints = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(complaints):
            code = published_shapes.main(arguments)
        return code, printed.getvalue(), complaints.getvalue()

    def test_clusters_are_toml_with_all_workers(self):
        text = cluster("three", [0.1, 0.1, 0.3], bandwidth=1e8, server_bandwidth=2e8, model_bytes=4000, exchange_seconds=1.5,
                       jitter="normal:0.1")
        file = tomllib.loads(text)
        self.assertEqual([(worker["ranks"], worker["step_seconds"]) for worker in file["workers"]],
                         [([0], 0.1), ([1], 0.1), ([2], 0.3)])
        self.assertEqual((len(file["hosts"]), file["model_bytes"], file["exchange_seconds"]), (3, 4000, 1.5))
        self.assertEqual(file["server"]["card_bandwidth_bytes_per_second"], 2e8)
        self.assertEqual(tomllib.loads(cluster("one", [1.0]))["server"]["bandwidth_bytes_per_second"], 125e6)

    def test_figures_are_medians_over_seeds(self):
        row = {"runs": [{"time_to_target_seconds": time} for time in (3.0, None, 1.0)],
               "summaries": [{"bytes_sent": sent} for sent in (7, 9, 8)]}
        self.assertEqual((time_to_target(row), median_of(row, lambda summary: summary["bytes_sent"])), (3.0, 8))
        self.assertEqual(time_to_target({"runs": [{"time_to_target_seconds": None}]}), float("inf"))

    def test_figures_for_people(self):
        self.assertEqual([claim.times(ratio) for ratio in (34.4, 12.96, 0.5, float("inf"))], ["34×", "13.0×", "0.50×", "–"])
        self.assertEqual([claim.less(*pair) for pair in ((1, 4), (5, 4), (float("inf"), 1))], ["−75%", "+25%", "–"])
        self.assertEqual([claim.seconds(time) for time in (123.4, 1.26, float("inf"))], ["123 s", "1.3 s", "not reached"])
        self.assertEqual([claim.percent(share) for share in (0.413, 0.004)], ["41%", "0.4%"])
        rows = [claim.Claim("a | b", "1", "2", "")]
        self.assertEqual({line.count(" | ") for line in claim.markdown(rows).splitlines() if "---" not in line}, {3})

    def test_what_is_missing_is_said(self):
        code, _, complaints = self.published_shapes("--only", "diloco")
        self.assertTrue(code == 1 and "--text-file" in complaints, complaints)
        code, _, complaints = self.published_shapes("--only", "esync", "--esync", "/nowhere/esync")
        self.assertTrue(code == 1 and "cargo build" in complaints, complaints)

    def test_a_paper_is_simulated(self):
        if not (published_shapes.ROOT / "target/release/esync").exists():
            self.skipTest("target/release/esync has not been built")
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder, "shapes.json")
            code, printed, complaints = self.published_shapes("--only", "esync", "--quick", "--output", str(file))
            self.assertEqual(code, 0, complaints)
            self.assertEqual(printed.count("\n| ESync"), 3)
            throughput = json.loads(file.read_text())[0]["figures"]["samples_per_second"]
            # Three workers of 150 steps while the slowest takes one.
            self.assertGreater(throughput["esync"], 10 * throughput["sync"])


if __name__ == "__main__":
    unittest.main()
