"""What the rows of single messages say: our layer against mpi4py alone, and the best settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, geometric_mean, median

import numpy as np

from benchmarks.harness.hockney import Hockney, fit
from benchmarks.harness.mpi_settings import SETTINGS
from benchmarks.harness.results import Row

LONG = 65536  # bytes; above, the goal is a share of the speed, below a difference
SHARE = 0.95
EXTRA = 5e-6  # seconds
SHORT, SHORT_MESSAGES = 320, 3  # bytes; of an outer iteration, about, beside its vector
NEAR = 1.05  # settings within this of the best are as good
_DRAWS = 1000

# Rows of one operation under one setting, by way through and bytes.
Table = Mapping[str, Mapping[int, Row]]


@dataclass(frozen=True)
class Place:
    """Where rows were measured; rows of different places are never compared."""

    ranks: int
    hosts: int
    link: str

    def __str__(self) -> str:
        ranks = f"{self.ranks} rank{'s' * (self.ranks > 1)}"
        if self.link == "none":
            return f"{ranks} on {self.hosts} host{'s' * (self.hosts > 1)}"
        return f"{ranks} on {self.hosts} hosts made on one machine, links {self.link}"


@dataclass(frozen=True)
class Verdict:
    """Our layer against mpi4py alone at one size.

    Attributes:
        value: difference of the medians in seconds up to 64 KiB, ratio of the speeds above.
        low, high: its 95 percent interval. met: None where the interval has the goal within.
    """

    nbytes: int
    value: float
    low: float
    high: float

    @property
    def met(self) -> bool | None:
        """Whether the goal is reached."""
        if self.nbytes > LONG:
            return True if self.low >= SHARE else False if self.high < SHARE else None
        return True if self.high <= EXTRA else False if self.low > EXTRA else None

    def __str__(self) -> str:
        if self.nbytes > LONG:
            return f"{100 * self.value:.0f} % [{100 * self.low:.0f}, {100 * self.high:.0f}]"
        micro = [1e6 * value for value in (self.value, self.low, self.high)]
        return f"{micro[0]:+.1f} us [{micro[1]:+.1f}, {micro[2]:+.1f}]"


def places(rows: Sequence[Row]) -> dict[Place, dict[tuple[str, str], dict[str, dict[int, Row]]]]:
    """Rows by place, then by operation and setting, then as a ``Table``."""
    found: dict[Place, dict[tuple[str, str], dict[str, dict[int, Row]]]] = {}
    for row in rows:
        s = row["settings"]
        tables = found.setdefault(Place(s["ranks"], s["hosts"], s["link"]), {})
        table = tables.setdefault((s["operation"], s["mpi"]), {})
        table.setdefault(s["through"], {})[s["bytes"]] = row
    return found


def compare(own: Row, bare: Row) -> Verdict:
    """A size's verdict; the interval is a bootstrap over the rounds, calls of a round together."""
    nbytes = own["settings"]["bytes"]
    ours, theirs = np.array(own["seconds"]), np.array(bare["seconds"])
    rounds = min(len(ours), len(theirs))  # measured apart, they may differ
    random = np.random.default_rng(0)  # the same rows always give the same interval
    drawn = random.integers(rounds, size=(_DRAWS, rounds))

    def against(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return b / a if nbytes > LONG else a - b

    value = float(against(np.median(ours), np.median(theirs)))
    medians = np.median(ours[drawn], axis=1), np.median(theirs[drawn], axis=1)
    low, high = np.quantile(against(*medians), (0.025, 0.975))
    return Verdict(nbytes, value, float(low), float(high))


def verdicts(table: Table, way: str) -> list[Verdict]:
    """Of a way through, at every size at which mpi4py alone was measured too."""
    own, bare = table.get(way, {}), table.get("mpi4py", {})
    return [compare(own[size], bare[size]) for size in sorted(own) if size in bare]


def summary(found: Sequence[Verdict]) -> str:
    """How far the goal is met, in a few words."""
    parts = []
    for text, answer in (("met", True), ("missed", False), ("open", None)):
        sizes = [str(v.nbytes) for v in found if v.met is answer]
        if sizes and answer is True:
            parts.append(f"met at {len(sizes)} of {len(found)} sizes")
        elif sizes:
            parts.append(f"{text} at {', '.join(sizes)} bytes")
    return "; ".join(parts) or "not measured"


def fitted(table: Table, way: str, *, least: int = 0) -> Hockney | None:
    """Latency and bandwidth of the medians from a size on; None of less than two sizes."""
    sizes = [size for size in sorted(table.get(way, {})) if size >= least]
    if len(sizes) < 2:
        return None
    return fit(sizes, [median(table[way][size]["seconds"]) for size in sizes])


def slowness(tables: Mapping[tuple[str, str], Table]) -> dict[str, float]:
    """Settings by how much slower than the best they send what an outer iteration sends.

    That is a vector and three short messages, Allreduces: geometric mean over the vectors above
    64 KiB. Without such, and where only Bcast was measured, it is over all sizes. Averages of the
    calls, as a protocol that is sometimes slow shows in them.

    Args:
        tables: by operation and setting. A size that one setting lacks is left out for all.
    """
    operation = "allreduce" if any(key[0] == "allreduce" for key in tables) else "broadcast"
    times = {
        mpi: {size: fmean(row["seconds"]) for size, row in table["mpi4py"].items()}
        for (name, mpi), table in tables.items()
        if name == operation and table.get("mpi4py")
    }
    common = set.intersection(*map(set, times.values())) if times else set()
    if not common:
        return {}
    short = max((size for size in common if size <= SHORT), default=None)
    vectors = [size for size in common if size > LONG]
    if operation == "allreduce" and vectors and short is not None:
        cost = {
            mpi: {size: own[size] + SHORT_MESSAGES * own[short] for size in vectors}
            for mpi, own in times.items()
        }
    else:
        cost = {mpi: {size: own[size] for size in common} for mpi, own in times.items()}
    best = {size: min(own[size] for own in cost.values()) for size in next(iter(cost.values()))}
    return {
        mpi: geometric_mean([own[size] / best[size] for size in best]) for mpi, own in cost.items()
    }


def best_setting(slower: Mapping[str, float]) -> str | None:
    """The fastest setting, or one with a part of its options only that is nearly as fast."""
    if not slower:
        return None
    best = min(slower, key=slower.__getitem__)
    options = SETTINGS.get(best, {}).items()
    near = [
        mpi
        for mpi in slower
        if slower[mpi] <= NEAR * slower[best] and SETTINGS.get(mpi, {}).items() <= options
    ]
    return min(near, key=lambda mpi: (len(SETTINGS.get(mpi, {})), slower[mpi]))
