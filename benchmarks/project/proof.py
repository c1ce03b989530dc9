"""What the cost model predicted, against what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.harness import drawing as draw
from benchmarks.harness import figures, names, tables
from benchmarks.harness.results import Row
from benchmarks.harness.sections import Finding, Picture, Section, Table, Text
from benchmarks.harness.units import percent, seconds
from benchmarks.project.words import PROOF

AIM = 0.15  # median error that the model is held to
_LOOKS = {
    "strong": draw.Style(figures.BLUE, "o", "-"),
    "weak": draw.Style(figures.ORANGE, "s", "-"),
    "network": draw.Style(figures.GREEN, "^", "-"),
}


def proof(rows: Sequence[Row], left: Sequence[str] = ()) -> Section | None:
    """Predicted against measured; None where nothing was predicted."""
    if not rows:
        return None
    lacking = f"Not predicted, since micro has no such network: {', '.join(left)}."
    more = [Text(lacking)] if left else []
    return Section(
        "The cost model against measurements",
        [_proof(rows), Text(PROOF), _points(rows), *more],
    )


def _error(row: Row, name: str = "predicted") -> float:
    return float(row[name] / row["measured"] - 1)


def _errors(rows: Sequence[Row]) -> tuple[Finding, ...]:
    """The median error against the aim, the largest, and both by benchmark."""
    middle = float(np.median([abs(_error(row)) for row in rows]))
    alone = [abs(_error(row, "predicted_alone")) for row in rows if row.get("predicted_alone")]
    text = f"The model is off by {percent(middle)} percent (median of {len(rows)} points; aim: at "
    text += f"most {percent(AIM)}: {tables.met(middle <= AIM)})"
    text += f", {percent(float(np.median(alone)))} without the slow-down" if alone else ""
    worst = max(rows, key=lambda row: abs(_error(row)))
    of = {k: v for k, v in worst["settings"]["of"].items() if v is not None and k != "plan"}
    where = ", ".join(f"{k} = {names.shown(str(v))}" for k, v in of.items())
    found = [
        Finding(f"{text}.", warning=middle > AIM, key=True),
        Finding(f"Furthest off: {100 * _error(worst):+.1f} percent ({where})."),
    ]
    for name in _LOOKS:
        own = [abs(_error(row)) for row in rows if row["settings"]["of"].get("benchmark") == name]
        if own:
            text = f"{name}: median {percent(float(np.median(own)))} percent of {len(own)}, largest"
            found.append(Finding(f"{text} {percent(max(own))}."))
    return tuple(found)


def _proof(rows: Sequence[Row]) -> Picture:
    def on(ax: Any) -> None:
        ax.set_xscale("log")
        ax.set_yscale("log")
        seen: dict[str, draw.Style] = {}
        for row in rows:
            kind = str(row["settings"]["of"].get("benchmark", "other"))
            look = seen.setdefault(kind, _LOOKS.get(kind, draw.Style(figures.RED, "X", "-")))
            form = {"color": look.colour, "mec": draw.INK, "mew": 0.5, "ms": 6}
            ax.plot(row["measured"], row["predicted"], look.marker, **form)
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

    return Picture(
        "model-proof",
        "Predicted against measured",
        f"Time of an outer iteration, seconds. Dashed: equal; band: within {percent(AIM)} percent.",
        "Scatter plot, both axes logarithmic: predicted against measured time of an outer "
        "iteration. Values are under Data.",
        draw.svg(on, height=4.3),
        _errors(rows),
    )


def _points(rows: Sequence[Row]) -> Table:
    body = []
    for row in rows:
        of = row["settings"]["of"]
        keys = ("benchmark", "method", "data", "hidden", "link", "mpi")
        batch, alone = row.get("batch") or of.get("batch"), row.get("predicted_alone")
        shown = [of.get("ranks", of.get("hosts")), batch, of.get("lr")]
        body.append(
            [
                *(names.shown(str(of.get(key, "-"))) for key in keys),
                *(
                    "-" if v is None else f"{v:g}" if isinstance(v, int | float) else str(v)
                    for v in shown
                ),
                _ms(row["measured"])
                + (f" [{', '.join(map(_ms, r))}]" if (r := row.get("range")) else ""),
                *(_ms(row["predicted"]), f"{100 * _error(row):+.1f}"),
                "-" if alone is None else f"{100 * _error(row, 'predicted_alone'):+.1f}",
                f"{row['slowdown']:.2f}" if row.get("slowdown") else "-",
            ]
        )
    header = (
        *("benchmark", "method", "data", "hidden layers", "link", "MPI", "ranks", "batch", "rate"),
        *("measured, ms", "predicted, ms", "error, %", "without slow-down, %", "slow-down"),
    )
    return Table("Every point", header, body, text=6)


def _ms(value: float) -> str:
    return f"{1e3 * value:.2f}"
