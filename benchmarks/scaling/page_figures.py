"""Drawings of ``strong`` and ``weak``: time, efficiency, phases, spread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from apts_mpi.comm.clock import PHASES
from benchmarks.harness import drawing as draw
from benchmarks.harness.phase_runs import TIMED, Point
from benchmarks.harness.statistics import Estimate
from benchmarks.harness.units import percent, seconds
from benchmarks.scaling.series import Network, Series

_DOTS = 60  # of a method and N, so that the page stays small
Models = Mapping[int, Estimate]  # by id() of a point: what the cost model says of it, seconds


def shown(point: Point, kind: str) -> Estimate:
    """What is plotted: seconds per epoch, or in weak scaling of a rank per sample gradient."""
    return point.per_epoch if kind == "strong" else point.per_gradient


def time(network: Network, kind: str, models: Models) -> str:
    """Time against ranks, both logarithmic, with the ideal and the model's line."""
    looks = draw.styles([series.label for series in network.series])
    many = len(network.series)

    def on(ax: Any) -> None:
        every = sorted({point.ranks for point in network.points})
        ax.set_yscale("log")
        handles = []
        for number, series in enumerate(network.series):
            look, beside = _look(series, looks), draw.spread_out(number, many)
            for point in series.points:
                hollow = point.oversubscribed
                draw.point(ax, point.ranks * beside, shown(point, kind), look, hollow=hollow)
            if series.base is not None and len(every) > 1:
                first = shown(series.base, kind).value
                y = [first / (n if kind == "strong" else 1) for n in every]
                ax.plot(
                    [n * beside for n in every], y, color=look.colour, ls="--", lw=0.7, alpha=0.8
                )
            modelled = [(p.ranks, models[id(p)].value) for p in series.points if id(p) in models]
            if modelled:
                ax.plot(
                    [n * beside for n, _ in modelled],
                    [value for _, value in modelled],
                    color=look.colour,
                    ls=":",
                    lw=1.8,
                    marker="_",
                    ms=13,
                    mew=1.8,
                )
            handles.append(draw.handle(look, series.label))
        handles += _lines(models, network)
        draw.ranks_axis(ax, every)
        draw.log_axis(ax.yaxis, seconds)
        ax.set_ylabel(
            "time per epoch" if kind == "strong" else "time of a rank per sample gradient"
        )
        draw.legend(ax, handles=handles, labels=[one.get_label() for one in handles])

    return draw.svg(on, height=4.3)


def _lines(models: Models, network: Network) -> list[Any]:
    from matplotlib.lines import Line2D

    lines: list[Any] = [Line2D([], [], color=draw.INK, ls="--", lw=0.8, label="ideal")]
    if any(id(point) in models for point in network.points):
        lines.append(Line2D([], [], color=draw.INK, ls=":", lw=1.8, marker="_", label="model"))
    if any(point.oversubscribed for point in network.points):
        hollow: dict[str, Any] = {"marker": "o", "ls": "none", "mfc": "none", "mec": draw.INK}
        lines.append(Line2D([], [], label="oversubscribed", **hollow))
    return lines


def _look(series: Series, looks: dict[str, draw.Style]) -> draw.Style:
    return looks[series.label]


def efficiency(network: Network) -> str:
    """Parallel efficiency against ranks; nothing of what is oversubscribed."""
    looks = draw.styles([series.label for series in network.series])
    many = len(network.series)

    def on(ax: Any) -> None:
        every, lowest, handles = {1}, 1.0, []
        for number, series in enumerate(network.series):
            beside = draw.spread_out(number, many)
            for point in series.valid:
                value = series.efficiency(point)
                if value is None:
                    continue
                every.add(point.ranks)
                lowest = min(lowest, value.value if value.low is None else value.low)
                draw.point(ax, point.ranks * beside, value.times(100), _look(series, looks))
            handles.append(draw.handle(_look(series, looks), series.label))
        ax.axhline(100, color=draw.INK, ls="--", lw=0.8)
        ax.text(
            0.5,
            100.6,
            "ideal",
            transform=ax.get_yaxis_transform(),
            ha="center",
            va="bottom",
            size=8,
        )
        draw.ranks_axis(ax, sorted(every))
        ax.set_ylim(max(0.0, 10 * np.floor(10 * lowest - 0.5)), None)
        ax.set_ylabel("parallel efficiency, %")
        draw.legend(ax, handles=handles, labels=[one.get_label() for one in handles])

    return draw.svg(on, height=4.1)


def label(series: Series, point: Point) -> str:
    """Of a bar or box."""
    mark = " †" if point.oversubscribed else ""
    return f"{draw.short(series.label)}, N = {point.ranks}{mark}"


def phases(network: Network, kind: str) -> str:
    """A bar per method and N, its length the time, its pieces the phases."""
    shown = [(series, point) for series in network.series for point in series.points]

    def on(ax: Any) -> None:
        from matplotlib.patches import Patch

        rows = _places(shown)
        longest = 0.0
        for y, (_, point) in zip(rows, shown, strict=True):
            factor = point.runs[0].samples / point.ranks if kind == "strong" else 1e6
            left = 0.0
            for phase in (*_order(), "evaluation"):
                colour, hatch = draw.PHASE_LOOK[phase]
                width = point.phase_cost[phase] * factor
                edge = draw.INK if phase == "evaluation" else draw.PAPER
                ax.barh(
                    y,
                    width,
                    left=left,
                    height=0.78,
                    color=colour,
                    hatch=hatch,
                    edgecolor=edge,
                    lw=0.4,
                    alpha=0.45 if point.oversubscribed else 1.0,
                )
                left += width
            ax.annotate(
                f"{percent(point.communication)} + {percent(point.share('wait'))} %",
                (left, y),
                (4, 0),
                textcoords="offset points",
                va="center",
                size=8,
            )
            longest = max(longest, left)
        ax.set_yticks(rows, [label(*one) for one in shown], size=8)
        ax.invert_yaxis()
        ax.set_xlim(0, longest * 1.28)
        ax.grid(visible=False, axis="y")
        ax.set_xlabel("s per epoch" if kind == "strong" else "µs of a rank per sample gradient")
        ax.margins(y=0.02)
        handles = [
            Patch(facecolor=c, hatch=h, edgecolor=draw.INK if c == "none" else draw.PAPER, label=p)
            for p, (c, h) in draw.PHASE_LOOK.items()
        ]
        draw.legend(ax, columns=4, handles=handles, labels=list(draw.PHASE_LOOK))

    return draw.svg(on, height=1.6 + 0.235 * (len(shown) + len(network.series)))


def _order() -> list[str]:
    ordered = [phase for phase in draw.PHASE_LOOK if phase in TIMED]
    assert set(ordered) | {"evaluation"} == set(PHASES)
    return ordered


def _places(shown: Sequence[tuple[Series, Point]]) -> list[float]:
    """Heights of the bars: a gap between methods."""
    places, y, last = [], 0.0, None
    for series, _ in shown:
        y += 0.5 * (last is not None and last is not series)
        places.append(y)
        y, last = y + 1, series
    return places


def spread(network: Network) -> str:
    """Times of single outer iterations: quartiles in a box, 5 and 95 percent as whiskers, dots."""
    looks = draw.styles([series.label for series in network.series])
    shown = [(series, point) for series in network.series for point in series.points]

    def on(ax: Any) -> None:
        chance = np.random.default_rng(0)
        rows = _places(shown)
        for y, (series, point) in zip(rows, shown, strict=True):
            values = np.concatenate([run.iterations for run in point.runs])
            values = values[values > 0]
            look = _look(series, looks)
            some = values if len(values) <= _DOTS else chance.choice(values, _DOTS, replace=False)
            ax.plot(
                some,
                y + chance.uniform(-0.3, 0.3, len(some)),
                ls="none",
                marker=look.marker,
                ms=2.6,
                mew=0,
                color=look.colour,
                alpha=0.55,
            )
            ax.boxplot(
                [values],
                positions=[y],
                orientation="horizontal",
                widths=0.7,
                whis=(5, 95),
                showfliers=False,
                manage_ticks=False,
                boxprops={"color": draw.INK, "lw": 0.9},
                whiskerprops={"color": draw.INK, "lw": 0.9},
                capprops={"color": draw.INK, "lw": 0.9},
                medianprops={"color": draw.INK, "lw": 1.8},
            )
        ax.set_xscale("log")
        draw.log_axis(ax.xaxis, seconds)
        ax.set_yticks(rows, [label(*one) for one in shown], size=8)
        ax.invert_yaxis()
        ax.grid(visible=False, axis="y")
        ax.set_xlabel("time of an outer iteration")

    return draw.svg(on, height=1.0 + 0.235 * (len(shown) + len(network.series)))
