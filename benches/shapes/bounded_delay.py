"""Bounded delay (FALCON's derivative): time to 97% of a CNN on MNIST with ten workers of different speeds."""

from .claim import Claim, seconds
from .clusters import cluster
from .simulator import time_to_target

PUBLISHED = {"sync": "199–300 s", "S = 10": "138 s", "S = 20": "106 s", "async": "93–121 s"}

# Ten epochs of a tenth of 60,000 images in batches of 100 took the slowest worker 500 s; delays that grow evenly from worker
# to worker give the published natural staleness of 30 to 34.
FASTEST, SLOWEST, WORKERS = 0.03, 0.83, 10
STEPS = [FASTEST + (SLOWEST - FASTEST) * rank / (WORKERS - 1) for rank in range(WORKERS)]

BOUNDS = {"sync": 0, "S = 10": 10, "S = 20": 20, "async": 1000}


# Not published: a target that every bound reaches within the budget here.
EASIER = 0.95


def bounded_delay(simulator, options):
    text = cluster("Ten workers with delays that grow evenly", STEPS, bandwidth=125e6)
    flags = ["--network", "lenet", *options.mnist(), "--batch-size", "100", "--momentum", "0.5",
             "--max-samples", "80000" if options.quick else "200000", "--eval-every", "2000"]

    def rows_to(target):
        return {name: simulator.compare(f"bounded-delay-{bound}-{target}", text, "bounded-delay",
                                        [*flags, "--staleness", str(bound), "--target-accuracy", str(target)],
                                        options.rates(0.05, 0.1, 0.2), 1) for name, bound in BOUNDS.items()}

    def times(rows):
        return ", ".join(f"{name} {seconds(time_to_target(row))}" for name, row in rows.items())

    target = 0.85 if options.quick else 0.97
    rows = rows_to(target)
    staleness = {name: max(int(versions) for summary in row["summaries"] for worker in summary["workers"]
                           for versions in worker["server"]["staleness"]) for name, row in rows.items()}
    claims = [
        Claim(f"Bounded delay, CNN on MNIST, ten workers: time to {target:.0%}",
              ", ".join(f"{name} {time}" for name, time in PUBLISHED.items()), times(rows),
              "8,000 images instead of 60,000, each bound at its best rate of one grid, and workers go on until the target "
              "instead of stopping after ten epochs each", {
                  "rows": rows, "largest_staleness": staleness,
                  "learning_rates": {name: row["learning_rate"] for name, row in rows.items()}}),
        Claim("Bounded delay: largest staleness without a bound", "30–34", str(staleness["async"]), ""),
    ]
    if not options.quick:
        easier = rows_to(EASIER)
        claims.append(Claim(f"Bounded delay: time to {EASIER:.0%}", "–", times(easier), "", {"rows": easier}))
    return claims
