"""Figures of ``project``: predicted against measured, and the projections."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import figures
from benchmarks.project.grid import MEASURED, Projection
from benchmarks.project.predict import Prediction

GOAL = 0.15  # median relative error
# Without green, which the palette of a small picture takes for blue where both are many.
COLOURS = tuple(colour for colour in figures.COLOURS if colour != figures.GREEN)
MARKERS = {"strong": "o", "weak": "s", "network": "^"}


def measured(path: Path, predictions: Sequence[Prediction]) -> None:
    """Every predicted configuration, predicted against measured seconds of an outer iteration."""
    if not predictions:
        return
    plt = figures.pyplot()
    figure, ax = plt.subplots(figsize=(5.6, 4.6), layout="constrained")
    both = [t for one in predictions for t in (one.measured, one.parts.total)]
    ends = [0.7 * min(both), 1.4 * max(both)]
    ax.plot(ends, ends, color=figures.BLACK, lw=1, label="equal")
    low, high = ([(1 + sign * GOAL) * end for end in ends] for sign in (-1, 1))
    ax.fill_between(ends, low, high, color=figures.BLACK, alpha=0.12, lw=0, label="15 percent")
    methods = sorted({one.of.method for one in predictions})
    for benchmark, marker in MARKERS.items():
        for number, method in enumerate(methods):
            own = [
                one
                for one in predictions
                if one.of.of["benchmark"] == benchmark and one.of.method == method
            ]
            if own:
                ax.plot(
                    [one.measured for one in own],
                    [one.parts.total for one in own],
                    marker,
                    color=figures.COLOURS[number % len(figures.COLOURS)],
                    label=f"{benchmark}, {method}",
                )
    ax.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
    ax.set_xlabel("measured, s per outer iteration")
    ax.set_ylabel("predicted, s")
    figure.legend(loc="outside right upper", fontsize=7)
    figures.save(figure, path)
    plt.close(figure)


def projected(out: Path, projections: Sequence[Projection]) -> list[tuple[str, str]]:
    """Time per epoch and efficiency, a figure for each computer; names and their text."""
    drawn = []
    for number, compute in enumerate(dict.fromkeys(one.compute for one in projections)):
        own = [one for one in projections if one.compute == compute]
        whose = "cores as measured" if compute == MEASURED else f"{compute} per rank"
        for kind in ("time", "efficiency"):
            name = f"project_{kind}{f'_{number}' if number else ''}.png"
            text = {
                "time": f"Projection: seconds per epoch against ranks, {whose}",
                "efficiency": f"Projection: parallel efficiency against ranks, {whose}",
            }[kind]
            _grid(out / name, own, kind, text)
            drawn.append((name, text))
    return drawn


def _grid(path: Path, own: Sequence[Projection], kind: str, text: str) -> None:
    """A panel per size and network; a circle where a method stops paying."""
    plt = figures.pyplot()
    sizes = list(dict.fromkeys(one.parameters for one in own))
    networks = list(dict.fromkeys(one.network for one in own))
    methods = list(dict.fromkeys(one.method for one in own))
    figure, axes = plt.subplots(
        len(sizes),
        len(networks),
        figsize=(2.5 * len(networks) + 0.6, 1.9 * len(sizes) + 0.9),
        squeeze=False,
        sharex=True,
        sharey="row",
        layout="constrained",
    )
    for one in own:
        row, column = sizes.index(one.parameters), networks.index(one.network)
        _line(axes[row][column], one, kind, methods.index(one.method))
    ticks = [n for n in (1, 16, 256, 4096) if n <= max(own[0].epoch)]
    axes[0][0].set_xscale("log", base=2)  # for all, as they share it
    axes[0][0].set_xticks(ticks, [str(n) for n in ticks])
    for row, size in enumerate(sizes):
        if kind == "time":
            axes[row][0].set_yscale("log")
        else:
            axes[row][0].set_ylim(0, 1.1)
        ylabel = "s per epoch" if kind == "time" else "efficiency"
        axes[row][0].set_ylabel(f"{size:,} parameters\n{ylabel}", fontsize=8)
    for column, network in enumerate(networks):
        axes[0][column].set_title(f"{network} (projection)")
        axes[-1][column].set_xlabel("ranks")
    lines, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside lower center", ncols=len(labels), fontsize=8)
    figure.suptitle(f"{text}; circles: the last ranks that pay", fontsize=10)
    figures.save(figure, path)
    plt.close(figure)


def _line(ax: Any, one: Projection, kind: str, number: int) -> None:
    values = one.epoch if kind == "time" else one.efficiency
    colour = COLOURS[number % len(COLOURS)]
    style = figures.STYLES[number % len(figures.STYLES)]
    ax.plot(list(values), list(values.values()), color=colour, ls=style, lw=1.4, label=one.method)
    ax.plot(one.limit, values[one.limit], "o", color=colour, ms=5, mfc="none")
