"""DiLoCo (Douillard et al. 2023): traffic at equal loss of a character model, eight equal workers."""

from .claim import Claim, times
from .clusters import cluster
from .simulator import median_of

WORKERS = 8
PUBLISHED_LOCAL_STEPS = 500


def diloco(simulator, options):
    text = cluster("Eight equal workers", [0.1] * WORKERS, bandwidth=125e6)
    budget = WORKERS * 32 * (500 if options.quick else 5000)
    # A target that nobody reaches: every run uses the whole budget, and its final loss counts.
    flags = [*options.characters(), "--target-loss", "0.01", "--max-samples", str(budget), "--eval-every", str(budget // 10)]
    lengths = [50, 5] if options.quick else [PUBLISHED_LOCAL_STEPS, 100, 20]
    rates = options.rates(0.02, 0.05, 0.1, 0.2)
    rows = {"sync": simulator.compare("diloco-sync", text, "sync", flags, rates, options.few_seeds)}
    for length in lengths:
        more = ["--local-steps", str(length)]
        rows[f"H = {length}"] = simulator.compare(f"diloco-{length}", text, "diloco", [*flags, *more], rates, options.few_seeds)
    loss = {name: median_of(row, lambda summary: summary["final_loss"]) for name, row in rows.items()}
    sent = {name: median_of(row, lambda summary: summary["bytes_sent"]) for name, row in rows.items()}
    reference = loss["sync"]
    found = ", ".join(f"{name}: {times(sent['sync'] / sent[name])} less, loss {loss[name]:.3f} ({loss[name] - reference:+.3f})"
                      for name in rows if name != "sync")
    equal = [name for name in rows if name != "sync" and loss[name] <= reference + 0.01]
    return [
        Claim(f"DiLoCo, {WORKERS} workers: traffic at equal loss", "500× less with H = 500, as good as synchronous training",
              f"{found}; sync {reference:.3f} (char-mlp on tinyshakespeare, {budget // 1000}k samples each)",
              f"Equal to 0.01 with {', '.join(equal) or 'none of these'}", {
                  "rows": rows, "final_loss": loss, "bytes_sent": sent,
                  "learning_rates": {name: row["learning_rate"] for name, row in rows.items()}}),
    ]
