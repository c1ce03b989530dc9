"""Table and verdicts of ``cost``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.cost.overhead.cases import NETWORKS, VECTORS
from benchmarks.harness import tables
from benchmarks.harness.results import Row

TITLES = {
    "scaled": "default (scaled)",
    "sr1": "L-SR1",
    "first-order": "first order",
    "adam": "torch's Adam, same loop",
}
HEADER = [
    *("network", "method", "N", "gradients + losses", "bare, ms", "with, ms"),
    *("added, % of time", "added, % of processor", "vectors", "at most"),
]


def vectors_allowed(row: Row) -> float:
    """What a method may hold besides parameters and gradient, in vectors."""
    return VECTORS + (2.0 * row["memory"] if row["settings"]["method"] == "sr1" else 0.0)


def verdicts(rows: Sequence[Row]) -> list[str]:
    """A sentence a goal. Time: of the default on one rank, by the processor's; memory: of all."""
    told = []
    for row in rows:
        s = row["settings"]
        name = f"{TITLES[s['method']]}, {s['network']}"
        if s["ranks"] == 1 and s["method"] == "scaled":
            added, goal = row["overhead_processor"][1], NETWORKS[s["network"]].goal
            text = f"{name}: {added:.1f} % of processor time added, goal at most {goal:g} %"
            told.append(f"{text}: {_met(added <= goal)}.")
        if s["ranks"] == 1 and s["method"] != "adam":
            held, allowed = round(row["held"], 2), vectors_allowed(row)
            text = f"{name}: {held:.1f} vectors held, goal at most {allowed:g}"
            told.append(f"{text}: {_met(held <= allowed)}.")
    return told


def _met(good: bool) -> str:
    return "met" if good else "missed"


def report(out: Path, found: Sequence[Row | None]) -> None:
    """Write cost.md from what has been measured; nothing where nothing has."""
    rows = [row for row in found if row is not None]
    if not rows:
        return
    load = max(row["load"] for row in rows)
    cores = min(row["cores"] for row in rows)
    parts = [
        "# What the method adds to the evaluations it makes",
        "An outer iteration against a bare loop that makes the same evaluations of loss and "
        "gradient on the same minibatches through the same kind of network, without any optimizer; "
        "in turns within one process, random data, batch 250, one thread a rank. Added: median "
        "[quartiles] of the ratio less one; of the processor's time other load disturbs less. "
        "With more than one rank the messages, and waiting for them, are included, and the "
        "processor's time tells nothing. Adam: one step a gradient. Vectors: memory beyond "
        "the network's own two (parameters, gradient), in their length: held between iterations, "
        "and at most within one, outside the network's evaluations.",
        tables.markdown(HEADER, map(_line, rows), text=2),
        "\n".join(f"- {line}" for line in verdicts(rows)),
        f"Repetitions: {', '.join(sorted({str(row['repetitions']) for row in rows}))}. Load of the "
        f"machine while measuring: up to {load:.1f} on {cores} cores"
        + (", **so that times are disturbed.**" if load > cores else "."),
        tables.setup(rows) + " Repeat: `python -m benchmarks cost --ranks 1,2 --fresh`.",
    ]
    tables.write(out / "cost.md", *parts)


def _line(row: Row) -> list[Any]:
    s = row["settings"]
    peak = "-" if row["peak"] is None else f"{row['peak']:.1f}"
    return [
        *(s["network"], TITLES[s["method"]], s["ranks"]),
        f"{row['gradients']:g} + {row['forwards']:g}",
        *(f"{1000 * row[name]:.1f}" for name in ("seconds_bare", "seconds")),
        _quartiles(row["overhead"]),
        _quartiles(row["overhead_processor"]) if s["ranks"] == 1 else "-",
        f"{row['held']:.1f}",
        peak,
    ]


def _quartiles(values: Sequence[float]) -> str:
    low, middle, high = values
    return f"{middle:.1f} [{low:.1f}, {high:.1f}]"
