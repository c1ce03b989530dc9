"""Tables and the figure of the benchmark of single messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

from benchmarks.harness.figures import BLACK, BLUE, ORANGE, SKY, pyplot, save
from benchmarks.harness.mpi_settings import SETTINGS, export_line
from benchmarks.harness.results import Row
from benchmarks.harness.sections import Section
from benchmarks.harness.tables import markdown, setup
from benchmarks.messages.micro.numbers import (
    EXTRA,
    LONG,
    SHARE,
    Place,
    Table,
    best_setting,
    fitted,
    places,
    slowness,
    summary,
    verdicts,
)
from benchmarks.messages.micro.plan import THROUGH, Plan

INTRODUCTION = f"""\
Allreduce (a sum, in place) and Bcast of float32 buffers. Every call starts behind a barrier; its
time is the slowest rank's. Ways through alternate call by call on the same buffer: `mpi4py` alone;
`comm`, the package's layer as it trains, with a barrier of its own before each collective and its
clocks; `comm-untimed`, that layer without both; `message`, a vector and five exact scalars in one
Allreduce, with their coding. Microseconds; average, least and greatest of the calls. One machine's
noise is in the averages and greatest values; the comparisons are of medians, with 95 percent
intervals from a bootstrap over the calls; where such an interval has the goal within, the verdict
is open. Settings of MPI are compared by what an outer iteration sends, a vector and three short
messages, by averages.

Goal: `comm` has at least {100 * SHARE:.0f} percent of the speed of mpi4py alone above
{LONG // 1024} KiB, and takes at most {1e6 * EXTRA:.0f} us more up to there."""
_WAYS = {"mpi4py": (BLACK, "-"), "comm": (BLUE, "--"), "comm-untimed": (SKY, "-.")}
_WAYS["message"] = (ORANGE, ":")


def section(rows: Sequence[Row], plan: Plan) -> Section:
    """All rows, whatever was asked for; prints the best settings of the plan's place."""
    found = places(rows)
    whole = Section("Single messages", [INTRODUCTION])
    for place in sorted(found, key=lambda place: (place.link, place.hosts, place.ranks)):
        whole.below.append(Section(str(place), [*_place(place, found[place])]))
    loads = [row["load"] for row in rows]
    between = f"load average before a job {min(loads)} to {max(loads)}"
    whole.foot.append(setup(rows, between))
    here = Place(plan.ranks, plan.hosts, plan.link)
    for line in best_lines(found.get(here, {})):
        print(line)
    return whole


def _place(place: Place, tables: Mapping[tuple[str, str], Table]) -> list[str]:
    parts: list[str] = []
    operations = sorted({operation for operation, _ in tables})
    goal, slower = [], slowness(tables)
    shown = best_setting(slower) or min(mpi for _, mpi in tables)
    for (operation, mpi), table in sorted(tables.items(), key=_order):
        if mpi not in (shown, "defaults"):
            continue  # all are in the file
        for way in ("comm", "comm-untimed"):
            judged = verdicts(table, way)
            if judged:
                goal.append((operation, mpi, way, summary(judged)))
    if goal:
        parts.append(markdown(("operation", "MPI settings", "through", "goal"), goal, text=4))
    for operation in operations:
        if len(slower) > 1:
            parts += _settings(operation, tables, slower)
        if (operation, shown) in tables:
            title = f"### {operation}, MPI settings: {shown}"
            parts += [title, osu(tables[operation, shown])]
    parts.append(_fits(tables))
    if len({mpi for _, mpi in tables}) > 1:
        parts.append("```\n" + "\n".join(best_lines(tables)) + "\n```")
    return parts


def _order(item: tuple[tuple[str, str], Table]) -> tuple[str, int]:
    (operation, mpi), _ = item
    return operation, _rank_of(mpi)


def _rank_of(mpi: str) -> int:
    known = list(SETTINGS)
    return known.index(mpi) if mpi in known else len(known)


def _settings(
    operation: str, tables: Mapping[tuple[str, str], Table], slower: Mapping[str, float]
) -> list[str]:
    """Medians through mpi4py alone by setting."""
    names = sorted(slower, key=_rank_of)
    own = {mpi: tables.get((operation, mpi), {}).get("mpi4py", {}) for mpi in names}
    sizes = sorted({size for rows in own.values() for size in rows})
    body: list[list[object]] = []
    for size in sizes:
        cells = [own[mpi].get(size) for mpi in names]
        body.append([size, *("-" if row is None else _us(median(row["seconds"])) for row in cells)])
    if operation == "allreduce":
        body.append(["against the best", *(f"{slower[mpi]:.2f}" for mpi in names)])
    return [
        f"### {operation}: settings of MPI, median us through mpi4py alone",
        markdown(("bytes", *names), body, text=1),
    ]


def osu(table: Table) -> str:
    """As the OSU benchmarks print it, for each way through, with the comparison of medians."""
    ways = [way for way in THROUGH if way in table]
    sizes = sorted({size for way in ways for size in table[way]})
    header = ["bytes", "through", "average", "min", "max", "iterations", "median"]
    header.append("against mpi4py [95 %]")
    judged = {way: {v.nbytes: v for v in verdicts(table, way)} for way in ways}
    body = []
    for size in sizes:
        for way in ways:
            row = table[way].get(size)
            if row is None:
                continue
            seconds = row["seconds"]
            verdict = judged[way].get(size) if way != "mpi4py" else None
            figures = [_us(f(seconds)) for f in (fmean, min, max)]
            last = [_us(median(seconds)), "" if verdict is None else str(verdict)]
            body.append([f"{size}", way, *figures, len(seconds), *last])
    return markdown(header, body, text=2)


def _fits(tables: Mapping[tuple[str, str], Table]) -> str:
    """Latencies and bandwidths."""
    body = []
    for (operation, mpi), table in sorted(tables.items(), key=_order):
        for way in ("mpi4py", "comm"):
            for text, least in (("all", 0), (f"from {LONG}", LONG)):
                model = fitted(table, way, least=least)
                if model is not None:
                    figures = (
                        f"{1e6 * model.latency:.3g}",
                        f"{model.bandwidth / 1e6:.4g}",
                        f"{100 * model.residual:.1f} %",
                    )
                    body.append((operation, mpi, way, text, *figures))
    header = ("operation", "MPI settings", "through", "bytes", "latency us", "MB/s", "residual")
    return (
        "Hockney's model, time = latency + bytes / bandwidth, fitted to the medians; the residual "
        "is the median relative error.\n\n" + markdown(header, body, text=4)
    )


def best_lines(tables: Mapping[tuple[str, str], Table]) -> list[str]:
    """What a job script needs: the best setting of all operations; nothing of a single one."""
    slower = slowness(tables)
    best = best_setting(slower)
    if best is None or len(slower) < 2:
        return []
    gain = ""
    if best != "defaults" and "defaults" in slower:
        gain = f": {slower['defaults'] / slower[best]:.2f} times as fast as the defaults"
    return [
        f"# best of {', '.join(sorted(slower, key=_rank_of))} is {best}{gain}",
        export_line(SETTINGS.get(best, {})),
    ]


def draw(path: Path, rows: Sequence[Row]) -> None:
    """Medians by size, a row of panels a place, a panel an operation, the fit as a thin line."""
    plt, found = pyplot(), places(rows)
    order = sorted(found, key=lambda place: (place.link, place.hosts, place.ranks))
    figure, grid = plt.subplots(
        len(order), 2, figsize=(8, 3 * len(order)), squeeze=False, layout="constrained"
    )
    for i, place in enumerate(order):
        for j, operation in enumerate(("allreduce", "broadcast")):
            tables = found[place]
            shown = best_setting(slowness(tables)) or min(mpi for _, mpi in tables)
            if (operation, shown) not in tables:
                grid[i][j].set_axis_off()
                continue
            _panel(grid[i][j], tables[operation, shown])
            title = f"{operation}, {place}\nMPI settings: {shown}"
            grid[i][j].set_title(title.replace(" made on one machine", ""))
    save(figure, path)
    plt.close(figure)


def _panel(axes: Any, table: Table) -> None:
    for way, (colour, style) in _WAYS.items():
        rows = table.get(way, {})
        sizes = sorted(rows)
        if sizes:
            times = [1e6 * median(rows[size]["seconds"]) for size in sizes]
            axes.loglog(sizes, times, style, color=colour, marker=".", label=way)
    model = fitted(table, "mpi4py")
    if model is not None:
        sizes = sorted(table["mpi4py"])
        label = f"fit, residual {100 * model.residual:.0f} %"
        line = [1e6 * model.seconds(size) for size in sizes]
        axes.loglog(sizes, line, "-", color="0.6", linewidth=0.8, label=label)
    axes.set_xlabel("bytes")
    axes.set_ylabel("us")
    axes.legend(fontsize=7)


def _us(seconds: float) -> str:
    micro = 1e6 * seconds
    return f"{micro:.2f}" if micro < 100 else f"{micro:.0f}"
