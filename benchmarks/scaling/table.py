"""The table of ``strong`` and ``weak``: seconds, where they went, efficiency."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.harness import tables
from benchmarks.harness.phase_runs import Point, points, runs
from benchmarks.harness.results import Row
from benchmarks.harness.sections import Part, Section, Table
from benchmarks.harness.statistics import Estimate, median
from benchmarks.scaling.plan import SPLIT
from benchmarks.scaling.series import Series, networks

_PARTS = {
    "gradient": ("gradient",),
    "algebra": ("algebra",),
    "data": ("data",),
    "wait": ("wait",),
    "transfer": ("allreduce", "broadcast"),
    "other": ("other",),
}
_WHAT = {
    "strong": "The same work for every N, whose ranks divide the local steps or the minibatch.",
    "weak": "The same work per rank for every N.",
}


def overhead(on: Sequence[float], off: Sequence[float]) -> Estimate:
    """What the clock adds to an outer iteration, in percent: the median of neighbours' ratios."""
    ratios = 100.0 * (np.array(on) / np.array(off) - 1.0)
    return median([ratios])


def shown(value: Estimate | None, form: str) -> str:
    """A value and its interval, ``0.95 [0.93, 0.97]``."""
    if value is None:
        return "-"
    text = f"{value.value:{form}}"
    if value.low is None or value.high is None:
        return text
    return f"{text} [{value.low:{form}}, {value.high:{form}}]"


def section(kind: str, rows: Sequence[Row], options: object = None) -> Section | None:
    """The table of all complete runs; None where there are none."""
    found, _ = runs([row for row in rows if row["settings"]["benchmark"] == kind])
    if not found:
        return None
    body = [
        _line(series, point)
        for network in networks(points(found), kind)
        for series in network.series
        for point in series.points
    ]
    header = [
        *("method", "hidden", "N", "batch", "steps", "runs", "ms", "s/epoch", "efficiency"),
        *(*_PARTS, "cpu ms"),
    ]
    clock = [
        f"{row['settings']['method']}, N = {row['settings']['ranks']}: "
        f"{shown(overhead(row['on'], row['off']), '.2f')} %"
        for row in rows
        if row["settings"]["benchmark"] == SPLIT
    ]
    first = found[0].rows[0]
    parts: list[Part] = [
        f"{_WHAT[kind]} Medians over runs, in brackets 95 % intervals (bootstrap); ms: an outer "
        f"iteration on its slowest rank, evaluation left out; s/epoch: {first['samples']} sample "
        "gradients, from a run's whole time on its slowest rank; efficiency: against one rank, by "
        "time per work; shares in percent of all ranks' time; cpu ms: processor time per rank "
        "and iteration, including waiting and evaluation. No efficiency is given for runs marked "
        "oversubscribed, whose ranks share cores.",
        Table("", header, body, text=2),
    ]
    if clock:
        parts.append(f"What the clock costs, on and off in turn: {'; '.join(clock)}.")
    every = tables.setup([row for run in found for row in run.rows])
    return Section(f"{kind.capitalize()} scaling", [*parts, every])


def _line(series: Series, point: Point) -> list[object]:
    first = point.first
    iterations = sum(len(run.iterations) for run in point.runs)
    cpu = sum(float(run.cpu.mean()) for run in point.runs) / iterations
    return [
        *(point.settings[name] for name in ("method", "hidden")),
        f"{point.ranks}{' (oversubscribed)' if point.oversubscribed else ''}",
        point.settings["batch"],
        first["local_steps"] or "-",
        len(point.runs),
        shown(point.per_iteration.times(1e3), ".1f"),
        shown(point.per_epoch, ".3f"),
        shown(series.efficiency(point), ".2f"),
        *(f"{100 * point.share(*part):.1f}" for part in _PARTS.values()),
        f"{1e3 * cpu:.1f}",
    ]
