"""What the measurements say: medians over rounds, ratios, verdicts, and the table in Markdown."""

import statistics

# Ratios closer to 1 than this are ties: the machine is not steadier.
TIE = 1.15

# Time over the ceiling that registered buffers may take, from this many bytes up.
MOST_OVER_CEILING = [(1 << 10, 3.8), (1 << 20, 1.7), (16 << 20, 1.25)]
# How many times faster than the fastest peer.
FASTER_THAN_DEFAULT, FASTER_THAN_TUNED, TUNED_FROM = 2.4, 2.3, 1 << 10
PRIVATE_FASTER_THAN_TUNED, PRIVATE_TUNED_AT = 1.3, 64 << 20


def medians(records):
    """Of one program's records of one cell over the rounds."""
    # What memory gives drifts from minute to minute: a time is held against the ceiling that the same process has measured.
    over_ceiling = [record["median_us"] / record["ceiling_us"] for record in records if record.get("ceiling_us")]
    return {"median_us": statistics.median(record["median_us"] for record in records),
            "min_us": min(record["min_us"] for record in records),
            "p95_us": statistics.median(record["p95_us"] for record in records),
            "iterations": sum(record["iterations"] for record in records),
            "wrong": sum(record["wrong"] or 0 for record in records), "rounds": len(records),
            "over_ceiling": statistics.median(over_ceiling) if over_ceiling else None,
            "collective": records[0].get("collective")}


def fastest(times):
    """`(name, time)` of the smallest, or `None`."""
    return min(times.items(), key=lambda item: item[1], default=None)


def judge(cell, bytes_):
    """Whether a cell keeps what was promised; the two lists say what does not, and are `None` if nothing was measured."""
    default, tuned = fastest(cell["default"]), fastest(cell["tuned"])
    registered, over_ceiling = of_registered(cell)
    private = cell["esync"].get("private fastest")
    return {"registered": None if registered is None else judge_registered(registered, bytes_, over_ceiling, default, tuned),
            "private": None if private is None else judge_private(private, bytes_, default, tuned)}


def of_registered(cell):
    """The time of registered buffers, and how many times the ceiling it is; `None` for what was not measured."""
    for variant in ("registered canonical", "registered fastest"):
        if variant in cell["esync"]:
            return cell["esync"][variant], cell["over_ceiling"].get(variant)
    return None, None


def judge_registered(time, bytes_, over_ceiling, default, tuned):
    failures = []
    limit = max((pair for pair in MOST_OVER_CEILING if pair[0] <= bytes_), default=None)
    if over_ceiling and limit and over_ceiling > limit[1]:
        failures.append(f"{over_ceiling:.2f} × ceiling, not {limit[1]}")
    if default and default[1] / time < FASTER_THAN_DEFAULT:
        failures.append(f"{default[1] / time:.2f} × {default[0]}, not {FASTER_THAN_DEFAULT}")
    if tuned and bytes_ >= TUNED_FROM and tuned[1] / time < FASTER_THAN_TUNED:
        failures.append(f"{tuned[1] / time:.2f} × tuned {tuned[0]}, not {FASTER_THAN_TUNED}")
    return failures


def judge_private(time, bytes_, default, tuned):
    failures = []
    for kind, peer in (("", default), ("tuned ", tuned)):
        if peer and time / peer[1] >= TIE:
            failures.append(f"slower than {kind}{peer[0]} by {time / peer[1]:.2f}")
    if tuned and bytes_ == PRIVATE_TUNED_AT and tuned[1] / time < PRIVATE_FASTER_THAN_TUNED:
        failures.append(f"{tuned[1] / time:.2f} × tuned {tuned[0]}, not {PRIVATE_FASTER_THAN_TUNED}")
    return failures


def time_text(microseconds):
    if microseconds is None:
        return "–"
    for limit, unit, scale in ((1e3, "µs", 1), (1e6, "ms", 1e3), (float("inf"), "s", 1e6)):
        if microseconds < limit:
            value = microseconds / scale
            return f"{value:.2f} {unit}" if value < 10 else f"{value:.1f} {unit}" if value < 100 else f"{value:.0f} {unit}"


def size_text(bytes_):
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if bytes_ % size == 0:
            return f"{bytes_ // size} {unit}"
    return f"{bytes_ // 10**6} MB" if bytes_ % 10**6 == 0 else f"{bytes_} B"


def ratio_text(above, below):
    """How many times `above` is `below`; `≈` marks a tie."""
    if not above or not below:
        return "–"
    ratio = above / below
    tie = "≈ " if 1 / TIE < ratio < TIE else ""
    return f"{tie}{ratio:.2f}"


def verdict_text(failures):
    return "–" if failures is None else "; ".join(failures) or "kept"


def markdown(cells, peers, variants):
    """One table. `cells` is a list of dictionaries, `peers` the titles in order, `variants` esync's keys in order."""
    titles = ["ranks", "size", *peers, "fastest tuned", *(f"esync {key}" for key in variants), "ceiling",
              "registered / ceiling", "peer / registered", "tuned / registered", "peer / private", "tuned / private",
              "registered buffers", "private buffers"]
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    for cell in cells:
        esync = cell["esync"]
        default, tuned = fastest(cell["default"]), fastest(cell["tuned"])
        registered, over_ceiling = of_registered(cell)
        private = esync.get("private fastest")
        of = lambda pair: pair and pair[1]
        verdict = judge(cell, cell["bytes"])
        lines.append("| " + " | ".join([
            str(cell["ranks"]), size_text(cell["bytes"]), *(time_text(cell["default"].get(peer)) for peer in peers),
            f"{time_text(tuned[1])} ({tuned[0]})" if tuned else "–",
            *(time_text(esync.get(key)) for key in variants), time_text(cell["ceiling_us"]),
            f"{over_ceiling:.2f}" if over_ceiling else "–", ratio_text(of(default), registered), ratio_text(of(tuned), registered),
            ratio_text(of(default), private), ratio_text(of(tuned), private),
            verdict_text(verdict["registered"]), verdict_text(verdict["private"])]) + " |")
    return "\n".join(lines)
