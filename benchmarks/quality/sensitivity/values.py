"""What came out of a parameter's values, against the default with the same seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from benchmarks.harness.runs import accuracy
from benchmarks.quality.sensitivity.plan import Get, Plan, Point, Sweep

CHANCE = 10.0  # percent, of ten classes: what a run that diverged counts as


@dataclass(frozen=True)
class Value:
    """A value of a parameter.

    Attributes:
        percents: test accuracy by seed, of the runs that are done. diverged: how many of them.
        loss: points of accuracy against the default, over the seeds of both; None without such.
    """

    point: Point
    percents: dict[int, float]
    diverged: int
    loss: float | None

    @property
    def mean(self) -> float:
        """Accuracy over the seeds that are done."""
        return fmean(self.percents.values())


@dataclass(frozen=True)
class Swept:
    """A parameter at a number of ranks."""

    sweep: Sweep
    ranks: int
    values: list[Value]

    @property
    def default(self) -> Value:
        """The default's value."""
        return next(value for value in self.values if value.point.default)

    @property
    def ends(self) -> tuple[Value, Value] | None:
        """Of the lowest and of the highest accuracy; None where only the default has been run."""
        done = [value for value in self.values if value.percents]
        if all(value.point.default for value in done):
            return None
        order = sorted(done, key=lambda value: value.mean)
        return order[0], max(done, key=lambda value: value.mean)

    @property
    def spread(self) -> float:
        """Points between them."""
        return self.ends[1].mean - self.ends[0].mean if self.ends else 0.0

    @property
    def losses(self) -> list[tuple[float, Swept, Value]]:
        """What the values cost that are not the default, and have been run."""
        found = [(value.loss, self, value) for value in self.values if not value.point.default]
        return [(loss, item, value) for loss, item, value in found if loss is not None]


def swept(plan: Plan, seeds: Sequence[int], get: Get) -> list[Swept]:
    """Every parameter at every number of ranks, run or not."""
    return [
        Swept(sweep, ranks, _values(sweep.points(ranks), seeds, get))
        for sweep in plan.sweeps()
        for ranks in sweep.family.ranks
    ]


def _values(points: Sequence[Point], seeds: Sequence[int], get: Get) -> list[Value]:
    runs = [
        {seed: row for seed in seeds if (row := get({**point.settings, "seed": seed})) is not None}
        for point in points
    ]
    percents = [
        {seed: 100 * accuracy(row) if accuracy(row) >= 0 else CHANCE for seed, row in own.items()}
        for own in runs
    ]
    default = next(own for point, own in zip(points, percents, strict=True) if point.default)
    values = []
    for point, rows, own in zip(points, runs, percents, strict=True):
        lost = [default[seed] - value for seed, value in own.items() if seed in default]
        diverged = sum(accuracy(row) < 0 for row in rows.values())
        values.append(Value(point, own, diverged, fmean(lost) if lost else None))
    return values
