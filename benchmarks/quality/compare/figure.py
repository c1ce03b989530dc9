"""Plot of ``compare``: accuracy against work, payload and messages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import figures
from benchmarks.harness.results import Row
from benchmarks.harness.runs import AVERAGING
from benchmarks.quality.compare.plan import DataSet, Measure, Method

COLOURS = {
    "adam": figures.BLUE,
    "sgd": figures.SKY,
    "adamw": "#777777",
    "muon": "#8c564b",
    "schedule-free": "#a0a000",
    "prodigy": "#e377c2",
    "local-sgd": figures.ORANGE,
    "diloco": figures.RED,
    "muloco": "#7f0000",
}
OWN = (figures.BLACK, figures.GREEN, figures.PURPLE)  # the method and its variants
AXES = ("epoch", "megabytes", "messages")
LABELS = ("work, epochs", "payload per rank, MB", "messages of the parameters' length")
BELOW = 10.0  # points under the least final accuracy that are shown


def plot(path: Path, data: DataSet, shown: Sequence[tuple[Method, int, list[Row]]]) -> None:
    """Three panels; mean and range over seeds of every method with the ranks that the set names.

    Args:
        path: of the PNG. shown: method, ranks and runs of what there is.
    """
    plt = figures.pyplot()
    figure, axes = plt.subplots(1, 3, figsize=(11.0, 3.8), sharey=True, layout="constrained")
    finals, own = [], 0
    for method, ranks, rows in shown:
        if ranks != (1 if method.optimizer in AVERAGING else data.shown):
            continue
        if any(data.measure.shown(row) is None for row in rows):
            continue
        colour = COLOURS.get(method.optimizer, OWN[own % len(OWN)])
        style: Any = "-." if "--schedule" in method.arguments else "--"
        if method.optimizer not in COLOURS:
            style, own = figures.STYLES[own // len(OWN) % len(figures.STYLES)], own + 1
        for ax, axis in zip(axes, AXES, strict=True):
            x, values = joined(rows, axis, data.measure)
            ax.plot(x, values.mean(0), color=colour, ls=style, lw=1.4, label=method.name)
            ax.fill_between(x, values.min(0), values.max(0), color=colour, alpha=0.15, lw=0)
        finals += [data.measure.scale * row[data.measure.key] for row in rows]
    for ax, label in zip(axes, LABELS, strict=True):
        ax.set_xlabel(label)
    for ax in axes[1:]:
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter("{x:g}")
    axes[0].set_ylabel(f"{data.measure.name}, {data.measure.unit}")
    axes[0].set_title(f"{data.name}, N = {data.shown}", loc="left")
    if finals:
        if data.measured == "accuracy":
            top = max(finals)
            low = max(min(finals) - BELOW, 0.0)
            axes[0].set_ylim(low, min(top + 0.05 * (top - low) + 0.1, 100.5))
        else:
            axes[0].set_ylim(0.95 * min(finals), 1.3 * max(finals))
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    figures.save(figure, path)


def joined(rows: Sequence[Row], axis: str, measure: Measure) -> tuple[Any, Any]:
    """The measure of every run (runs, points) over common points of an axis (points,).

    Runs are evaluated at slightly different work: all are interpolated to the points of the first,
    as far as all of them reach.
    """
    curves = [
        (_axis(row, axis), measure.scale * np.array(row["curves"][measure.key])) for row in rows
    ]
    first = max(x[0] for x, _ in curves)
    last = min(x[-1] for x, _ in curves)
    points = curves[0][0]
    inside = points[(points >= first) & (points <= last)]
    if not len(inside):
        inside = np.array([last])
    return inside, np.array([np.interp(inside, x, y) for x, y in curves])


def _axis(row: Row, axis: str) -> Any:
    if axis != "megabytes":
        return np.array(row["curves"][axis])
    share = np.array(row["curves"]["messages"]) / max(row["vector_allreduces"], 1)
    return share * row["bytes_allreduced"] / 1e6
