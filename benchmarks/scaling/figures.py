"""Drawings of ``strong`` and ``weak``: time, efficiency, phases, spread."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from apts_mpi.comm.clock import PHASES
from benchmarks.harness import drawing as draw
from benchmarks.harness.phase_runs import TIMED, Point
from benchmarks.harness.statistics import Estimate
from benchmarks.harness.units import percent, seconds
from benchmarks.scaling.series import Network, Series

_DOTS = 20  # of a method and N, so that the page stays small
_ORDER = (*(phase for phase in draw.PHASE_LOOK if phase in TIMED), "evaluation")
assert set(_ORDER) == set(PHASES)
Models = Mapping[int, Estimate]  # by id() of a point: what the cost model says of it, seconds


def shown(point: Point, kind: str) -> Estimate:
    """What is plotted: seconds per epoch, or in weak scaling of a rank per sample gradient."""
    return point.per_epoch if kind == "strong" else point.per_gradient


def _looks(network: Network) -> Iterator[tuple[Series, draw.Style, float]]:
    """The methods with their looks, and a factor that sets each beside the others at its N."""
    looks = draw.styles([series.label for series in network.series])
    for number, series in enumerate(network.series):
        yield series, looks[series.label], draw.spread_out(number, len(network.series))


def time(network: Network, kind: str, models: Models) -> Callable[[], str]:
    """Time against ranks, both logarithmic, with the ideal and the model's line."""

    def on(ax: Any) -> None:
        from matplotlib.lines import Line2D

        every = sorted({point.ranks for point in network.points})
        ax.set_yscale("log")
        handles: list[Any] = []
        for series, look, beside in _looks(network):
            for point in series.points:
                at, hollow = point.ranks * beside, point.oversubscribed
                draw.point(ax, at, shown(point, kind), look, hollow=hollow)
            if series.base is not None and len(every) > 1:
                first = shown(series.base, kind).value
                y = [first / (n if kind == "strong" else 1) for n in every]
                x = [n * beside for n in every]
                ax.plot(x, y, color=look.colour, ls="--", lw=0.7, alpha=0.8)
            modelled = [point for point in series.points if id(point) in models]
            x = [point.ranks * beside for point in modelled]
            y = [models[id(point)].value for point in modelled]
            ax.plot(x, y, color=look.colour, ls=":", lw=1.8, marker="_", ms=13, mew=1.8)
            handles.append(draw.handle(look, series.label))
        handles.append(Line2D([], [], color=draw.INK, ls="--", lw=0.8, label="ideal"))
        if models:
            line = Line2D([], [], color=draw.INK, ls=":", lw=1.8, marker="_", label="model")
            handles.append(line)
        if network.oversubscribed:
            hollow_: dict[str, Any] = {"marker": "o", "ls": "none", "mfc": "none", "mec": draw.INK}
            handles.append(Line2D([], [], label="oversubscribed", **hollow_))
        draw.ranks_axis(ax, every)
        draw.log_axis(ax.yaxis, seconds)
        strong = kind == "strong"
        ax.set_ylabel("time per epoch" if strong else "time of a rank per sample gradient")
        draw.legend(ax, handles=handles)

    return draw.svg(on, height=4.3)


def efficiency(network: Network) -> Callable[[], str]:
    """Parallel efficiency against ranks; nothing of what is oversubscribed."""

    def on(ax: Any) -> None:
        every, lowest, handles = {1}, 1.0, []
        for series, look, beside in _looks(network):
            for point in series.valid:
                value = series.efficiency(point)
                if value is not None:
                    every.add(point.ranks)
                    lowest = min(lowest, value.value if value.low is None else value.low)
                    draw.point(ax, point.ranks * beside, value.times(100), look)
            handles.append(draw.handle(look, series.label))
        ax.axhline(100, color=draw.INK, ls="--", lw=0.8)
        place: dict[str, Any] = {"transform": ax.get_yaxis_transform(), "ha": "center", "size": 8}
        ax.text(0.5, 100.6, "ideal", va="bottom", **place)
        draw.ranks_axis(ax, sorted(every))
        ax.set_ylim(max(0.0, 10 * np.floor(10 * lowest - 0.5)), None)
        ax.set_ylabel("parallel efficiency, %")
        draw.legend(ax, handles=handles)

    return draw.svg(on, height=4.1)


def _rows(
    network: Network, on: Callable[[Any, Sequence[tuple[float, Series, Point]]], None], top: float
) -> Callable[[], str]:
    """A drawing with a row for every method and N, and a gap between methods.

    Args:
        on: draws on axes; it is given the height, the method and the point of every row.
    """
    shown = [
        (float(row) + 0.5 * number, series, point)
        for row, (number, series, point) in enumerate(
            (number, series, point)
            for number, series in enumerate(network.series)
            for point in series.points
        )
    ]

    def whole(ax: Any) -> None:
        on(ax, shown)
        labels = [
            f"{draw.short(series.label)}, N = {point.ranks}{' †' * point.oversubscribed}"
            for _, series, point in shown
        ]
        ax.set_yticks([y for y, _, _ in shown], labels, size=8)
        ax.invert_yaxis()
        ax.grid(visible=False, axis="y")

    return draw.svg(whole, height=top + 0.235 * (len(shown) + len(network.series)))


def phases(network: Network, kind: str) -> Callable[[], str]:
    """A bar per method and N, its length the time, its pieces the phases."""

    def on(ax: Any, shown: Sequence[tuple[float, Series, Point]]) -> None:
        from matplotlib.patches import Patch

        looks: dict[str, dict[str, Any]] = {
            phase: {
                **{"facecolor": colour, "hatch": hatch},
                "edgecolor": draw.INK if phase == "evaluation" else draw.PAPER,
            }
            for phase, (colour, hatch) in draw.PHASE_LOOK.items()
        }
        longest = 0.0
        for y, _, point in shown:
            factor = point.runs[0].samples / point.ranks if kind == "strong" else 1e6
            left = 0.0
            for phase in _ORDER:
                width, alpha = point.phase_cost[phase] * factor, 0.45 if point.oversubscribed else 1
                look = {**looks[phase], "height": 0.78, "lw": 0.4, "alpha": alpha}
                ax.barh(y, width, left=left, **look)
                left += width
            text = f"{percent(point.communication)} + {percent(point.share('wait'))} %"
            ax.annotate(text, (left, y), (4, 0), textcoords="offset points", va="center", size=8)
            longest = max(longest, left)
        ax.set_xlim(0, longest * 1.28)
        ax.set_xlabel("s per epoch" if kind == "strong" else "µs of a rank per sample gradient")
        ax.margins(y=0.02)
        handles = [Patch(label=phase, **look) for phase, look in looks.items()]
        draw.legend(ax, columns=4, handles=handles)

    return _rows(network, on, 1.6)


def spread(network: Network) -> Callable[[], str]:
    """Times of single outer iterations: quartiles in a box, 5 and 95 percent as whiskers, dots."""
    looks = {series.label: look for series, look, _ in _looks(network)}

    def on(ax: Any, shown: Sequence[tuple[float, Series, Point]]) -> None:
        chance = np.random.default_rng(0)
        thin = {"color": draw.INK, "lw": 0.9}
        for y, series, point in shown:
            values = np.concatenate([run.iterations for run in point.runs])
            values = values[values > 0]
            some = values if len(values) <= _DOTS else chance.choice(values, _DOTS, replace=False)
            heights, look = y + chance.uniform(-0.3, 0.3, len(some)), looks[series.label]
            dots: dict[str, Any] = {"ls": "none", "ms": 2.6, "mew": 0, "alpha": 0.55}
            ax.plot(some, heights, marker=look.marker, color=look.colour, **dots)
            ax.boxplot(
                [values],
                positions=[y],
                orientation="horizontal",
                widths=0.7,
                whis=(5, 95),
                showfliers=False,
                manage_ticks=False,
                boxprops=thin,
                whiskerprops=thin,
                capprops=thin,
                medianprops={"color": draw.INK, "lw": 1.8},
            )
        ax.set_xscale("log")
        draw.log_axis(ax.xaxis, seconds)
        ax.set_xlabel("time of an outer iteration")

    return _rows(network, on, 1.0)
