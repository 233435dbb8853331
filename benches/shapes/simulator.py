"""Runs `esync sim` and reads the files that it leaves."""

import json
import pathlib
import statistics
import subprocess
import tempfile


class Failed(Exception):
    """A simulation that has no figures, and why."""


class Simulator:
    """The program, and what all simulations have in common."""

    def __init__(self, program, jobs, keep=None):
        self.program, self.jobs, self.keep = str(program), jobs, keep
        self.simulations = 0

    def run(self, name, cluster, flags):
        """One simulation's summary.json."""
        with self.folder(name) as folder:
            self.call(["--progress", "none", *flags, "--out", str(folder / "run")], cluster, folder)
            self.simulations += 1
            return json.loads((folder / "run/summary.json").read_text())

    def compare(self, name, cluster, mode, flags, rates, seeds):
        """The mode's row of comparison.json, at the best of these learning rates, with the summary of each seed's run."""
        with self.folder(name) as folder:
            out = folder / "comparison"
            arguments = ["--compare", mode, "--learning-rates", ",".join(map(str, rates)), "--seeds", str(seeds),
                         "--jobs", str(self.jobs), *flags, "--out", str(out)]
            self.call(arguments, cluster, folder)
            self.simulations += len(rates) * seeds
            row = json.loads((out / "comparison.json").read_text())["modes"][0]
            chosen = out / mode / f"rate-{row['learning_rate']:g}"
            row["summaries"] = [json.loads(path.read_text()) for path in sorted(chosen.glob("seed-*/summary.json"))]
            return row

    def built_in(self, name):
        """The text of one of the program's own clusters."""
        return self.ask(["--cluster", name, "--show-cluster"])

    def folder(self, name):
        if self.keep is None:
            return Temporary()
        folder = pathlib.Path(self.keep, name)
        folder.mkdir(parents=True)
        return Kept(folder)

    def call(self, arguments, cluster, folder):
        file = folder / "cluster.toml"
        file.write_text(cluster)
        self.ask(["--cluster", str(file), *arguments])

    def ask(self, arguments):
        """What the program prints."""
        command = [self.program, "sim", *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except OSError as error:
            raise Failed(f"{self.program}: {error.strerror}; build it with `cargo build --release`") from error
        # 8: the target was not reached, which is a result.
        if done.returncode not in (0, 8):
            raise Failed(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
        return done.stdout


class Kept:
    def __init__(self, folder):
        self.path = folder

    def __enter__(self):
        return self.path

    def __exit__(self, *_):
        pass


class Temporary(Kept):
    def __init__(self):
        self.holder = tempfile.TemporaryDirectory(prefix="esync-shapes-")
        super().__init__(pathlib.Path(self.holder.name))

    def __exit__(self, *_):
        self.holder.cleanup()


def time_to_target(row):
    """The median over seeds in seconds; infinite if half of them or more did not reach the target."""
    times = [run["time_to_target_seconds"] for run in row["runs"]]
    return statistics.median_low([float("inf") if time is None else time for time in times])


def median_of(row, figure):
    """The median over seeds of a figure of the summaries."""
    return statistics.median_low([figure(summary) for summary in row["summaries"]])


def computing_shares(summary):
    """Of each worker's time, 0 to 1."""
    return [worker["compute_seconds"] / worker["total_seconds"] for worker in summary["workers"]]
