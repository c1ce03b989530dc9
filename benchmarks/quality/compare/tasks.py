"""The rows of ``compare`` by task, whatever plans they are of: ours against all others."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.harness import names
from benchmarks.harness.results import Row, grouped
from benchmarks.quality.compare.entries import Entry, unplanned


@dataclass(frozen=True)
class Task:
    """A data set with a network, and every method on it at its best.

    Attributes:
        name: in words. parameters: of the network.
    """

    name: str
    parameters: int
    entries: list[Entry]

    @property
    def label(self) -> str:
        """Its name without the network's widths."""
        return re.sub(r" (depth|width|channels|hidden) .*", "", self.name)

    @property
    def ranks(self) -> int:
        """What methods are compared at."""
        return shown_ranks(self.entries)

    @property
    def ours(self) -> dict[int, Entry]:
        """The default method by ranks: of several the one with the fewest flags."""
        found: dict[int, Entry] = {}
        for entry in sorted(self.entries, key=lambda e: len(e.method), reverse=True):
            if entry.settings["optimizer"] == "apts" and entry.figures:
                found[entry.ranks] = entry
        return dict(sorted(found.items()))

    @property
    def rivals(self) -> list[Entry]:
        """The tuned others at these ranks, or averaging gradients at any, the best first."""
        at = {True: 1, False: self.ranks}
        others = [
            e
            for e in self.entries
            if e.settings["optimizer"] != "apts" and e.figures and e.ranks == at[e.averaging]
        ]
        return sorted(others, key=lambda e: e.score, reverse=True)

    @property
    def averaging(self) -> Entry | None:
        """The best that averages gradients."""
        return next((entry for entry in self.rivals if entry.averaging), None)


def ahead(own: Entry, other: Entry) -> float:
    """By how much the figure is better than another's: points of accuracy, percent of a loss."""
    return -own.behind(other) * (1.0 if own.measure.sign > 0 else 100.0 / abs(other.mean))


def tasks(rows: Sequence[Row]) -> list[Task]:
    """All tasks of the rows, but for other local solvers; a text is judged by its loss."""

    def key(row: Row) -> tuple[str, str]:
        return str(row["settings"]["data"]), names.network(row["settings"])

    default = [r for r in rows if "--local-solver" not in (r["settings"].get("arguments") or [])]
    found = []
    for (data, network), some in sorted(grouped(default, key).items()):
        entries = unplanned(some, "loss" if data == "text" else "accuracy")
        sizes = [int(row.get("parameters", 0)) for row in some]
        found.append(Task(f"{names.shown(data)}, {network}", max(sizes), entries))
    return found


def shown_ranks(found: Sequence[Entry]) -> int:
    """The number of ranks that most methods were run at; of equals the largest."""
    good = [entry for entry in found if entry.figures] or found
    count = Counter(entry.ranks for entry in good if not entry.averaging)
    if not count:
        return max(entry.ranks for entry in good)
    return max(count, key=lambda ranks: (count[ranks], ranks))
