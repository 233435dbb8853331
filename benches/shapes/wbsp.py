"""WBSP (Yang et al. 2024): share of time computing, and time to a target, on ten workers of which five sleep."""

from .claim import Claim, less, percent, seconds
from .clusters import cluster
from .simulator import median_of, time_to_target

STEPS = [0.5, 1.5] * 5
BANDWIDTH = 1.25e9
# The small CNN on CIFAR-10: 1.07 million parameters; and AlexNet, 61 million.
MODELS = {"CNN": 4_300_000, "AlexNet": 244_000_000}

POLICIES = {
    "BSP": ("sync", []),
    "SSP": ("ssp", ["--staleness", "40"]),
    "ASP": ("async", []),
    "ADSP": ("adsp", ["--check-period", "5s"]),
    "WBSP": ("wbsp", []),
    "WBSP, overlapped": ("wbsp-overlap", []),
}


def ten_workers(model_bytes):
    return cluster("WBSP's H2: every second worker sleeps for another second", STEPS, bandwidth=BANDWIDTH,
                   model_bytes=model_bytes, jitter="normal:0.03")


def computing_share(summary):
    workers = summary["workers"]
    return sum(w["compute_seconds"] for w in workers) / sum(w["total_seconds"] for w in workers)


def wbsp(simulator, options):
    shares = {}
    for model, model_bytes in MODELS.items():
        for name, (mode, more) in POLICIES.items():
            flags = ["--surrogate", "--mode", mode, *more, "--max-samples", "1000000000", "--max-seconds", "300",
                     "--learning-rate", "0.001", "--eval-every", "1000000000"]
            summary = simulator.run(f"wbsp-share-{model}-{mode}", ten_workers(model_bytes), flags)
            shares.setdefault(model, {})[name] = computing_share(summary)
    target, budget = ("2.4", "100000") if options.quick else ("2.2", "400000")
    flags = [*options.characters(), "--target-loss", target, "--max-samples", budget, "--eval-every", "2560"]
    rows = {name: simulator.compare(f"wbsp-{mode}", ten_workers(MODELS["CNN"]), mode, [*flags, *more],
                                    options.rates(0.05, 0.1, 0.2), options.seeds)
            for name, (mode, more) in POLICIES.items()}
    times = {name: time_to_target(row) for name, row in rows.items()}
    others = {name: time for name, time in times.items() if not name.startswith("WBSP")}
    fastest = min(others, key=others.get)

    def spread(model):
        found = [shares[model][name] for name in ("BSP", "SSP")]
        return f"{percent(min(found))}–{percent(max(found))}"

    cnn, alexnet = shares["CNN"], shares["AlexNet"]
    return [
        Claim("WBSP, ten workers: share of time computing", "91%, others 55–72%",
              f"CNN of 4.3 MB: {percent(cnn['WBSP'])}, BSP and SSP {spread('CNN')}, ASP {percent(cnn['ASP'])}; AlexNet of "
              f"244 MB: WBSP {percent(alexnet['WBSP'])}, overlapped {percent(alexnet['WBSP, overlapped'])}, BSP "
              f"{percent(alexnet['BSP'])}, SSP {percent(alexnet['SSP'])}",
              "Nobody waits in WBSP, so that its share is what transfers leave: their model, network and Python lie between "
              "our two models at 10 Gb/s", {"computing_shares": shares}),
        Claim("WBSP: time to the target against the fastest other", "up to −60%",
              f"{less(times['WBSP'], times[fastest])} against {fastest} ("
              + ", ".join(f"{name} {seconds(time)}" for name, time in sorted(times.items(), key=lambda pair: pair[1]))
              + f"; char-mlp to a loss of {target})",
              "", {"rows": rows, "learning_rates": {name: row["learning_rate"] for name, row in rows.items()}}),
    ]
