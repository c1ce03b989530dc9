"""The methods of ``compare`` as they came out of their grids."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import fmean

from benchmarks.harness.results import Row
from benchmarks.quality.compare.plan import DataSet, Get, Group, Measure, Method, groups


@dataclass(frozen=True)
class Entry:
    """A method with so many ranks as it came out of its grid.

    Attributes:
        tuned: the settings chosen, but for the seed. rows: the runs of them that are done.
        worst: the figure on the first seed at the chosen batch and the worst rate; None without a
            grid, infinite where that diverged.
    """

    group: Group
    tuned: Row
    rows: list[Row]
    worst: float | None

    @property
    def method(self) -> Method:
        """The method."""
        return self.group.method

    @property
    def measure(self) -> Measure:
        """What it is judged by."""
        return self.group.data.measure

    @property
    def figures(self) -> list[float]:
        """Final test accuracy in percent, or loss, of each run; none where any diverged."""
        values = [self.measure.shown(row) for row in self.rows]
        return [] if None in values else [value for value in values if value is not None]

    @property
    def mean(self) -> float:
        """Mean of the figures; NaN where a run diverged."""
        return fmean(self.figures) if self.figures else math.nan

    def behind(self, other: Entry) -> float:
        """By how much its figure is worse than another's; infinite where it diverged."""
        if not self.figures:
            return math.inf
        return self.measure.sign * (other.mean - self.mean) if other.figures else -math.inf

    @property
    def score(self) -> float:
        """Higher is better; -infinity where a run diverged."""
        return self.measure.sign * self.mean if self.figures else -math.inf

    def average(self, name: str) -> float:
        """Mean of a figure over the runs."""
        return fmean(row[name] for row in self.rows)


def entries(data: DataSet, get: Get) -> list[Entry]:
    """What there is of a set, in the order of its methods and ranks."""
    found = []
    for group in groups(data):
        best = group.best(get)
        if best is not None:
            found.append(Entry(group, *best, worst=_worst(group, best[0], get)))
    return found


def _worst(group: Group, tuned: Row, get: Get) -> float | None:
    if "lr" not in tuned:
        return None
    others = [c for c in group.candidates() if c["batch"] == tuned["batch"]]
    rows = [get({**candidate, "seed": group.data.seeds[0]}) for candidate in others]
    measure = group.data.measure
    scores = [measure.score(row) for row in rows if row is not None]
    return measure.sign * measure.scale * min(scores) if scores else None
