#!/usr/bin/env python3
"""Times Gloo's all-reduce of float32 sums in place, through torch.distributed, one process a rank.

    gloo_allreduce.py --ranks 4 --bytes 4,1024,1048576 [--seconds 0.3] [--iterations 2000] [--warm-up 3] [--label TEXT]

It measures what `allreduce.c` measures, in the same way, and prints the same JSON lines.
"""

import argparse
import json
import multiprocessing
import multiprocessing.connection
import os
import socket
import sys
import time

import torch
import torch.distributed as distributed

PERIOD = 1021


def contribution(rank, count):
    """Small integers, whose sums are exact in any order; the same ones as in `allreduce.c`."""
    index = torch.arange(count, dtype=torch.int64)
    return ((index % PERIOD * 7 + rank * 13) % 61).to(torch.float32)


def maxima(seconds):
    slowest = torch.tensor(seconds, dtype=torch.float64)
    distributed.all_reduce(slowest, op=distributed.ReduceOp.MAX)
    return sorted(slowest.tolist())


def count_wrong(vector, contributed, expected):
    vector.copy_(contributed)
    distributed.all_reduce(vector)
    wrong = torch.tensor([int((vector != expected).sum())], dtype=torch.int64)
    distributed.all_reduce(wrong)
    return int(wrong)


def time_calls(vector, contributed, options):
    """Seconds of each call on its slowest rank. Whether to go on is the first rank's word."""
    seconds = []
    begun = time.perf_counter()
    while len(seconds) < options.iterations:
        vector.copy_(contributed)
        distributed.barrier()
        started = time.perf_counter()
        distributed.all_reduce(vector)
        seconds.append(time.perf_counter() - started)
        # A rank that is not back yet must not wait for the copying of others. The broadcast that follows is no barrier.
        distributed.barrier()
        go_on = torch.tensor([int(time.perf_counter() - begun < options.seconds)])
        distributed.broadcast(go_on, 0)
        if not int(go_on):
            break
    return maxima(seconds)


def percentile(ascending, percent):
    """By nearest rank, in microseconds."""
    nearest = max(1, (percent * len(ascending) + 99) // 100)
    return round(ascending[nearest - 1] * 1e6, 3)


def measure(options, rank, size, bytes_):
    count = bytes_ // 4
    contributed = contribution(rank, count)
    expected = sum((contribution(other, count) for other in range(size)), torch.zeros(count))
    vector = torch.empty(count, dtype=torch.float32)
    wrong = count_wrong(vector, contributed, expected)
    for _ in range(options.warm_up):
        distributed.all_reduce(vector)
    seconds = time_calls(vector, contributed, options)
    wrong += count_wrong(vector, contributed, expected)
    if rank == 0:
        print(json.dumps({"label": options.label, "ranks": size, "bytes": bytes_,
                          "median_us": percentile(seconds, 50), "min_us": percentile(seconds, 0),
                          "p95_us": percentile(seconds, 95), "iterations": len(seconds), "wrong": wrong}), flush=True)
    return wrong


def run_rank(options, rank):
    distributed.init_process_group("gloo", init_method="env://", rank=rank, world_size=options.ranks)
    wrong = sum(measure(options, rank, options.ranks, bytes_) for bytes_ in options.bytes)
    distributed.destroy_process_group()
    sys.exit(1 if wrong else 0)


def start_ranks(options):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # Gloo looks up the host's own name otherwise, which not every machine can resolve.
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo")
    # Forked, so that torch, which takes seconds to load, is loaded once; it has no threads yet.
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=run_rank, args=(options, rank), daemon=True) for rank in range(options.ranks)]
    for process in ranks:
        process.start()
    waiting = {process.sentinel: process for process in ranks}
    while waiting:
        for sentinel in multiprocessing.connection.wait(list(waiting)):
            failed = waiting.pop(sentinel)
            failed.join()
            if failed.exitcode:
                # The others would wait for it.
                return abs(failed.exitcode)
    return 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, required=True)
    parser.add_argument("--bytes", type=lambda text: [int(word) for word in text.split(",")], required=True)
    parser.add_argument("--seconds", type=float, default=0.3)
    parser.add_argument("--iterations", type=int, default=2000)
    parser.add_argument("--warm-up", type=int, default=3)
    parser.add_argument("--label", default="")
    options = parser.parse_args()
    torch.set_num_threads(1)
    return start_ranks(options)


if __name__ == "__main__":
    sys.exit(main())
