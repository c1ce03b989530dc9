"""Configurations put in lines: a method on more and more ranks, and all methods on a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.harness.names import shown
from benchmarks.harness.phase_runs import TIMED, Point, but
from benchmarks.harness.statistics import Estimate, quotient


@dataclass(frozen=True)
class Series:
    """A method on more and more ranks."""

    label: str
    points: tuple[Point, ...]

    @property
    def method(self) -> str:
        """Its name."""
        return self.points[0].method

    @property
    def base(self) -> Point | None:
        """One rank, where it was measured and means something."""
        for point in self.points:
            if point.ranks == 1 and not point.oversubscribed:
                return point
        return None

    @property
    def valid(self) -> list[Point]:
        """The points that speedups may be drawn from."""
        return [point for point in self.points if not point.oversubscribed]

    def efficiency(self, point: Point) -> Estimate | None:
        """Cost of a sample gradient on one rank, over that at N; None where it means nothing.

        In strong scaling that is the speedup over N, in weak scaling the time of one rank's work
        alone over that beside others.
        """
        base = self.base
        if base is None or point.oversubscribed or not _same_work(base, point):
            return None
        return Estimate(1.0) if point is base else quotient(base.cost, point.cost)

    def lost(self, point: Point) -> dict[str, float] | None:
        """By phase, rank-seconds per sample gradient more than on one rank, as part of all there.

        Besides the phases "unequal": how much longer the slowest rank takes than the mean.
        """
        base = self.base
        if base is None or point.oversubscribed or point is base:
            return None
        whole = sum(base.phase_cost[phase] for phase in TIMED)
        if not whole:
            return None
        found = {p: (point.phase_cost[p] - base.phase_cost[p]) / whole for p in TIMED}
        mean = sum(point.phase_cost[phase] for phase in TIMED)
        return {**found, "unequal": (point.slowest - mean) / whole}


@dataclass(frozen=True)
class Network:
    """All methods on a data set and network."""

    data: str
    hidden: str
    parameters: int
    series: tuple[Series, ...]

    @property
    def title(self) -> str:
        """In words."""
        layers = self.hidden.replace(",", "-")
        return f"{shown(self.data)}, MLP {layers}, {self.parameters:,} parameters"

    @property
    def points(self) -> list[Point]:
        """Those of all methods."""
        return [point for series in self.series for point in series.points]

    @property
    def oversubscribed(self) -> bool:
        """Whether any are."""
        return any(point.oversubscribed for point in self.points)


def _same_work(base: Point, point: Point) -> bool:
    """Whether an outer iteration is as much work, in all (strong) or per rank (weak).

    The control batch and rounded local steps make a little difference.
    """
    one, many = (p.runs[0].per_evaluation for p in (base, point))
    return any(abs(one / work - 1.0) < 0.1 for work in (many, many / point.ranks))


def networks(found: Sequence[Point], kind: str) -> list[Network]:
    """Configurations by network, then by method, in the order of their names.

    Args:
        kind: "strong" or "weak".
    """
    grouped: dict[tuple[str, int, str], list[Point]] = {}
    for point in found:
        size = int(point.first["parameters"])
        key = (str(point.settings["data"]), size, str(point.settings["hidden"]))
        grouped.setdefault(key, []).append(point)
    return [
        Network(data, hidden, size, tuple(_series(some, kind)))
        for (data, size, hidden), some in sorted(grouped.items())
    ]


def _series(found: Sequence[Point], kind: str) -> list[Series]:
    methods = sorted({point.method for point in found}, key=_order)
    made = []
    for method in methods:
        own = [point for point in found if point.method == method]
        split = _split(own, kind)
        for name, some in split.items():
            label = shown(method) + (f", {name}" if len(split) > 1 else "")
            made.append(Series(label, tuple(sorted(some, key=lambda point: point.ranks))))
    return made


def _split(own: Sequence[Point], kind: str) -> dict[str, list[Point]]:
    """A method's points by what is the same at every N: the fewest lines that are each one N once.

    Minibatches may be of a rank, the same at every N, or of all ranks together, divided by N.
    """

    def by(name: str, batch: int) -> dict[str, list[Point]]:
        found: dict[str, list[Point]] = {}
        for point in own:
            size = int(point.settings["batch"]) * (point.ranks if batch else 1)
            more = but(point.settings, "repetition", "ranks", "batch", *_KNOWN)
            parts = [name.format(size)] + [f"{k} {v}" for k, v in sorted(more.items())]
            found.setdefault(", ".join(parts), []).append(point)
        return found

    def mixed(found: dict[str, list[Point]]) -> int:
        return sum(len(some) - len({point.ranks for point in some}) for some in found.values())

    ways = [by("batch {} per rank", 0), by("batch {} in all", 1)]
    if kind == "strong":
        ways.reverse()
    together: dict[str, list[Point]] = {own[0].method: list(own)}
    if not mixed(together):
        return together
    return min(ways, key=lambda found: (mixed(found), len(found)))


_KNOWN = ("benchmark", "method", "data", "hidden")


def _order(method: str) -> tuple[int, str]:
    """Ours first, the default before the others."""
    return (0 if method == "apts" else 1 if method.startswith("apts") else 2, method)
