"""Sections of ``project``: the cost model against what was measured, and what it projects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.harness import drawing as draw
from benchmarks.harness import figures
from benchmarks.harness.results import Row
from benchmarks.harness.sections import Finding, Picture, Section, Table, Text, slug
from benchmarks.harness.units import digits, percent, seconds

AIM = 0.15  # median error that the model is held to
HALF = 0.5  # efficiency below which more ranks no longer pay
_LOOKS = {
    "strong": draw.Style(figures.BLUE, "o", "-"),
    "weak": draw.Style(figures.ORANGE, "s", "-"),
    "network": draw.Style(figures.GREEN, "^", "-"),
}


def proof(rows: Sequence[Row]) -> Section | None:
    """Predicted against measured; None where nothing was predicted."""
    if not rows:
        return None
    errors = [row["predicted"] / row["measured"] - 1 for row in rows]
    middle = float(np.median(np.abs(errors)))
    worst = max(range(len(rows)), key=lambda i: abs(errors[i]))
    name = _configuration(rows[worst]["settings"]["of"])
    found = [
        Finding(
            f"The model is off by {percent(middle)} percent (median of {len(rows)} points; aim: at "
            f"most {percent(AIM)}).",
            warning=middle > AIM,
            key=True,
        ),
        Finding(f"Furthest off: {100 * errors[worst]:+.1f} percent ({name})."),
    ]

    def on(ax: Any) -> None:
        ax.set_xscale("log")
        ax.set_yscale("log")
        seen: dict[str, draw.Style] = {}
        for row in rows:
            kind = str(row["settings"]["of"].get("benchmark", "other"))
            look = seen.setdefault(kind, _LOOKS.get(kind, draw.Style(figures.RED, "X", "-")))
            ax.plot(
                row["measured"],
                row["predicted"],
                look.marker,
                color=look.colour,
                mec=draw.INK,
                mew=0.5,
                ms=6,
            )
        values = [row[name] for row in rows for name in ("measured", "predicted")]
        ends = np.array([min(values) / 1.5, max(values) * 1.5])
        ax.plot(ends, ends, color=draw.INK, lw=0.8, ls="--")
        ax.fill_between(ends, ends * (1 - AIM), ends * (1 + AIM), color=draw.LINE, lw=0)
        ax.set_xlim(*ends)
        ax.set_ylim(*ends)
        draw.log_axis(ax.xaxis, seconds)
        draw.log_axis(ax.yaxis, seconds)
        ax.set_xlabel("measured, an outer iteration")
        ax.set_ylabel("predicted")
        handles = [draw.handle(look, kind) for kind, look in seen.items()]
        draw.legend(ax, handles=handles)

    picture = Picture(
        "model-proof",
        "Predicted against measured",
        f"Time of an outer iteration, seconds. Dashed: equal; band: within {percent(AIM)} percent.",
        "Scatter plot, both axes logarithmic: predicted against measured time of an outer "
        "iteration. Values are in the table below.",
        draw.svg(on, height=4.3),
        tuple(found),
    )
    table = Table(
        "Every point",
        ["configuration", "measured, ms", "predicted, ms", "error, %"],
        [
            [
                _configuration(row["settings"]["of"]),
                *(digits(1e3 * row["measured"]), digits(1e3 * row["predicted"])),
                f"{100 * error:+.1f}",
            ]
            for row, error in zip(rows, errors, strict=True)
        ],
        folded=len(rows) > 12,
    )
    return Section("The cost model against measurements", [picture, table])


def _configuration(of: Row) -> str:
    first = ("benchmark", "method", "data", "hidden", "link")
    words = [str(of[name]) for name in first if of.get(name) is not None]
    rest = {k: v for k, v in of.items() if k not in first and v is not None}
    names = {"ranks": "N", "batch": "batch", "hosts": "hosts", "lr": "rate"}
    words += [f"{names.get(k, k)} = {v}" for k, v in rest.items()]
    return ", ".join(words)


Key = tuple[str, int]  # network, and who computes where that is assumed; parameters


def projections(rows: Sequence[Row]) -> Section | None:
    """What the model says of machines that were not measured; labelled as such throughout."""
    if not rows:
        return None
    grouped: dict[Key, dict[str, dict[int, Row]]] = {}
    for row in rows:
        s = row["settings"]
        key = (_network(s), s["parameters"])
        grouped.setdefault(key, {}).setdefault(s["method"], {})[s["ranks"]] = row
    whole = Section(
        "Projection: beyond what was measured",
        [
            Text(
                "Every number and curve of this section is a projection of the cost model, not a "
                "measurement. Efficiency: time per epoch on one rank over N times that on N."
            )
        ],
    )
    methods = list(dict.fromkeys(row["settings"]["method"] for row in rows))
    for network in dict.fromkeys(name for name, _ in grouped):
        one = Section(f"Projection: {network}", folded=bool(whole.below))
        own = sorted(key for key in grouped if key[0] == network)
        one.parts += [_picture(key, grouped[key]) for key in own]
        one.parts += [_table(key, grouped[key]) for key in own]
        whole.below.append(one)
    whole.parts.append(_limits(grouped, methods))
    return whole


def _network(settings: Row) -> str:
    """The network, with who computes where that is not the machine that was measured."""
    name, compute = str(settings["network"]), str(settings.get("compute") or "measured")
    return name if compute == "measured" or compute in name else f"{name}, {compute}"


def last_ranks(own: dict[int, Row], least: float = HALF) -> int:
    """The ranks up to which efficiency stays at or above a bound; 1 where it never is."""
    last = 1
    for ranks in sorted(own):
        if own[ranks]["efficiency"] < least:
            break
        last = ranks
    return last


def _where(key: Key) -> str:
    return f"{key[0]}, {key[1]:,} parameters"


def _picture(key: Key, methods: dict[str, dict[int, Row]]) -> Picture:
    looks = draw.styles(list(methods))
    reach = {method: last_ranks(own) for method, own in methods.items()}
    best = max(reach, key=lambda method: reach[method])
    most = max(n for own in methods.values() for n in own)
    reached = ", ".join(f"{method} {'all' if n == most else n}" for method, n in reach.items())

    def on(ax: Any) -> None:
        every = sorted({n for own in methods.values() for n in own})
        for method, own in methods.items():
            look, x = looks[method], sorted(own)
            ax.plot(
                x,
                [100 * own[n]["efficiency"] for n in x],
                color=look.colour,
                ls=look.dash,
                marker=look.marker,
                ms=4,
                lw=1.3,
                label=method,
            )
        ax.axhline(100 * HALF, color=draw.INK, lw=0.7, ls="--")
        draw.ranks_axis(ax, every)
        ax.set_ylim(0, None)
        ax.set_ylabel("projected efficiency, %")
        ax.text(0.98, 0.97, "projection", transform=ax.transAxes, ha="right", va="top", alpha=0.6)
        draw.legend(ax)

    return Picture(
        f"projection-{slug(_where(key))}",
        f"Projection: {_where(key)}",
        f"Projection, not measured. Lines: the model's, which is defined at every N. Dashed: "
        f"{100 * HALF:.0f} percent.",
        f"Line plot: projected efficiency against ranks for {', '.join(methods)}. Values are in "
        "the table below.",
        draw.svg(on, height=4.0),
        (
            Finding(
                f"Projection: efficiency stays at {100 * HALF:.0f} percent or more up to N = "
                f"{reached} (furthest: {best})."
            ),
        ),
    )


def _table(key: Key, methods: dict[str, dict[int, Row]]) -> Table:
    every = sorted({n for own in methods.values() for n in own})
    rows = []
    for method, own in methods.items():
        cells = []
        for n in every:
            row = own.get(n)
            cell = (
                f"{digits(row['seconds_per_epoch'])} ({percent(row['efficiency'])})" if row else "-"
            )
            cells.append(cell)
        rows.append([method, *cells])
    caption = f"Projection: {_where(key)}: seconds per epoch (efficiency, %) by ranks"
    return Table(caption, ["method", *(f"N = {n}" for n in every)], rows, folded=True)


def _limits(grouped: dict[Key, dict[str, dict[int, Row]]], methods: list[str]) -> Table:
    rows = []
    for key, own in sorted(grouped.items(), key=lambda item: (item[0][1], item[0][0])):
        cells = [str(last_ranks(own[m])) if m in own else "-" for m in methods]
        rows.append([f"{key[1]:,}", key[0], *cells])
    caption = f"Projection: most ranks with an efficiency of at least {100 * HALF:.0f} percent"
    return Table(caption, ["parameters", "network", *methods], rows, text=2)


def sections(rows: Mapping[str, list[Row]]) -> list[Section]:
    """For the page of ``report``, of the rows by kind."""
    found = (proof(rows["prediction"]), projections(rows["projection"]))
    return [one for one in found if one is not None]
