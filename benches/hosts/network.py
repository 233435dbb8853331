"""Hosts made of network namespaces: a switch, and a link of limited rate from it to each host.

Nothing of the machine's own network is touched: the switch lies in a namespace too. A host has a name, an address, a file of
host names and a /dev/shm of its own, so that programs see several machines; processors, processes and files are those of the
one machine that is there.
"""

import contextlib
import json
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass

# What a link lets through at once above its rate: ten packets, so that short messages are limited too.
BURST = "15kb"
# How long a packet may wait in a link's queue before it is dropped.
QUEUE = "200ms"


class NotPossible(Exception):
    """Hosts cannot be made here; the text says why and what would help."""


@dataclass(frozen=True)
class Host:
    name: str
    namespace: str
    port: str  # the switch's end of its link
    address: str
    rate: str


@dataclass(frozen=True)
class Traffic:
    """Bytes that a host sent and received over its link."""

    sent: int
    received: int


def ip(*arguments):
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if done.returncode != 0:
        raise NotPossible(f"`ip {' '.join(arguments)}` failed: {done.stderr.strip()}")
    return done.stdout


def limit(namespace, device, rate):
    command = ["tc", "-n", namespace, "qdisc", "add", "dev", device, "root", "tbf", "rate", rate, "burst", BURST,
               "latency", QUEUE]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise NotPossible(f"`{' '.join(command)}` failed: {done.stderr.strip()}")


class Hosts:
    """As many hosts as rates, from `with` to its end, whatever happens in between."""

    def __init__(self, rates):
        self.prefix = f"esync-{os.getpid()}"
        self.switch = f"{self.prefix}-switch"
        self.hosts = [Host(f"host{number}", f"{self.prefix}-host{number}", f"port{number}", f"10.77.0.{number + 1}", rate)
                      for number, rate in enumerate(rates)]

    def __enter__(self):
        for program in ("ip", "tc", "unshare", "mount", "hostname"):
            if not shutil.which(program):
                raise NotPossible(f"`{program}` is missing: install iproute2, util-linux and hostname")
        if os.geteuid() != 0:
            raise NotPossible("network namespaces need root: run this with sudo")
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix=f"{self.prefix}-"))
        try:
            self.build()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(self, *_):
        self.remove()

    def build(self):
        ip("netns", "add", self.switch)
        ip("-n", self.switch, "link", "add", "switch", "type", "bridge")
        ip("-n", self.switch, "link", "set", "switch", "up")
        for host in self.hosts:
            ip("netns", "add", host.namespace)
            ip("-n", self.switch, "link", "add", host.port, "type", "veth", "peer", "name", "eth0", "netns", host.namespace)
            ip("-n", self.switch, "link", "set", host.port, "master", "switch", "up")
            ip("-n", host.namespace, "address", "add", f"{host.address}/24", "dev", "eth0")
            ip("-n", host.namespace, "link", "set", "eth0", "up")
            ip("-n", host.namespace, "link", "set", "lo", "up")
            # A queue at each end limits each direction.
            limit(host.namespace, "eth0", host.rate)
            limit(self.switch, host.port, host.rate)
        names = "".join(f"{host.address} {host.name}\n" for host in self.hosts)
        (self.folder / "hosts").write_text("127.0.0.1 localhost\n" + names)
        self.write_agent()
        if subprocess.run(self.inside(self.hosts[0], "true"), capture_output=True).returncode != 0:
            raise NotPossible("`unshare --uts --mount` is not allowed here")

    def write_agent(self):
        """The program that Open MPI's launcher calls instead of ssh: `agent HOST COMMAND…`."""
        self.agent = self.folder / "agent"
        # Like ssh's, the command is one line for a shell.
        cases = "\n".join(f'{host.name}) exec {shlex.join(self.inside(host, "sh"))} -c "$*" ;;' for host in self.hosts)
        self.agent.write_text(f'#!/bin/sh\nhost=$1\nshift\ncase $host in\n{cases}\n*) echo "no host $host" >&2; exit 2 ;;\nesac\n')
        self.agent.chmod(0o700)

    def inside(self, host, *command):
        """A command line that runs `command` on a host."""
        enter = (f"hostname {host.name} && mount --bind {self.folder}/hosts /etc/hosts && "
                 'mount -t tmpfs tmpfs /dev/shm && exec "$@"')
        return ["ip", "netns", "exec", host.namespace, "unshare", "--uts", "--mount", "sh", "-c", enter, "sh", *command]

    def host_file(self, slots):
        """Writes Open MPI's host file: so many ranks on each host."""
        path = self.folder / f"hostfile-{'+'.join(map(str, slots))}"
        path.write_text("".join(f"{host.name} slots={count}\n" for host, count in zip(self.hosts, slots) if count))
        return path

    def traffic(self):
        """What each host has sent and received since it was made."""
        links = json.loads(ip("-n", self.switch, "-s", "-j", "link", "show"))
        ports = {link["ifname"]: link["stats64"] for link in links}
        # The switch receives what a host sends.
        return [Traffic(ports[host.port]["rx"]["bytes"], ports[host.port]["tx"]["bytes"]) for host in self.hosts]

    def remove(self):
        # Whoever pressed ^C twice still wants everything gone.
        with ignoring_interrupts():
            for namespace in [*(host.namespace for host in self.hosts), self.switch]:
                end_processes(namespace)
                subprocess.run(["ip", "netns", "delete", namespace], capture_output=True)
            shutil.rmtree(self.folder, ignore_errors=True)


def processes(namespace):
    done = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True)
    return [int(pid) for pid in done.stdout.split()]


def end_processes(namespace):
    for signal_, seconds in ((signal.SIGTERM, 2.0), (signal.SIGKILL, 2.0)):
        for pid in processes(namespace):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal_)
        deadline = time.monotonic() + seconds
        while processes(namespace):
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)


@contextlib.contextmanager
def ignoring_interrupts():
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
