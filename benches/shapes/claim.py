"""What was published beside what was simulated."""

from dataclasses import asdict, dataclass, field

TITLES = ("claim", "published", "simulated", "why different")


@dataclass
class Claim:
    """A row of the table; `figures` is everything that was measured for it."""
    claim: str
    published: str
    simulated: str
    why: str
    figures: dict = field(default_factory=dict)

    def record(self):
        return asdict(self)


def markdown(claims):
    """The table."""
    rows = [TITLES] + [(claim.claim, claim.published, claim.simulated, claim.why) for claim in claims]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    lines.insert(1, "|" + "---|" * len(TITLES))
    return "\n".join(lines)


def times(ratio):
    """A ratio for people: three digits at most."""
    if ratio is None or ratio in (float("inf"), 0):
        return "–"
    return f"{ratio:.0f}×" if ratio >= 20 else f"{ratio:.1f}×" if ratio >= 2 else f"{ratio:.2f}×"


def percent(share):
    return f"{100 * share:.0f}%" if share >= 0.095 else f"{100 * share:.1f}%"


def seconds(value):
    if value == float("inf"):
        return "not reached"
    return f"{value:.0f} s" if value >= 20 else f"{value:.2g} s"


def less(value, reference):
    """How much less than the reference, as a percentage with its sign."""
    if value == float("inf") or reference == float("inf"):
        return "–"
    change = 100 * (value / reference - 1)
    return f"{'−' if change < 0 else '+'}{abs(change):.0f}%"
