"""What came out of a parameter's values, against the default with the same seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from benchmarks.harness.runs import Measure
from benchmarks.quality.sensitivity.plan import Get, Plan, Point, Sweep


@dataclass(frozen=True)
class Value:
    """A value of a parameter.

    Attributes:
        reached: by seed, of the runs that are done; chance where one diverged.
        diverged: how many of them. loss: what it costs against the default, over the seeds of
            both; None without such.
    """

    point: Point
    reached: dict[int, float]
    diverged: int
    loss: float | None

    @property
    def mean(self) -> float:
        """Over the seeds that are done."""
        return fmean(self.reached.values())


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
        """The lowest and the highest; None where only the default has been run."""
        done = [value for value in self.values if value.reached]
        if all(value.point.default for value in done):
            return None
        order = sorted(done, key=lambda value: value.mean)
        return order[0], max(done, key=lambda value: value.mean)

    @property
    def spread(self) -> float:
        """Between them."""
        return self.ends[1].mean - self.ends[0].mean if self.ends else 0.0

    @property
    def form(self) -> str:
        """Of its numbers in tables."""
        return self.sweep.family.measure.form

    @property
    def losses(self) -> list[tuple[float, Swept, Value]]:
        """What the values cost that are not the default, and have been run."""
        found = [(value.loss, self, value) for value in self.values if not value.point.default]
        return [(loss, item, value) for loss, item, value in found if loss is not None]


def swept(plan: Plan, seeds: Sequence[int], get: Get) -> list[Swept]:
    """Every parameter at every number of ranks, run or not."""
    return [
        Swept(sweep, ranks, _values(sweep.points(ranks), seeds, get, sweep.family.measure))
        for sweep in plan.sweeps()
        for ranks in sweep.family.ranks
    ]


def _values(
    points: Sequence[Point], seeds: Sequence[int], get: Get, measure: Measure
) -> list[Value]:
    shown = [
        {
            seed: measure.shown(row)
            for seed in seeds
            if (row := get({**point.settings, "seed": seed})) is not None
        }
        for point in points
    ]
    reached = [
        {seed: measure.chance if value is None else value for seed, value in own.items()}
        for own in shown
    ]
    default = next(own for point, own in zip(points, reached, strict=True) if point.default)
    values = []
    for point, known, own in zip(points, shown, reached, strict=True):
        lost = [measure.sign * (default[seed] - own[seed]) for seed in own if seed in default]
        diverged = sum(value is None for value in known.values())
        values.append(Value(point, own, diverged, fmean(lost) if lost else None))
    return values
