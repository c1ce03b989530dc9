"""Section of ``micro``: single messages by size, our layer against mpi4py alone, MPI settings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from benchmarks.harness import drawing as draw
from benchmarks.harness import figures, names, tables
from benchmarks.harness.mpi_settings import SETTINGS, export_line
from benchmarks.harness.results import Row
from benchmarks.harness.sections import Finding, Part, Picture, Section, Table, Text, slug
from benchmarks.harness.units import digits, percent, seconds, size, times
from benchmarks.messages.micro import numbers
from benchmarks.messages.micro.numbers import BARE, EXTRA, LONG, NAMES, SHARE, Case, Place, cases
from benchmarks.messages.micro.plan import Plan

INTRODUCTION = (
    "Allreduce (a sum, in place) and Bcast of float32 buffers. Every call starts behind a barrier; "
    "its time is the slowest rank's. Ways through alternate call by call on the same buffer: "
    "mpi4py alone; apts_mpi, the package's layer as it trains, with a barrier of its own before "
    "each collective and its clocks; that layer with its clocks off, without both; a vector with "
    "five exact scalars in one Allreduce, with their coding. Noise of the machine is in averages "
    "and greatest values; comparisons are of medians, with 95 percent intervals from a bootstrap "
    "over the calls; where such an interval has the goal within, the verdict is open. Settings of "
    "MPI are compared by what an outer iteration sends, a vector and three short messages, by "
    "averages. Model (Hockney): latency + bytes / bandwidth, fitted to the medians; the residual "
    "is the median relative error.",
    f"Goal: {names.shown('comm')} has at least {100 * SHARE:.0f} percent of the speed of mpi4py "
    f"alone above {LONG // 1024} KiB, and takes at most {1e6 * EXTRA:.0f} µs more up to there.",
)
_WAYS = {
    "mpi4py": draw.Style(figures.ORANGE, "^", "-."),
    "comm": draw.Style(draw.INK, "o", "-"),
    "comm-untimed": draw.Style(figures.SKY, "s", "--"),
    "message": draw.Style(figures.GREEN, "D", ":"),
}
_JUDGED = {"comm": "as it trains", "comm-untimed": "without barriers and clocks"}


def section(rows: Sequence[Row]) -> Section | None:
    """What the rows say; None where there are none."""
    if not rows:
        return None
    whole = Section("Messages by size", [Text(text) for text in INTRODUCTION])
    whole.below = [Section(str(place), _parts(some)) for place, some in cases(rows).items()]
    return whole


def command_section(rows: Sequence[Row], plan: Plan) -> Section | None:
    """With its set-up; prints the best settings of the plan's place."""
    whole, loads = section(rows), [row["load"] for row in rows]
    if whole is not None:
        load = f"load average before a job {min(loads)} to {max(loads)}"
        whole.foot.append(tables.setup(rows, load))
    for line in best_lines(cases(rows).get(Place(plan.ranks, plan.hosts, plan.link), [])):
        print(line)
    return whole


def sections(rows: Mapping[str, list[Row]]) -> list[Section]:
    """For the page of ``report``, of the rows by kind."""
    found = section(rows["micro"])
    return [] if found is None else [found]


def _parts(found: Sequence[Case]) -> list[Part]:
    """Of one place: pictures and sizes under the defaults and the best settings."""
    slower, best = numbers.slowness(found), _best(found)
    shown = [case for case in found if case.mpi == best]
    parts: list[Part] = [_picture(case) for case in shown]
    goals = [
        [
            case.operation,
            names.mpi(case.mpi),
            names.shown(way),
            numbers.summary(list(judged.values())),
        ]
        for case in found
        if case.mpi in (best, "defaults")
        for way, judged in case.verdicts.items()
        if way in _JUDGED and judged
    ]
    if goals:
        header = ["operation", "MPI settings", "through", "goal"]
        parts.append(Table("Our layer against mpi4py alone", header, goals, text=4))
    for operation in dict.fromkeys(case.operation for case in found):
        parts += _rivals([case for case in found if case.operation == operation], slower)
    lines = best_lines(found)
    if lines:
        parts.append(Finding(f"{lines[0]}. For a job script: {lines[1]}".lstrip("# ")))
    return [*parts, *map(sizes, shown), _fits(shown)]


def _best(found: Sequence[Case]) -> str:
    """The best setting of a place, or any where none can be compared."""
    return numbers.best_setting(numbers.slowness(found)) or min(case.mpi for case in found)


def _panel(ax: Any, case: Case) -> list[Any]:
    """Medians by size with the model's line; returns the legend's handles."""
    ax.set_xscale("log")
    ax.set_yscale("log")
    handles: list[Any] = []
    for number, way in enumerate(case.ways):
        look = _WAYS.get(way) or draw.style(way, number)
        found = {nbytes: case.median(way, nbytes) for nbytes in case.rows[way]}
        draw.points(ax, list(found), list(found.values()), look)
        handles.append(draw.handle(look, names.shown(way)))
    if case.model is not None:
        way, model = case.model
        x = np.geomspace(min(case.sizes), max(case.sizes), 60)
        label, y = f"model of {names.shown(way)}", [model.seconds(nbytes) for nbytes in x]
        handles += ax.plot(x, y, color=figures.RED, lw=1.2, label=label)
    draw.log_axis(ax.xaxis, size)
    draw.log_axis(ax.yaxis, seconds)
    ax.set_xlabel("payload")
    ax.set_ylabel("time of a call")
    return handles


def _picture(case: Case) -> Picture:
    place = case.place
    name = f"{case.operation} {place.ranks} ranks {place.hosts} hosts {place.link} {case.mpi}"
    return Picture(
        f"micro-{slug(name)}",
        case.title,
        "Medians with 95 percent intervals. The line is the model, not the measurements joined.",
        "Scatter plot, both axes logarithmic: time of a call against payload through "
        + ", ".join(map(names.shown, case.ways))
        + (", with the fitted model's line." if case.model else "."),
        draw.svg(lambda ax: draw.legend(ax, handles=_panel(ax, case)), height=4.1),
        tuple(findings(case)),
    )


def draw_png(path: Path, rows: Sequence[Row]) -> None:
    """A row of panels per place, a panel per operation, under the best settings."""
    found = cases(rows)
    figure, grid = figures.panels(len(found), len(NAMES), (8, 3 * len(found)))
    handles: list[Any] = []
    for axes, (place, some) in zip(grid, found.items(), strict=True):
        best = _best(some)
        own = {case.operation: case for case in some if case.mpi == best}
        for ax, operation in zip(axes, NAMES, strict=True):
            if operation not in own:
                ax.set_axis_off()
                continue
            handles = max(handles, _panel(ax, own[operation]), key=len)
            title = f"{operation}, {place}\n{names.mpi(best)}"
            ax.set_title(title.replace(" made on one machine", ""))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    figures.save(figure, path)


def findings(case: Case) -> list[Finding]:
    """The fit, and our layer against the bare call."""
    found = []
    if case.model is not None:
        way, model = case.model
        limit = "no limit of bandwidth seen"
        if not math.isinf(model.bandwidth):
            limit = f"bandwidth {size(model.bandwidth)}/s"
        text = (
            f"{case.title}: latency {seconds(model.latency)}, {limit}; the fit "
            f"({names.shown(way)}) is off by {percent(model.residual)} percent (median)."
        )
        found.append(Finding(text, key=True))
    for way, what in _JUDGED.items():
        values = {b: verdict.found.value for b, verdict in case.verdicts.get(way, {}).items()}
        long = [value for nbytes, value in values.items() if nbytes > LONG]
        short = [value for nbytes, value in values.items() if nbytes <= LONG]
        bounds = []
        if long:
            share = percent(min(long))
            bounds.append(f"at least {share} percent of the bare call's speed above 64 KiB")
        if short:
            worst = 1e6 * max(0.0, *short)
            bounds.append(f"at most {digits(worst)} µs more up to 64 KiB")
        if bounds:
            found.append(
                Finding(f"{case.title}, {names.shown(way)} ({what}): {'; '.join(bounds)}.")
            )
    return found


def _rivals(rivals: Sequence[Case], slower: Mapping[str, float]) -> list[Part]:
    """Medians through mpi4py alone under all settings, and the best for the longest message."""
    own = {case.mpi: case.rows["mpi4py"] for case in rivals if "mpi4py" in case.rows}
    if len(own) < 2:
        return []
    body: list[list[str]] = []
    medians: dict[int, dict[str, float]] = {}
    for nbytes in sorted({nbytes for rows in own.values() for nbytes in rows}):
        medians[nbytes] = {
            mpi: float(np.median(rows[nbytes]["seconds"]))
            for mpi, rows in own.items()
            if nbytes in rows
        }
        cells = [_us(medians[nbytes][mpi]) if mpi in medians[nbytes] else "-" for mpi in own]
        body.append([f"{nbytes:,}", *cells])
    if rivals[0].operation == "allreduce":
        body.append(
            ["against the best", *(f"{slower[m]:.2f}" if m in slower else "-" for m in own)]
        )
    longest = max((b for b, by in medians.items() if len(by) == len(own)), default=None)
    parts: list[Part] = []
    if longest is not None:
        by, first = medians[longest], next(iter(own))
        best = min(by, key=by.__getitem__)
        text = f"{rivals[0].name}: {names.mpi(best)} is best at {size(longest)}"
        if best != first:
            text += f", {times(by[first] / by[best])} times faster than {names.mpi(first)}"
        parts.append(Finding(text + "."))
    caption = f"MPI settings, {rivals[0].name}: median time of a call through mpi4py alone, µs"
    return [*parts, Table(caption, ["bytes", *map(names.mpi, own)], body)]


def sizes(case: Case) -> Table:
    """As the OSU benchmarks print it, a line per size and way, with the comparison of medians."""
    header = [
        *("bytes", "through", "average, µs", "least", "most", "calls", "median, µs [95 %]"),
        *("against mpi4py alone [95 %]", "bare / this", "model, µs"),
    ]
    judged, model = case.verdicts, case.model
    body = []
    for nbytes in case.sizes:
        bare = case.rows.get("mpi4py", {}).get(nbytes)
        for way in case.ways:
            if nbytes not in case.rows[way]:
                continue
            values, middle = case.rows[way][nbytes]["seconds"], case.median(way, nbytes)
            ratio = "-" if bare is None else f"{np.median(bare['seconds']) / middle.value:.3f}"
            body.append(
                [
                    *(
                        f"{nbytes:,}",
                        names.shown(way),
                        *(_us(f(values)) for f in (fmean, min, max)),
                    ),
                    *(str(len(values)), middle.text(_us)),
                    *(str(judged.get(way, {}).get(nbytes, "-")), ratio),
                    "-" if model is None else _us(model[1].seconds(nbytes)),
                ]
            )
    return Table(f"{case.name}, {names.mpi(case.mpi)}", header, body, text=2)


def _fits(found: Sequence[Case]) -> Table:
    """Latencies and bandwidths of the model, over all sizes and over the long ones."""
    body = []
    for case in found:
        for way in (way for way in case.ways if way in BARE):
            for text, least in (("all", 0), (f"from {LONG}", LONG)):
                model = case.fitted(way, least=least)
                if model is not None:
                    speed = f"{float(f'{model.bandwidth / 1e6:.4g}'):g}"
                    line = [
                        case.operation,
                        names.mpi(case.mpi),
                        names.shown(way),
                        text,
                        digits(1e6 * model.latency),
                    ]
                    body.append([*line, speed, percent(model.residual)])
    header = ["operation", "MPI settings", "through", "bytes", "latency, µs", "MB/s", "residual, %"]
    return Table("Latency and bandwidth, fitted", header, body, text=4)


def best_lines(found: Sequence[Case]) -> list[str]:
    """What a job script needs: the best setting of all operations; nothing of a single one."""
    slower = numbers.slowness(found)
    best = numbers.best_setting(slower)
    if best is None or len(slower) < 2:
        return []
    gain = ""
    if best != "defaults" and "defaults" in slower:
        gain = f": {slower['defaults'] / slower[best]:.2f} times as fast as the defaults"
    tried = sorted(slower, key=[*SETTINGS, *slower].index)
    return [
        f"# best of {', '.join(tried)} is {best}{gain}",
        export_line(SETTINGS.get(best, {})),
    ]


def _us(value: float) -> str:
    micro = 1e6 * value
    return digits(micro, 2) if micro < 100 else f"{micro:.0f}"
