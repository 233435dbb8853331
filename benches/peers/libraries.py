"""The libraries that esync is compared with: how each is installed, started on this host, and tuned.

Every library gets the settings that its documentation has for more ranks than cores, and a clean environment, so that no
variable of one reaches another. Each lies in a folder of its own, because their programs have the same names.
"""

import os
import pathlib
import shutil
import subprocess
import sys
from dataclasses import dataclass, field

HERE = pathlib.Path(__file__).resolve().parent
CORES = len(os.sched_getaffinity(0))


class Missing(Exception):
    """A library that cannot be had here; the text says why."""


@dataclass(frozen=True)
class Setting:
    """One way to run a library. Within one library the name says which."""

    name: str
    environment: dict = field(default_factory=dict, compare=False)


DEFAULT = Setting("default")


def clean_environment(**added):
    kept = {name: os.environ[name] for name in ("HOME", "TMPDIR", "LANG") if name in os.environ}
    return {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", **kept, **added}


def output_of(command, **options):
    """Standard output, or `Missing` with the last line of what went wrong."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, **options)
    except OSError as error:
        raise Missing(f"{command[0]}: {error.strerror}") from error
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise Missing(f"`{' '.join(map(str, command))}` failed: {lines[-1]}")
    return done.stdout


class Library:
    """A peer. `key` names it in files and flags, `title` in tables; `packages` are PyPI's."""

    key = title = ""
    packages = ()

    def __init__(self, folder):
        self.folder = pathlib.Path(folder) / self.key
        self.version = ""

    def install(self):
        """Makes it usable, or raises `Missing`. Does nothing but look when it was installed before."""
        done = self.folder / "installed"
        if not done.exists():
            print(f"installing {self.title} into {self.folder}", file=sys.stderr, flush=True)
            shutil.rmtree(self.folder, ignore_errors=True)
            output_of([sys.executable, "-m", "venv", str(self.folder)])
            output_of([str(self.folder / "bin/pip"), "install", "--quiet", *self.packages])
            done.touch()
        version = "import importlib.metadata as m; print(m.version(%r))" % self.packages[0]
        self.version = output_of([str(self.folder / "bin/python"), "-c", version]).strip()
        self.prepare()

    def prepare(self):
        """What has to be built after the installation."""

    def command(self, ranks, setting, arguments):
        """The command line and its environment."""
        raise NotImplementedError

    def settings(self, ranks):
        """What tuning tries beside the default."""
        return []


class Mpi(Library):
    """A library whose program is `allreduce.c`, compiled against it."""

    def prepare(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        self.program = self.folder / "esync-allreduce"
        source = HERE / "allreduce.c"
        if not self.program.exists() or self.program.stat().st_mtime < source.stat().st_mtime:
            compiler, *flags = self.compiler()
            output_of([compiler, "-std=c11", "-O2", str(source), "-o", str(self.program), *flags], env=clean_environment())

    def compiler(self):
        return [str(self.folder / "bin/mpicc")]


class OpenMpi(Mpi):
    key, title, packages = "openmpi", "Open MPI 5", ("openmpi",)
    # The algorithms of the component `tuned`. 1 to 6 have been there since 4.0.
    algorithms = {"linear": 1, "reduce-broadcast": 2, "recursive-doubling": 3, "ring": 4, "segmented-ring": 5,
                  "rabenseifner": 6}

    def launcher(self):
        return [str(self.folder / "bin/mpirun"), "--map-by", ":oversubscribe", "--bind-to", "none"]

    def command(self, ranks, setting, arguments):
        environment = clean_environment(**setting.environment)
        for name in ("OMPI_ALLOW_RUN_AS_ROOT", "PRTE_ALLOW_RUN_AS_ROOT"):
            environment.update({name: "1", f"{name}_CONFIRM": "1"})
        # The launcher sets it only when it knows that ranks share cores.
        environment["OMPI_MCA_mpi_yield_when_idle"] = "1" if ranks > CORES else "0"
        command = [*self.launcher(), "-n", str(ranks), str(self.program), *arguments]
        return command, environment

    def algorithm(self, name):
        return Setting(name, {"OMPI_MCA_coll_tuned_use_dynamic_rules": "1",
                              "OMPI_MCA_coll_tuned_allreduce_algorithm": str(self.algorithms[name])})

    def settings(self, ranks):
        segmented = self.algorithm("segmented-ring").environment
        return [*(self.algorithm(name) for name in self.algorithms),
                Setting("segmented-ring 128K",
                        {**segmented, "OMPI_MCA_coll_tuned_allreduce_algorithm_segmentsize": str(128 << 10)}),
                Setting("sm", {"OMPI_MCA_coll_sm_priority": "90"})]


class SystemOpenMpi(OpenMpi):
    """The Open MPI on `PATH`, whichever version it is. It is what esync is linked to, usually."""

    key, title = "system-openmpi", "system Open MPI"

    def install(self):
        if not shutil.which("mpirun") or not shutil.which("mpicc"):
            raise Missing("no mpirun and mpicc on PATH")
        said = output_of(["mpirun", "--version"]).splitlines()[0]
        if "Open MPI" not in said:
            raise Missing("the mpirun on PATH is not that of Open MPI")
        self.version = said.split()[-1]
        self.title = f"system Open MPI {self.version}"
        self.prepare()

    def compiler(self):
        return ["mpicc"]

    def launcher(self):
        return ["mpirun", "--oversubscribe", "--bind-to", "none"]


class Mpich(Mpi):
    key, title, packages = "mpich", "MPICH 5", ("mpich",)
    algorithms = ("recursive_doubling", "recursive_multiplying", "reduce_scatter_allgather", "ring", "tree", "recexch",
                  "k_reduce_scatter_allgather")

    def command(self, ranks, setting, arguments):
        environment = clean_environment()
        if ranks > CORES:
            # Its release-gather waits without giving up the core: 8 ms a call instead of 30 µs, measured.
            environment["MPIR_CVAR_DEVICE_COLLECTIVES"] = "none"
        environment.update(setting.environment)
        launcher = [str(self.folder / "bin/mpiexec"), "-launcher", "fork", "-n", str(ranks)]
        return [*launcher, str(self.program), *arguments], environment

    def settings(self, ranks):
        off = {"MPIR_CVAR_DEVICE_COLLECTIVES": "none"}
        tried = [Setting(name, {**off, "MPIR_CVAR_ALLREDUCE_INTRA_ALGORITHM": name}) for name in self.algorithms]
        if ranks <= CORES:
            gather = {"MPIR_CVAR_ALLREDUCE_POSIX_INTRA_ALGORITHM": "release_gather",
                      "MPIR_CVAR_COLL_SHM_LIMIT_PER_NODE": str(1 << 20)}
            for size in (32, 256, 1024):
                buffers = {f"MPIR_CVAR_{name}_INTRANODE_BUFFER_TOTAL_SIZE": str(size << 10) for name in ("BCAST", "REDUCE")}
                tried.append(Setting(f"release_gather {size}K", {**gather, **buffers}))
        else:
            tried.append(Setting("release_gather", {"MPIR_CVAR_DEVICE_COLLECTIVES": "all",
                                                    "MPIR_CVAR_CH4_PROGRESS_THROTTLE": "1",
                                                    "MPIR_CVAR_CH4_PROGRESS_THROTTLE_NO_PROGRESS_COUNT": "20"}))
        return tried


class IntelMpi(Mpi):
    key, title, packages = "impi", "Intel MPI", ("impi-rt", "impi-devel")
    algorithms = range(1, 26)

    def compiler(self):
        # Its own mpicc holds the folder of the machine that it was packed on.
        include, libraries = self.folder / "include", self.folder / "lib"
        return ["cc", f"-I{include}", f"-L{libraries}", "-lmpi", f"-Wl,-rpath,{libraries}"]

    def command(self, ranks, setting, arguments):
        # It gives up the core by itself; I_MPI_THREAD_YIELD=3 makes it 20 times slower with two ranks to a core.
        environment = clean_environment(I_MPI_ROOT=str(self.folder), I_MPI_FABRICS="shm", I_MPI_PIN="0",
                                        **setting.environment)
        launcher = [str(self.folder / "bin/mpiexec.hydra"), "-launcher", "fork", "-n", str(ranks)]
        return [*launcher, str(self.program), *arguments], environment

    def settings(self, ranks):
        return [*(Setting(f"adjust {number}", {"I_MPI_ADJUST_ALLREDUCE": str(number)}) for number in self.algorithms),
                Setting("wait", {"I_MPI_WAIT_MODE": "1"})]


class Gloo(Library):
    key, title, packages = "torch", "Gloo", ("torch", "numpy")

    def __init__(self, folder, python=None):
        super().__init__(folder)
        self.python = python

    def install(self):
        if self.python is None:
            super().install()
            self.python = str(self.folder / "bin/python")
        else:
            self.version = output_of([self.python, "-c", "import torch; print(torch.__version__)"]).strip()

    def command(self, ranks, setting, arguments):
        script = str(HERE / "gloo_allreduce.py")
        return [self.python, script, "--ranks", str(ranks), *arguments], clean_environment(OMP_NUM_THREADS="1")


def all_libraries(folder, torch_python=None):
    return [OpenMpi(folder), Mpich(folder), IntelMpi(folder), Gloo(folder, torch_python), SystemOpenMpi(folder)]
