"""What the rows of ``project`` say: what was fitted, every prediction, and the projections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.harness import names
from benchmarks.harness.results import Row
from benchmarks.harness.sections import Section, Table
from benchmarks.project.projection import projections
from benchmarks.project.proof import proof
from benchmarks.project.words import MODEL

FITTED, GUESSED = ("costs", "messages"), ("prediction", "projection")
NO_WORDS: Row = {"assumptions": [], "left": [], "setup": ""}


def section(rows: Sequence[Row], options: object = None) -> Section:
    """The model, proved and then projected."""
    kinds: dict[str, list[Row]] = {name: [] for name in ("fitted", *FITTED, *GUESSED)}
    for row in rows:
        s = row["settings"]
        kinds[s["kind"]].append(row)
        kinds.setdefault(s.get("what", ""), []).append(row)
    foot = f"{_words(kinds)['setup']} Repeat: `python -m benchmarks project`."
    below = [_fitted(*(kinds[name] for name in FITTED)), *sections(kinds)]
    title = "A cost model, proved where it can be, then projected"
    return Section(title, [MODEL], below, [foot.strip()])


def sections(rows: Mapping[str, list[Row]]) -> list[Section]:
    """Those of the page of ``report`` too, of the rows by kind."""
    words = _words(rows)
    found = (
        projections(rows["projection"], words["assumptions"]),
        proof(rows["prediction"], words["left"]),
    )
    return [one for one in found if one is not None]


def _words(rows: Mapping[str, list[Row]]) -> Row:
    """What is said beside the numbers: assumptions, what was left out, the set-up."""
    own = (row for row in rows.get("fitted", ()) if row["settings"].get("what") == "words")
    return {**NO_WORDS, **next(own, {})}


def _fitted(costs: Sequence[Row], messages: Sequence[Row]) -> Section:
    def cell(row: Row, name: str, factor: float, form: str) -> str:
        return "-" if row[name] is None else f"{factor * row[name]:{form}}"

    def word(value: object) -> object:
        if isinstance(value, str):
            return names.mpi(names.shown(value))
        return f"{value:g}" if isinstance(value, float) else value

    def table(header: str, keys: Sequence[str], rows: Sequence[Row], how: Sequence[Any]) -> Table:
        body = [
            [
                *(word(row["settings"].get(key)) for key in keys),
                *(cell(row, *one) for one in how),
            ]
            for row in rows
        ]
        return Table("", header.split("; "), body, text=2)

    own = table(
        "hidden layers; method; batch; per sample gradient, us; GFLOP/s; algebra per step, ms; "
        "per iteration, ms; data per sample, us; besides, ms; slowest of two, +%",
        ("hidden", "method", "batch"),
        costs,
        (
            *(("gradient", 1e6, ".2f"), ("flops", 1e-9, ".1f"), ("step", 1e3, ".3f")),
            *(("join", 1e3, ".2f"), ("sample", 1e6, ".3f"), ("other", 1e3, ".2f")),
            ("spread", 100, ".1f"),
        ),
    )
    sent = table(
        "link; MPI; hosts; ranks; latency, us; MB/s; median residual, %",
        ("link", "mpi", "hosts", "ranks"),
        messages,
        (("latency", 1e6, ".1f"), ("bandwidth", 1e-6, ".0f"), ("residual", 100, ".0f")),
    )
    return Section("Fitted", [own, sent])
