"""How much of the machine other programs used while something ran."""

import os
import resource
import time

from peers.libraries import CORES


class ForeignLoad:
    """`share` of the cores' time that neither this process nor its finished children used, between `with` and its end.

    ```
    with ForeignLoad() as load:
        subprocess.run(...)
    print(load.share)
    ```
    """

    def __enter__(self):
        self.busy, self.own, self.begun = busy_seconds(), own_seconds(), time.monotonic()
        return self

    def __exit__(self, *_):
        seconds = (time.monotonic() - self.begun) * CORES
        foreign = (busy_seconds() - self.busy) - (own_seconds() - self.own)
        self.share = max(0.0, foreign / seconds)


def busy_seconds():
    """Of all cores since the start of the machine: everything but idling and waiting for a disk."""
    with open("/proc/stat") as file:
        user, nice, system, idle, iowait, *interrupts_and_stolen = map(int, file.readline().split()[1:9])
    ticks = user + nice + system + sum(interrupts_and_stolen)
    return ticks / os.sysconf("SC_CLK_TCK")


def own_seconds():
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in usage)
