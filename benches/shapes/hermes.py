"""Hermes (Basani et al. 2024): traffic and time to a target on small boards."""

from .claim import Claim, less, seconds, times
from .simulator import median_of, time_to_target

POLICIES = {
    "BSP": ("sync", []),
    "ASP": ("async", []),
    "SSP": ("ssp", []),
    "local SGD": ("local-sgd", []),
    "Hermes": ("hermes", []),
    "Hermes, f32 wire": ("hermes", ["--wire", "f32"]),
}


def hermes(simulator, options):
    target = "0.88" if options.quick else "0.93"
    flags = ["--network", "mlp", *options.mnist(), "--momentum", "0", "--target-accuracy", target, "--max-samples", "400000",
             "--eval-every", "1024"]
    text = simulator.built_in("edge-18")
    rows = {name: simulator.compare(f"hermes-{number}", text, mode, [*flags, *more], options.rates(0.05, 0.1, 0.2),
                                    options.seeds) for number, (name, (mode, more)) in enumerate(POLICIES.items())}
    time = {name: time_to_target(row) for name, row in rows.items()}
    sent = {name: median_of(row, lambda summary: summary["bytes_sent"]) for name, row in rows.items()}
    others = ["BSP", "ASP", "SSP", "local SGD"]
    return [
        Claim("Hermes, 18 boards: traffic to the target", "−62.1% against the state of the art",
              ", ".join(f"{less(sent['Hermes'], sent[name])} of {name}" for name in others)
              + f" (MLP on MNIST to {float(target):.0%}; with an f32 wire "
              + ", ".join(f"{less(sent['Hermes, f32 wire'], sent[name])} of {name}" for name in others) + ")",
              "Nobody ships data here, which was a part of theirs", {"rows": rows, "bytes_sent": sent}),
        Claim("Hermes: time to the target", "13.22× sooner than the slowest baseline",
              ", ".join(f"{times(time[name] / time['Hermes'])} of {name} ({seconds(time[name])})" for name in others)
              + f"; Hermes {seconds(time['Hermes'])}",
              "", {"learning_rates": {name: row["learning_rate"] for name, row in rows.items()}}),
    ]
