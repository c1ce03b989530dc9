"""What the rows of single messages say: our layer against mpi4py alone, and the best settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean, geometric_mean, median
from typing import Any

import numpy as np

from benchmarks.harness import names, statistics
from benchmarks.harness.hockney import Hockney, fit
from benchmarks.harness.mpi_settings import SETTINGS
from benchmarks.harness.results import Row
from benchmarks.harness.statistics import Estimate, paired
from benchmarks.messages.micro.plan import THROUGH

LONG = 65536  # bytes; above, the goal is a share of the speed, below a difference
SHARE = 0.95
EXTRA = 5e-6  # seconds
NAMES = {"allreduce": "Allreduce", "broadcast": "Bcast"}
BARE = ("comm-untimed", "mpi4py", "comm")  # the first that is there has its model drawn
SHORT, SHORT_MESSAGES = 320, 3  # bytes; of an outer iteration, about, beside its vector
NEAR = 1.05  # settings within this of the best are as good


@dataclass(frozen=True)
class Place:
    """Where rows were measured; rows of different places are never compared."""

    ranks: int
    hosts: int
    link: str

    def __str__(self) -> str:
        ranks = f"{self.ranks} rank{'s' * (self.ranks > 1)}"
        if self.hosts == 1:
            return f"{ranks} on one host"
        made = "" if self.link == "none" else f" made on one machine, {names.shown(self.link)}"
        return f"{ranks} on {self.hosts} hosts{made}"


@dataclass(frozen=True)
class Verdict:
    """Our layer against mpi4py alone at one size.

    Attributes:
        found: difference of the medians in seconds up to 64 KiB, ratio of the speeds above.
    """

    nbytes: int
    found: Estimate

    @property
    def met(self) -> bool | None:
        """Whether the goal is reached; None where the interval has it within."""
        value, low, high = self.found.value, self.found.low, self.found.high
        low, high = value if low is None else low, value if high is None else high
        if self.nbytes > LONG:
            return True if low >= SHARE else False if high < SHARE else None
        return True if high <= EXTRA else False if low > EXTRA else None

    def __str__(self) -> str:
        if self.nbytes > LONG:
            return f"{self.found.times(100).text('{:.0f}'.format)} %"
        return f"{self.found.times(1e6).text('{:+.1f}'.format)} µs"


def compare(own: Row, bare: Row) -> Verdict:
    """A size's verdict; the calls of a round, measured in turns, are drawn together."""
    nbytes = own["settings"]["bytes"]

    def against(ours: Any, theirs: Any) -> Any:
        return theirs / ours if nbytes > LONG else ours - theirs

    return Verdict(nbytes, paired(against, np.array(own["seconds"]), np.array(bare["seconds"])))


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


def slowness(cases: Sequence[Case]) -> dict[str, float]:
    """Settings by how much slower than the best they send what an outer iteration sends.

    That is a vector and three short messages, Allreduces: geometric mean over the vectors above
    64 KiB. Without such, and where only Bcast was measured, it is over all sizes. Averages of the
    calls, as a protocol that is sometimes slow shows in them.

    A size that one setting lacks is left out for all.
    """
    operation = min((case.operation for case in cases), default="")  # allreduce, where it is there
    times = {
        case.mpi: {size: fmean(row["seconds"]) for size, row in case.rows["mpi4py"].items()}
        for case in cases
        if case.operation == operation and case.rows.get("mpi4py")
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


@dataclass(frozen=True)
class Case:
    """One operation between the same ranks under the same settings.

    Attributes:
        rows: by way through and bytes.
    """

    place: Place
    operation: str
    mpi: str
    rows: dict[str, dict[int, Row]]

    @property
    def name(self) -> str:
        """Operation and place."""
        return f"{NAMES.get(self.operation, self.operation)}, {self.place}"

    @property
    def title(self) -> str:
        """With the settings, where they are not the defaults."""
        return self.name if self.mpi == "defaults" else f"{self.name}, {names.mpi(self.mpi)}"

    @property
    def ways(self) -> list[str]:
        """Ways through in the order of the tables."""
        return sorted(self.rows, key=lambda way: ([*THROUGH, way].index(way), way))

    @property
    def sizes(self) -> list[int]:
        """Bytes, ascending."""
        return sorted({nbytes for rows in self.rows.values() for nbytes in rows})

    def median(self, way: str, nbytes: int) -> Estimate:
        """Seconds of a call."""
        return statistics.median([np.asarray(self.rows[way][nbytes]["seconds"], dtype=np.float64)])

    @cached_property
    def verdicts(self) -> dict[str, dict[int, Verdict]]:
        """Of our layer against mpi4py alone, by way and bytes."""
        bare = self.rows.get("mpi4py", {})
        return {
            way: {size: compare(own[size], bare[size]) for size in sorted(own) if size in bare}
            for way in self.ways
            if way != "mpi4py" and (own := self.rows[way])
        }

    def fitted(self, way: str, *, least: int = 0) -> Hockney | None:
        """Latency and bandwidth of the medians from a size on; None of less than two sizes."""
        own = {size: row for size, row in sorted(self.rows.get(way, {}).items()) if size >= least}
        return (
            fit([*own], [median(row["seconds"]) for row in own.values()]) if len(own) > 1 else None
        )

    @property
    def model(self) -> tuple[str, Hockney] | None:
        """Of the barest way that was measured; None of a single size."""
        for way in BARE:
            found = self.fitted(way)
            if found is not None:
                return way, found
        return None


def cases(rows: Sequence[Row]) -> dict[Place, list[Case]]:
    """The rows by place, then by operation and settings."""
    found: dict[Place, dict[tuple[str, str], Case]] = {}
    for row in rows:
        s = row["settings"]
        place = Place(s["ranks"], s["hosts"], s.get("link") or "none")
        key = (s["operation"], s.get("mpi") or "defaults")
        case = found.setdefault(place, {}).setdefault(key, Case(place, *key, {}))
        case.rows.setdefault(s["through"], {})[s["bytes"]] = row
    return {
        place: sorted(
            found[place].values(),
            key=lambda c: (c.operation, [*SETTINGS, c.mpi].index(c.mpi), c.mpi),
        )
        for place in sorted(found, key=lambda place: (place.link, place.hosts, place.ranks))
    }
