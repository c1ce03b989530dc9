"""Tables and verdicts of ``gpu``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.cost.gpu.cases import CASES, STEPS, WAYS
from benchmarks.harness import tables
from benchmarks.harness.results import Row


def report(out: Path, rows: Sequence[Row]) -> None:
    """Write gpu.md from what has been measured; nothing where nothing has."""
    if not rows:
        return
    single = sorted(
        (row for row in rows if _pair(row) == (1, 1)),
        key=lambda row: (list(CASES).index(row["settings"]["network"]), _way(row)),
    )
    gpus = ", ".join(sorted({row["gpu"] for row in rows}))
    tables.write(
        out / "gpu.md",
        "# An outer iteration on a GPU",
        f"Of the default method, {STEPS} local steps, against a bare PyTorch loop of the same "
        f"evaluations ({STEPS} gradients and a forward one): the same network with parameters of "
        "their own, the mean loss's `backward` into fresh gradients, minibatches that lie ready, "
        "no result looked at. In turns within one process; medians, and quartiles of the ratio. "
        "The method draws its minibatches, looks at every loss, and sends its messages through "
        f"host memory. Random data, which lie on the GPU. GPU: {gpus}.",
        tables.markdown(_HEADER, map(_line, single), text=2),
        "Launches: kernels of an iteration; waits: of the host for the GPU. Memory, MB: held "
        "between iterations by the method and by the GPU's libraries, beyond data, parameters and "
        "gradient; and the most of an iteration beyond that, activations included, ours / the bare "
        "loop's.",
        "\n".join(f"- {line}" for line in [*verdicts(single), *missing(single)]),
        *_shared_parts(rows),
        tables.setup(rows) + " Repeat: `python -m benchmarks gpu --fresh`.",
    )


_HEADER = [
    *("network", "precision", "parameters", "batch", "bare, ms", "with, ms", "added, %"),
    *("Adam's step adds, %", "launches", "bare", "waits", "held, MB", "most, MB"),
]
_SHARED_HEADER = ["network", "ranks", "subdomains a rank", "iteration, ms", "samples a second"]


def verdicts(rows: Sequence[Row]) -> list[str]:
    """A sentence a goal."""
    told = []
    for row in rows:
        name, way = row["settings"]["network"], row["settings"]["way"]
        goal, added = CASES[name].goal, row["added"]["own"][1]
        if goal is not None:
            met = "met" if added <= goal else "missed"
            told.append(f"{name}, {way}: {added:.1f} % added, goal at most {goal:g} %: {met}.")
    return told or ["No goal is set for what was measured."]


def missing(rows: Sequence[Row]) -> list[str]:
    """A sentence of what has not been measured of the networks that have."""
    networks = dict.fromkeys(row["settings"]["network"] for row in rows)
    done = {(row["settings"]["network"], row["settings"]["way"]) for row in rows}
    left = [f"{name}, {way}" for name in networks for way in WAYS if (name, way) not in done]
    return [f"Not measured: {'; '.join(left)}."] if left else []


def _pair(row: Row) -> tuple[int, int]:
    return row["settings"]["ranks"], row["settings"]["subdomains"]


def _line(row: Row) -> list[Any]:
    s, seconds, counts = row["settings"], row["seconds"], row["counts"]
    return [
        *(s["network"], s["way"], f"{row['parameters']:,}", CASES[s["network"]].batch),
        *(f"{1e3 * seconds[each]:.1f}" for each in ("bare", "own")),
        *(_quartiles(row["added"][each]) for each in ("own", "adam")),
        *(counts["own"]["launches"], counts["bare"]["launches"], counts["own"]["waits"]),
        f"{row['held'] / 1e6:,.0f}",
        " / ".join(f"{row['peaks'][each] / 1e6:,.0f}" for each in ("own", "bare")),
    ]


def _shared_parts(rows: Sequence[Row]) -> list[str]:
    title = "## Several ranks on one GPU"
    if all(_pair(row) == (1, 1) for row in rows):
        return [title, "Not measured yet."]
    return [
        title,
        "As many processes on the one GPU, against one with as many subdomains one after another: "
        "the same work. An iteration, and the samples whose gradients it computes a second.",
        tables.markdown(_SHARED_HEADER, _shared(rows), text=1),
    ]


def _way(row: Row) -> int:
    return WAYS.index(row["settings"]["way"])


def _shared(rows: Sequence[Row]) -> list[list[Any]]:
    found = [row for row in rows if row["settings"]["way"] == rows[0]["settings"]["way"]]
    lines = []
    for row in sorted(found, key=lambda row: (row["settings"]["network"], *_pair(row)[::-1])):
        ranks, subdomains = _pair(row)
        name, seconds = row["settings"]["network"], row["seconds"]["own"]
        samples = ranks * subdomains * STEPS * CASES[name].batch
        each = f"{samples / seconds:,.0f}"
        lines.append([name, ranks, subdomains, f"{1e3 * seconds:.1f}", each])
    return lines


def _quartiles(values: Sequence[float]) -> str:
    low, middle, high = values
    return f"{middle:.1f} [{low:.1f}, {high:.1f}]"
