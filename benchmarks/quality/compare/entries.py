"""The methods of ``compare`` as they came out of their grids."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from benchmarks.harness.results import Row, grouped, matching
from benchmarks.harness.runs import AVERAGING, MEASURES, Measure
from benchmarks.harness.statistics import Array
from benchmarks.quality.compare.plan import DataSet, Get, groups


@dataclass(frozen=True)
class Entry:
    """A method with so many ranks at the best of its settings.

    Attributes:
        rows: the runs of these settings, one per seed. measure: what they are judged by.
        tried: settings that they are the best of. worst: the figure on the first seed at the same
            batch and the worst rate; None without rates, infinite where that diverged.
        edge: its learning rate is the least or the largest of several.
    """

    method: str
    ranks: int
    rows: list[Row]
    measure: Measure
    tried: int
    worst: float | None
    edge: bool

    @property
    def settings(self) -> Row:
        """Of its first run."""
        settings: Row = self.rows[0]["settings"]
        return settings

    @property
    def rate(self) -> str:
        """The learning rate, with a star where none beyond was tried; a dash without."""
        lr = self.settings.get("lr")
        return "-" if lr is None else f"{lr:g}{'*' * self.edge}"

    @property
    def averaging(self) -> bool:
        """Gradients are averaged at every step: N ranks take the steps of one."""
        return self.settings["optimizer"] in AVERAGING

    @property
    def figures(self) -> list[float]:
        """Final test accuracy in percent, or loss, of each run; none where any diverged."""
        values = [self.measure.shown(row) for row in self.rows]
        return [] if None in values else [value for value in values if value is not None]

    @property
    def mean(self) -> float:
        """Mean of the figures; NaN where a run diverged."""
        return fmean(self.figures) if self.figures else math.nan

    @property
    def score(self) -> float:
        """Higher is better; -infinity where a run diverged."""
        return self.measure.sign * self.mean if self.figures else -math.inf

    def behind(self, other: Entry) -> float:
        """By how much its figure is worse than another's; infinite where it diverged."""
        if not self.figures:
            return math.inf
        return other.score - self.score if other.figures else -math.inf

    def average(self, name: str) -> float:
        """Mean of a figure over the runs."""
        return fmean(float(row[name]) for row in self.rows)

    @property
    def work(self) -> float:
        """Epochs of it that the runs took, on average."""
        return fmean(float(row["curves"]["epoch"][-1]) for row in self.rows)

    def curve(self, axis: str) -> tuple[Array, Array]:
        """The measure of every run (runs, points) over points that all reach, of an axis (points,).

        Runs are evaluated at slightly different work: all are interpolated to the points of the
        first.

        Args:
            axis: "epoch", "messages", or "megabytes" handed over per rank.
        """
        curves = []
        for row in self.rows:
            x = np.array(row["curves"]["messages" if axis == "megabytes" else axis], dtype=float)
            if axis == "megabytes":
                x *= row["bytes_allreduced"] / max(row["vector_allreduces"], 1) / 1e6
            curves.append((x, self.measure.scale * np.array(row["curves"][self.measure.key])))
        first, last = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
        points = curves[0][0]
        inside = points[(points >= first) & (points <= last)]
        if not len(inside):
            inside = np.array([last])
        return inside, np.array([np.interp(inside, x, y) for x, y in curves])


def best(method: str, ranks: int, tried: Sequence[Sequence[Row]], measure: Measure) -> Entry | None:
    """The entry of the settings of most seeds, then of the best mean; None where nothing was run.

    Args:
        tried: runs by settings, in the order of their seeds.
    """
    done = [list(rows) for rows in tried if rows]
    if not done:
        return None

    def place(rows: list[Row]) -> tuple[int, float, int]:
        # Of equals the larger batch: it needs fewer messages.
        score = fmean(measure.score(row) for row in rows)
        return len(rows), score, rows[0]["settings"].get("batch") or 0

    chosen, worst, edge = max(done, key=place), None, False
    settings = chosen[0]["settings"]
    if settings.get("lr") is not None:
        every = [row for rows in done for row in rows]
        same = {name: settings[name] for name in ("batch", "seed") if name in settings}
        beside = matching(every, **same)
        worst = measure.sign * measure.scale * min(map(measure.score, beside))
        rates = {row["settings"]["lr"] for row in beside}
        edge = len(rates) > 1 and settings["lr"] in (min(rates), max(rates))
    return Entry(method, ranks, chosen, measure, len(done), worst, edge)


def planned(data: DataSet, get: Get) -> list[Entry]:
    """What there is of a plan's set, in the order of its methods and ranks."""
    found = []
    for group in groups(data):
        tried = [
            [row for seed in data.seeds if (row := get({**candidate, "seed": seed})) is not None]
            for candidate in group.candidates()
        ]
        found.append(best(group.method.name, group.ranks, tried, data.measure))
    return [entry for entry in found if entry is not None]


def unplanned(rows: Sequence[Row], measure: str = "accuracy") -> list[Entry]:
    """The methods of some rows by name and ranks, each with the flags that it was given.

    Schedules are in the names, as in ``compare.toml``; warm-ups are part of them.
    """

    def alike(row: Row) -> str:
        return json.dumps({**row["settings"], "seed": None}, sort_keys=True)

    def named(row: Row) -> tuple[str, int]:
        s = row["settings"]
        name, flags = s["optimizer"], " ".join(map(str, s.get("arguments") or []))
        if "--schedule cosine" in flags and name in ("adam", "sgd", "local-sgd", "diloco"):
            name += "-cosine"
        flags = re.sub(r"--schedule cosine|--warmup \S+", "", flags).strip()
        return f"{name} {flags}".strip(), s["ranks"]

    found = [
        best(method, ranks, list(grouped(own, alike).values()), MEASURES[measure])
        for (method, ranks), own in sorted(grouped(rows, named).items())
    ]
    return [entry for entry in found if entry is not None]
