"""ESync (Li et al. 2020): throughput, traffic and computing time of ResNet18 on six workers and a parameter server."""

from .claim import Claim, percent, times
from .clusters import cluster
from .simulator import computing_shares

# Read off the authors' plots: samples per second, and megabytes per second in one direction.
PUBLISHED = {"sync": (45, 31), "async": (120, 80), "dc-asgd": (105, 73), "esync": (1555, 21)}
MODEL_BYTES = 42_600_000
BATCH_SIZE = 64
SLOWEST = 3.5
HETEROGENEITY = 150

# What their other figures say of what they ran on: the network moved 80 MB/s in ASGD, and SSGD's fast devices computed 0.4% of
# the round. ESync's traffic per sample makes 98 steps a round for each of those, in 40% of 12.2 s, so that 16 ms of a step went
# to the query of the state server.
IMPLIED_BANDWIDTH = 80e6
IMPLIED_FASTEST = 0.004 * 8.5
QUERY_SECONDS = 0.4 * 12.2 / 98 - IMPLIED_FASTEST

# Seconds of a step. SSGD's round took 64 · 6 / 45 = 8.5 s, of which the slow devices computed 26 to 41%.
SLOW_STEPS = [2.2, 2.9, SLOWEST]


def simulate(simulator, options, name, text):
    """The summary of each mode."""
    exchange = ["--collective", "parameter-server", "--servers", "1"]
    summaries = {}
    for mode in PUBLISHED:
        # Virtual seconds: enough rounds for a mean.
        flags = ["--surrogate", "--mode", mode, "--batch-size", str(BATCH_SIZE), "--learning-rate", "0.001",
                 "--max-samples", "1000000000", "--max-seconds", "100" if options.quick else "400",
                 "--eval-every", "1000000000", *(exchange if mode in ("sync", "esync") else [])]
        summaries[mode] = simulator.run(f"{name}-{mode}", text, flags)
    return summaries


def rates(summaries):
    return {mode: summary["samples_per_second"] for mode, summary in summaries.items()}


def esync(simulator, options):
    nominal = cluster("ESync's six workers and a parameter server behind 1 Gb/s",
                      [SLOWEST / HETEROGENEITY] * 3 + SLOW_STEPS, model_bytes=MODEL_BYTES)
    implied = cluster("The same with what their figures say of steps, network and queries", [IMPLIED_FASTEST] * 3 + SLOW_STEPS,
                      bandwidth=IMPLIED_BANDWIDTH, server_latency_seconds=QUERY_SECONDS / 2, model_bytes=MODEL_BYTES)
    summaries = simulate(simulator, options, "esync", nominal)
    as_measured = rates(simulate(simulator, options, "esync-implied", implied))
    rate = rates(summaries)
    megabytes = {mode: summary["bytes_sent"] / summary["samples"] / 1e6 for mode, summary in summaries.items()}
    shares = {mode: computing_shares(summary) for mode, summary in summaries.items()}
    published_rate = {mode: samples for mode, (samples, _) in PUBLISHED.items()}
    published_megabytes = {mode: sent / samples for mode, (samples, sent) in PUBLISHED.items()}

    def ratios(found):
        return {mode: found["esync"] / found[mode] for mode in ("sync", "async")}

    ours, theirs, measured = ratios(rate), ratios(published_rate), ratios(as_measured)
    fewer = {mode: megabytes[mode] / megabytes["esync"] for mode in ("sync", "async")}
    figures = {"samples_per_second": rate, "samples_per_second_implied": as_measured, "megabytes_per_sample": megabytes,
               "computing_shares": shares}
    return [
        Claim("ESync, throughput over SSGD and ASGD (ResNet18, 6 workers, h = 150)",
              f"{times(theirs['sync'])} and {times(theirs['async'])} ({published_rate['esync']}, {published_rate['sync']} and "
              f"{published_rate['async']} samples/s)",
              f"{times(ours['sync'])} and {times(ours['async'])} ({rate['esync']:.0f}, {rate['sync']:.0f} and "
              f"{rate['async']:.0f} samples/s); with what their plots imply of network, fast steps and queries: "
              f"{times(measured['sync'])} and {times(measured['async'])} ({as_measured['esync']:.0f}, "
              f"{as_measured['sync']:.0f} and {as_measured['async']:.0f})",
              "Their plots imply 80 MB/s of the 1 Gb/s, h = 103 (a fast step of 34 ms) and 16 ms for each query of the state "
              "server; without these losses the shape is the same and the gain larger", figures),
        Claim("ESync, traffic per sample against SSGD and ASGD",
              f"{published_megabytes['esync']:.4f}, {published_megabytes['sync']:.2f} and "
              f"{published_megabytes['async']:.2f} MB in one direction: ~50× less",
              f"{megabytes['esync'] / 2:.4f}, {megabytes['sync'] / 2:.2f} and {megabytes['async'] / 2:.2f} MB: "
              f"{times(fewer['sync'])} and {times(fewer['async'])} less",
              "Traffic falls with the steps of a round; here rank 0 is the server of SSGD and ESync, so that five of six "
              "models travel"),
        Claim("ESync, share of time computing, by device",
              "37–42% on all in ESync; 0.4% on the fast and 26–41% on the slow ones in SSGD",
              f"{percent(min(shares['esync']))}–{percent(max(shares['esync']))} in ESync; {percent(min(shares['sync'][:3]))} "
              f"and {percent(min(shares['sync'][3:]))}–{percent(max(shares['sync'][3:]))} in SSGD",
              "All devices compute equally long in both; the level is the ratio of the slowest step to the transfer"),
    ]
