"""Hermes (Basani et al. 2024): traffic and time to a target on small boards."""

from .claim import Claim, less, seconds, times
from .simulator import median_of, time_to_target

# An image of MNIST.
SAMPLE_BYTES = 784

# esync's own defaults open the gate sooner.
PAPERS_GATE = ["--gate-idle", "5", "--gate-decay", "0.1"]
POLICIES = {
    "BSP": ("sync", []),
    "ASP": ("async", []),
    "SSP": ("ssp", []),
    "local SGD": ("local-sgd", []),
    "Hermes": ("hermes", PAPERS_GATE),
    "Hermes, f32 wire": ("hermes", [*PAPERS_GATE, "--wire", "f32"]),
}


def hermes(simulator, options):
    # With 8,000 images a board has 444, and what it learns alone ends at about 90%.
    target = "0.85" if options.quick else "0.88"
    flags = ["--network", "mlp", *options.mnist(), "--momentum", "0", "--target-accuracy", target, "--max-samples", "200000",
             "--eval-every", "1024"]
    text = simulator.built_in("edge-18")
    rows = {name: simulator.compare(f"hermes-{number}", text, mode, [*flags, *more], options.rates(0.1, 0.2, 0.4),
                                    options.seeds) for number, (name, (mode, more)) in enumerate(POLICIES.items())}
    time = {name: time_to_target(row) for name, row in rows.items()}
    sent = {name: median_of(row, lambda summary: summary["bytes_sent"]) for name, row in rows.items()}
    shipped = median_of(rows["Hermes"], lambda summary: summary["bytes_sent"] + SAMPLE_BYTES * summary["samples"])
    others = ["BSP", "ASP", "SSP", "local SGD"]
    return [
        Claim("Hermes, 18 boards: traffic to the target", "−62.1% against the state of the art",
              ", ".join(f"{less(sent['Hermes'], sent[name])} of {name}" for name in others)
              + f" (MLP on MNIST to {float(target):.0%}; with an f32 wire "
              + ", ".join(f"{less(sent['Hermes, f32 wire'], sent[name])} of {name}" for name in others) + ")",
              f"Their boards were sent their data too; with {SAMPLE_BYTES} bytes for each sample drawn it is "
              + ", ".join(f"{less(shipped, sent[name])} of {name}" for name in others), {
                  "rows": rows, "bytes_sent": sent, "bytes_sent_with_data": shipped}),
        Claim("Hermes: time to the target", "13.22× sooner than the state of the art",
              ", ".join(f"{times(time[name] / time['Hermes'])} of {name} ({seconds(time[name])})" for name in others)
              + f"; Hermes {seconds(time['Hermes'])}",
              "Theirs were other boards and baselines. Here speeds differ by 7, and a board learns from 444 images", {"learning_rates": {name: row["learning_rate"] for name, row in rows.items()}}),
    ]
