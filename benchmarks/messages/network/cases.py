"""The rows of ``network`` by link, every method at the best of what was tried."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from apts_mpi.errors import InputError
from benchmarks.harness import names
from benchmarks.harness.hosts import bits_per_second
from benchmarks.harness.results import Row
from benchmarks.harness.units import digits

NEVER = float("inf")


@dataclass(frozen=True)
class Entry:
    """A method at its best learning rate and batch over one link.

    Attributes:
        rows: its repetitions. tried: how many settings it was the best of.
    """

    method: str
    rows: list[Row]
    tried: int

    @property
    def settings(self) -> Row:
        """Of its first run."""
        settings: Row = self.rows[0]["settings"]
        return settings

    def middle(self, name: str) -> float | None:
        """Median of a value, a run without it counted as the largest; None where that is it."""
        values = [row.get(name) for row in self.rows]
        # Of an even number the upper one: the median must be a run that got there.
        known = sorted(NEVER if value is None else float(value) for value in values)
        found = known[len(known) // 2] if None in values else median(known)
        return None if found == NEVER else found

    @property
    def reached(self) -> float | None:
        """Median seconds to the target; None where half of the runs or more never reached it."""
        return self.middle("seconds_to_target")

    def range_of(self, name: str, factor: float) -> str:
        """Median [least, most] of a value, and how many runs have none."""
        middle, to_target = self.middle(name), name.endswith("_to_target")
        known = [float(row[name]) * factor for row in self.rows if row.get(name) is not None]
        text = ("never" if to_target else "-") if middle is None else _shown(middle * factor)
        if len(known) > 1:
            text += f" [{_shown(min(known))}, {_shown(max(known))}]"
        missed = len(self.rows) - len(known)
        if missed and name == "seconds_to_target":
            text += f" ({missed} of {len(self.rows)} did not reach it)"
        return text


def _shown(value: float) -> str:
    return f"{value:.0f}" if value.is_integer() else digits(value, 2)


@dataclass(frozen=True)
class Case:
    """All methods on a network over one link."""

    hidden: str
    parameters: int
    hosts: int
    link: str
    target: float
    entries: list[Entry]

    @property
    def title(self) -> str:
        """Network and link."""
        return f"{self.network}, {self.hosts} hosts, {names.shown(self.link)}"

    @property
    def network(self) -> str:
        """Its layers and parameters."""
        layers = f"MLP {self.hidden.replace(',', '-')}"
        return layers + (f", {self.parameters:,} parameters" if self.parameters else "")


def _rate(link: str) -> float:
    """Bits per second of a link, to sort by; infinite without a limit."""
    try:
        return bits_per_second(link)
    except InputError:
        return NEVER


def cases(rows: Sequence[Row]) -> list[Case]:
    """The rows by network, hosts and link, narrow links first; every method at its best."""
    grouped: dict[tuple[str, int, float, str, float], dict[str, list[Row]]] = {}
    targets = [float(row["target"]) for row in rows if "target" in row]
    for row in rows if targets else ():
        s = row["settings"]
        # A run that diverged says nothing of a target: it missed every one.
        target = float(row.get("target", targets[0]))
        key = (s["hidden"], s["hosts"], _rate(s["link"]), s["link"], target)
        grouped.setdefault(key, {}).setdefault(s["method"], []).append(row)
    made = []
    for (hidden, hosts, _, link, target), methods in sorted(grouped.items()):
        entries = [_best(method, own) for method, own in sorted(methods.items())]
        sizes = [row["parameters"] for e in entries for row in e.rows if "parameters" in row]
        made.append(Case(hidden, max(sizes, default=0), hosts, link, target, entries))
    return made


def _best(method: str, rows: Sequence[Row]) -> Entry:
    """The settings that reach the target first, by the median of their repetitions."""
    tried: dict[str, list[Row]] = {}
    for row in rows:
        kept = {k: v for k, v in row["settings"].items() if k not in ("repetition", "seed")}
        tried.setdefault(repr(sorted(kept.items(), key=lambda item: item[0])), []).append(row)
    entries = [Entry(method, own, len(tried)) for own in tried.values()]
    # Those that got further repetitions were the best of one.
    return min(entries, key=lambda entry: (-len(entry.rows), entry.reached or NEVER))
