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

# Seconds of a step. SSGD's round took 64 · 6 / 45 = 8.5 s, of which the slow devices computed 26 to 41%.
STEPS = [SLOWEST / HETEROGENEITY] * 3 + [2.2, 2.9, SLOWEST]


def esync(simulator, options):
    text = cluster("ESync's six workers and a parameter server behind 1 Gb/s", STEPS, model_bytes=MODEL_BYTES)
    exchange = ["--collective", "parameter-server", "--servers", "1"]
    summaries = {}
    for mode in PUBLISHED:
        # Virtual seconds: enough rounds for a mean.
        flags = ["--surrogate", "--mode", mode, "--batch-size", str(BATCH_SIZE), "--learning-rate", "0.001",
                 "--max-samples", "1000000000", "--max-seconds", "100" if options.quick else "400",
                 "--eval-every", "1000000000", *(exchange if mode in ("sync", "esync") else [])]
        summaries[mode] = simulator.run(f"esync-{mode}", text, flags)
    rate = {mode: summary["samples_per_second"] for mode, summary in summaries.items()}
    megabytes = {mode: summary["bytes_sent"] / summary["samples"] / 1e6 for mode, summary in summaries.items()}
    shares = {mode: computing_shares(summary) for mode, summary in summaries.items()}
    published_rate = {mode: samples for mode, (samples, _) in PUBLISHED.items()}
    published_megabytes = {mode: sent / samples for mode, (samples, sent) in PUBLISHED.items()}

    def ratios(rates):
        return {mode: rates["esync"] / rates[mode] for mode in ("sync", "async")}

    ours, theirs = ratios(rate), ratios(published_rate)
    fewer = {mode: megabytes[mode] / megabytes["esync"] for mode in ("sync", "async")}
    figures = {"samples_per_second": rate, "megabytes_per_sample": megabytes, "computing_shares": shares}
    return [
        Claim("ESync, throughput over SSGD and ASGD (ResNet18, 6 workers, h = 150)",
              f"{times(theirs['sync'])} and {times(theirs['async'])} ({published_rate['esync']}, {published_rate['sync']} and "
              f"{published_rate['async']} samples/s)",
              f"{times(ours['sync'])} and {times(ours['async'])} ({rate['esync']:.0f}, {rate['sync']:.0f} and "
              f"{rate['async']:.0f} samples/s)",
              "Steps are inferred from their plots. Their round lost 5 s to transfers, ours what 1 Gb/s needs, and a query of "
              "their state server was an HTTP request after each step", figures),
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
