"""Section of ``network``: time to an accuracy over narrow links."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from benchmarks.harness import drawing as draw
from benchmarks.harness.results import Row
from benchmarks.harness.sections import Finding, Part, Picture, Section, Table, Text, slug
from benchmarks.harness.units import digits, seconds, times

OUTSIDE = "ddp-adam"  # what ours is held against
_UNITS = {"k": 1e3, "m": 1e6, "g": 1e9, "": 1.0}


@dataclass(frozen=True)
class Entry:
    """A method at its best learning rate and batch over one link.

    Attributes:
        rows: its repetitions. tried: settings that it was the best of.
    """

    method: str
    rows: list[Row]
    tried: int

    @property
    def settings(self) -> Row:
        """Of its first run."""
        settings: Row = self.rows[0]["settings"]
        return settings

    @property
    def reached(self) -> float | None:
        """Median seconds to the target; None where half of the runs or more never reached it."""
        return self.middle("seconds_to_target")

    def middle(self, name: str) -> float | None:
        """Median of a value, a run without it counted as the largest; None where that is it."""
        values = [row.get(name) for row in self.rows]
        # Of an even number the upper one: the median must be a run that got there.
        known = sorted(float("inf") if value is None else float(value) for value in values)
        found = known[len(known) // 2] if None in values else median(known)
        return None if found == float("inf") else found

    def range_of(self, name: str, factor: float = 1.0) -> str:
        """Median [least, most] of a value."""
        middle = self.middle(name)
        if middle is None:
            return "never" if name.endswith("_to_target") else "-"
        known = [float(row[name]) * factor for row in self.rows if row.get(name) is not None]
        text = digits(middle * factor)
        if len(self.rows) > 1:
            most = "never" if len(known) < len(self.rows) else digits(max(known))
            text += f" [{digits(min(known))}, {most}]"
        return text


@dataclass(frozen=True)
class Case:
    """All methods on a network over one link."""

    hidden: str
    parameters: int | None
    hosts: int
    link: str
    target: float
    entries: list[Entry]

    @property
    def title(self) -> str:
        """Network and link."""
        return f"{self.network}, {self.hosts} hosts, link {self.link}"

    @property
    def network(self) -> str:
        """Its layers and parameters."""
        layers = f"hidden layers {self.hidden.replace(',', '-')}"
        return layers + (f", {self.parameters:,} parameters" if self.parameters else "")

    def of(self, method: str) -> Entry | None:
        """A method's entry."""
        return next((entry for entry in self.entries if entry.method == method), None)


def rate(link: str) -> float:
    """Bits per second of a link's name, to sort by; infinite without a limit."""
    found = re.fullmatch(r"\s*([\d.]+)\s*([kmg]?)bits?(/s)?\s*", link.lower())
    try:
        return float(found[1]) * _UNITS[found[2]] if found else float("inf")
    except ValueError:
        return float("inf")


def cases(rows: Sequence[Row]) -> list[Case]:
    """The rows by network, hosts and link, narrow links first; every method at its best."""
    grouped: dict[tuple[str, int, str, float], dict[str, list[Row]]] = {}
    targets = [float(row["target"]) for row in rows if "target" in row]
    for row in rows if targets else ():
        s = row["settings"]
        # A run that diverged says nothing of a target: it missed every one.
        key = (s["hidden"], s["hosts"], s["link"], float(row.get("target", targets[0])))
        grouped.setdefault(key, {}).setdefault(s["method"], []).append(row)
    made = []
    for (hidden, hosts, link, target), methods in sorted(
        grouped.items(), key=lambda item: (item[0][0], item[0][1], rate(item[0][2]), item[0][3])
    ):
        entries = [_best(method, own) for method, own in sorted(methods.items())]
        size = next((r["parameters"] for e in entries for r in e.rows if "parameters" in r), None)
        parameters = int(size) if isinstance(size, (int, float)) else None
        made.append(Case(hidden, parameters, hosts, link, target, entries))
    return made


def _best(method: str, rows: Sequence[Row]) -> Entry:
    """The settings that reach the target first, by the median of their repetitions."""
    tried: dict[str, list[Row]] = {}
    for row in rows:
        kept = {k: v for k, v in row["settings"].items() if k not in ("repetition", "seed")}
        tried.setdefault(repr(sorted(kept.items(), key=lambda item: item[0])), []).append(row)
    entries = [Entry(method, own, len(tried)) for own in tried.values()]

    def order(entry: Entry) -> tuple[int, float]:
        reached = entry.reached  # those that got further repetitions were the best of one
        return (-len(entry.rows), float("inf") if reached is None else reached)

    return min(entries, key=order)


def section(rows: Sequence[Row]) -> Section | None:
    """The section; None where there are no rows."""
    found = cases(rows)
    if not found:
        return None
    target = ", ".join(f"{100 * one:g}" for one in sorted({case.target for case in found}))
    whole = Section(
        "Training over narrow links",
        [
            Text(
                f"Time to a test accuracy of {target} percent between hosts whose link is limited; "
                "evaluation is left out of the time. Every method at the best learning rate and "
                "batch that were tried, by the median over its repetitions of the time itself, "
                "which favours what has more to choose from. Curves: the median repetition."
            )
        ],
    )
    for network in dict.fromkeys(case.network for case in found):
        own = [case for case in found if case.network == network]
        parts: list[Part] = [_against(case, "seconds") for case in own]
        if any(_has(entry, "bytes") for case in own for entry in case.entries):
            parts.append(_against(own[0], "bytes"))
        parts += [_table(case) for case in own]
        whole.below.append(Section(f"Narrow links: {network}", parts))
    return whole


def findings(case: Case) -> list[Finding]:
    """Ours against the outside reference."""
    own = [e for e in case.entries if e.method.startswith("apts") and e.reached is not None]
    goal = f"{100 * case.target:g} percent"
    if not own:
        return [Finding(f"Over {case.link}, ours never reached {goal}.", warning=True)]
    # The defaults first; what is chosen by measurement beside them, not in their place.
    return [_against_outside(case, entry, goal) for entry in sorted(own, key=lambda e: e.method)]


def _against_outside(case: Case, entry: Entry, goal: str) -> Finding:
    assert entry.reached is not None
    text = f"Over {case.link} ({case.network}) {entry.method} reaches {goal} in "
    text += seconds(entry.reached)
    outside = case.of(OUTSIDE)
    slower = False
    if outside is not None:
        if outside.reached is None:
            text += f"; {OUTSIDE} never did"
        else:
            gain = outside.reached / entry.reached
            slower = gain < 1
            text += f", {OUTSIDE} in {seconds(outside.reached)}: "
            text += f"{times(1 / gain if slower else gain)} times {'later' if slower else 'sooner'}"
    return Finding(text + ".", warning=slower, key=True)


def _has(entry: Entry, axis: str) -> bool:
    curve = _typical(entry).get("curve", {})
    values = curve.get(axis)
    return isinstance(values, list) and len(values) == len(curve["test_accuracy"])


def _typical(entry: Entry) -> Row:
    """The run in the middle by its time to the target."""
    far = float("inf")
    own = [row for row in entry.rows if "curve" in row] or entry.rows
    order = sorted(own, key=lambda row: row.get("seconds_to_target") or far)
    return order[(len(order) - 1) // 2]


def _against(case: Case, axis: str) -> Picture:
    looks = draw.styles([entry.method for entry in case.entries])
    shown = [entry for entry in case.entries if _has(entry, axis)]

    def on(ax: Any) -> None:
        lowest = 100 * case.target
        ax.set_xscale("log")
        for entry in shown:
            curve, look = _typical(entry)["curve"], looks[entry.method]
            x = np.array(curve[axis], dtype=float) / (1e6 if axis == "bytes" else 1.0)
            y = 100 * np.array(curve["test_accuracy"], dtype=float)
            good = x > 0
            every = max(1, good.sum() // 8)
            ax.plot(
                x[good],
                y[good],
                color=look.colour,
                ls=look.dash,
                marker=look.marker,
                markevery=int(every),
                ms=4.5,
                lw=1.3,
                label=entry.method,
            )
            lowest = min(lowest, float(y[good][-1])) if good.any() else lowest
        ax.axhline(100 * case.target, color=draw.INK, lw=0.7, ls="--")
        ax.set_ylim(max(0.0, min(lowest, 100 * case.target) - 7), None)
        draw.log_axis(ax.xaxis)
        ax.set_xlabel("time, s" if axis == "seconds" else "payload of a rank, MB")
        ax.set_ylabel("test accuracy, %")
        draw.legend(ax)

    what = "time" if axis == "seconds" else "payload"
    found = findings(case) if axis == "seconds" else _bytes_findings(case)
    return Picture(
        f"network-{slug(case.title)}-{axis}",
        f"Accuracy against {what}"
        + (f", link {case.link}" if axis == "seconds" else f" (run over {case.link})"),
        "Runs are measured at their evaluations (marks at some), lines join what one run went "
        "through. Dashed: the target.",
        f"Line plot, {what} logarithmic: test accuracy against {what} for "
        f"{', '.join(entry.method for entry in shown)}, {case.title}.",
        draw.svg(on, height=4.0),
        tuple(found),
    )


def _bytes_findings(case: Case) -> list[Finding]:
    sent = {e.method: value for e in case.entries if (value := e.middle("bytes_to_target"))}
    if not sent:
        return []
    least = min(sent, key=lambda method: sent[method])
    most = max(sent, key=lambda method: sent[method])
    text = f"Fewest bytes to the target: {least}, {digits(sent[least] / 1e6)} MB per rank"
    if most != least:
        text += f"; most: {most}, {digits(sent[most] / 1e6)} MB"
    return [Finding(text + ".")]


def _table(case: Case) -> Table:
    header = [
        *("method", "rate", "batch", "runs", "s to target", f"times sooner than {OUTSIDE}"),
        *("epochs to target", "MB to target", "s per epoch", "messages per epoch", "MB per epoch"),
    ]
    outside = case.of(OUTSIDE)
    rows = []
    for entry in case.entries:
        lr, batch = entry.settings.get("lr"), entry.settings.get("batch")
        gain = "-"
        if outside is not None and outside.reached is not None and entry.reached is not None:
            gain = times(outside.reached / entry.reached)
        rate_ = "-" if lr is None else f"{lr:g}" if isinstance(lr, (int, float)) else str(lr)
        if entry.tried > 1:
            rate_ += f" (best of {entry.tried})"
        rows.append(
            [
                *(entry.method, rate_, "-" if batch is None else str(batch), str(len(entry.rows))),
                *(entry.range_of("seconds_to_target"), gain),
                *(entry.range_of("epochs_to_target"), entry.range_of("bytes_to_target", 1e-6)),
                *(entry.range_of("seconds_per_epoch"), entry.range_of("messages_per_epoch")),
                entry.range_of("bytes_per_epoch", 1e-6),
            ]
        )
    return Table(f"{case.title}: medians [least, most]", header, rows)


def sections(rows: Mapping[str, list[Row]]) -> list[Section]:
    """For the page of ``report``, of the rows by kind."""
    found = section(rows["network"])
    return [] if found is None else [found]
