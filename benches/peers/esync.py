"""How `esync-bench` is run beside the peers. The command lines stand in one table, `VARIANTS`."""

import json
import pathlib
import subprocess

from peers.libraries import CORES, Missing, clean_environment, output_of

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


def known_flags(help_text, flags):
    """Those that the program has, as words of a command line."""
    return [word for flag, value in flags.items() if flag in help_text for word in (flag, value)]


class Variant:
    """One column of the comparison: an order of summation, and whose memory the vectors lie in."""

    def __init__(self, buffers, order):
        self.buffers, self.order = buffers, order
        self.key = f"{buffers} {order}"


# The default order comes first: it is what is judged for registered buffers.
VARIANTS = [Variant(buffers, order) for buffers in ("registered", "private") for order in ("canonical", "fastest")]


class Esync:
    """The program, and what it can do: it is asked for its help, so that an older one is compared too."""

    key, title = "esync", "esync"

    def __init__(self, program, collective=None, transport=None):
        self.program = pathlib.Path(program or ROOT / "target/release/esync-bench")
        if not self.program.exists():
            raise Missing(f"{self.program} does not exist: build it with `cargo build --release`, or name it with --esync")
        self.help = output_of([str(self.program), "--help"])
        self.version = output_of([str(self.program), "--version"]).split()[-1]
        self.transport = transport or ("shm" if "shm" in self.help else "mpi")
        # Over shared memory `native` is that memory's own path; over MPI it would be MPI's.
        self.collective = collective or ("native" if self.transport == "shm" else "all")

    def variants(self):
        can_register = self.transport == "shm" and "--buffers" in self.help
        return VARIANTS if can_register else [variant for variant in VARIANTS if variant.buffers == "private"]

    def command(self, variant, ranks, arguments):
        common = ["--op", "all-reduce", "--type", "f32", "--operator", "sum", "--format", "json", "--check", "1",
                  "--collective", self.collective, "--order", variant.order]
        # The peers' programs do not measure a contaminated size again either.
        common += known_flags(self.help, {"--buffers": variant.buffers, "--placement": "in", "--refresh": "rewrite",
                                          "--timing": "barrier", "--repeat-contaminated": "0"})
        if self.transport == "shm":
            command = [str(self.program), "--ranks", str(ranks), "--transport", "shm"]
            return [*command, *common, *arguments], clean_environment()
        yields = "1" if ranks > CORES else "0"
        environment = clean_environment(OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1",
                                        OMPI_MCA_mpi_yield_when_idle=yields)
        launcher = ["mpirun", "--oversubscribe", "--bind-to", "none", "-n", str(ranks)]
        return [*launcher, str(self.program), "--transport", "mpi", *common, *arguments], environment

    def measure(self, variant, ranks, sizes, seconds, timeout):
        """Records by size; of several collectives the fastest. Raises `Missing` if the program fails."""
        best = {}
        for start, end, factor in sweeps(sizes):
            arguments = ["-b", str(start), "-e", str(end), "-f", str(factor), "--seconds-per-size", str(seconds)]
            command, environment = self.command(variant, ranks, arguments)
            try:
                output = output_of(command, env=environment, timeout=timeout)
            except subprocess.TimeoutExpired as error:
                raise Missing(f"`{' '.join(command)}` did not end within {timeout} s") from error
            for line in filter(lambda line: line.startswith("{"), output.splitlines()):
                record = record_of(json.loads(line))
                size = record["bytes"]
                if size in sizes and (size not in best or record["median_us"] < best[size]["median_us"]):
                    best[size] = record
        return best


def record_of(said):
    """esync's record in the words of the peers' programs."""
    times = said["time_us"]
    return {"bytes": said["bytes"], "median_us": times["median"], "min_us": times["min"], "p95_us": times["p95"],
            "iterations": said["iterations"], "wrong": said["wrong"], "ceiling_us": said.get("ceiling_us"),
            "collective": said["collective"]}


def sweeps(sizes):
    """Sizes as `(first, last, factor)`, as few as can be: the program takes geometric sweeps, a start costs time."""
    found, rest = [], sorted(sizes)
    while rest:
        run = rest[:1]
        factor = rest[1] // rest[0] if len(rest) > 1 and rest[1] % rest[0] == 0 else 0
        while factor > 1 and len(run) < len(rest) and rest[len(run)] == run[-1] * factor:
            run.append(run[-1] * factor)
        found.append((run[0], run[-1], max(factor, 2)))
        rest = rest[len(run):]
    return found
