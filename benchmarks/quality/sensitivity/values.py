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
    """

    point: Point
    percents: dict[int, float]
    diverged: int

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
    def done(self) -> list[Value]:
        """The values that have been run on any seed."""
        return [value for value in self.values if value.percents]

    @property
    def least(self) -> float:
        """Lowest accuracy."""
        return min(value.mean for value in self.done)

    @property
    def most(self) -> float:
        """Highest accuracy."""
        return max(value.mean for value in self.done)

    @property
    def spread(self) -> float | None:
        """Between them, in points; None where nothing has been run but the default."""
        if all(value.point.default for value in self.done):
            return None
        return self.most - self.least

    def loss(self, value: Value) -> float | None:
        """Points of accuracy that it loses against the default, over the seeds of both."""
        default = self.default.percents
        both = [seed for seed in value.percents if seed in default]
        if not both:
            return None
        return fmean(default[seed] - value.percents[seed] for seed in both)

    @property
    def worst(self) -> tuple[float, Value] | None:
        """The largest loss, and the value, which is not the default."""
        found = [(self.loss(value), value) for value in self.values if not value.point.default]
        losses = [(loss, value) for loss, value in found if loss is not None]
        return max(losses, key=lambda item: item[0], default=None)


def swept(plan: Plan, seeds: Sequence[int], get: Get) -> list[Swept]:
    """Every parameter at every number of ranks, run or not."""
    return [
        Swept(sweep, ranks, [_value(point, seeds, get) for point in sweep.points(ranks)])
        for sweep in plan.sweeps()
        for ranks in sweep.family.ranks
    ]


def _value(point: Point, seeds: Sequence[int], get: Get) -> Value:
    percents, diverged = {}, 0
    for seed in seeds:
        row = get({**point.settings, "seed": seed})
        if row is not None:
            lost = accuracy(row) < 0
            percents[seed] = CHANCE if lost else 100 * accuracy(row)
            diverged += lost
    return Value(point, percents, diverged)
