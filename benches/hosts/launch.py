"""Runs commands under Open MPI across the hosts."""

import os
import shutil
import subprocess

from hosts.network import NotPossible


class Failed(Exception):
    """A command that ended badly; the text is its last words."""


def mpirun(hosts, slots, command, flags=()):
    """The command line, to be run on this machine: it starts the launcher on the first host."""
    if not shutil.which("mpirun"):
        raise NotPossible("`mpirun` is missing: install Open MPI")
    network = hosts.hosts[0].address.rsplit(".", 1)[0] + ".0/24"
    settings = {"plm_rsh_agent": str(hosts.agent), "plm_rsh_no_tree_spawn": "1", "pml": "ob1", "btl": "tcp,self,vader",
                "btl_tcp_if_include": network, "oob_tcp_if_include": network,
                # All hosts share this machine's cores.
                "mpi_yield_when_idle": "1"}
    launcher = ["mpirun", "--hostfile", str(hosts.host_file(slots)), "--bind-to", "none", "--map-by", "slot",
                "-np", str(sum(slots))]
    for name, value in settings.items():
        launcher += ["--mca", name, value]
    return hosts.inside(hosts.hosts[0], *launcher, *flags, *command)


def environment():
    return dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")


def output_of(hosts, slots, command, timeout, flags=()):
    """Standard output, and the traffic of each host meanwhile as `(sent, received)`."""
    before = hosts.traffic()
    process = subprocess.Popen(mpirun(hosts, slots, command, flags), env=environment(), stdin=subprocess.DEVNULL,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        output, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.terminate()
        _, errors = process.communicate()
        raise Failed(f"`{' '.join(command)}` did not end within {timeout} s: {errors.strip()[-300:]}") from None
    if process.returncode != 0:
        raise Failed(f"`{' '.join(command)}` ended with exit code {process.returncode}: {errors.strip()[-600:]}")
    after = hosts.traffic()
    return output, [(b.sent - a.sent, b.received - a.received) for a, b in zip(before, after)]
