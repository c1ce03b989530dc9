"""Section of ``compare``: accuracy against work and payload, baselines at their best."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from benchmarks.harness import drawing as draw
from benchmarks.harness.results import Row
from benchmarks.harness.runs import AVERAGING, accuracy
from benchmarks.harness.sections import Finding, Picture, Section, Table, Text, slug
from benchmarks.harness.statistics import Array
from benchmarks.harness.units import digits, times

_BELOW = 6.0  # points under the least final accuracy that are shown


@dataclass(frozen=True)
class Entry:
    """A method at a number of ranks with the settings of the best final accuracy.

    Attributes:
        rows: its seeds. tried: settings it was the best of.
    """

    method: str
    ranks: int
    rows: list[Row]
    tried: int

    @property
    def mean(self) -> float:
        """Final test accuracy, 0 to 1; -1 where a seed diverged."""
        values = [accuracy(row) for row in self.rows]
        return fmean(values) if min(values) >= 0 else -1.0

    @property
    def averaging(self) -> bool:
        """Gradients are averaged at every step: N ranks take the steps of one."""
        return self.rows[0]["settings"]["optimizer"] in AVERAGING

    def average(self, name: str) -> float:
        """Mean of a value over the seeds."""
        return fmean(float(row[name]) for row in self.rows)

    def curve(self, axis: str) -> tuple[Array, Array]:
        """Work in epochs or payload in MB, and test accuracies in percent: (seeds, points)."""
        curves = [row["curves"] for row in self.rows]
        common = min(len(curve["epoch"]) for curve in curves)
        shortest = min(curves, key=lambda curve: len(curve["epoch"]))
        x = np.array(shortest["epoch"][:common], dtype=float)
        if axis == "bytes":
            row = self.rows[0]
            each = float(row["bytes_allreduced"]) / float(row["vector_allreduces"])
            x = np.array(shortest["messages"][:common], dtype=float) * each / 1e6
        values = np.array([curve["test_accuracy"][:common] for curve in curves], dtype=float)
        return x, 100 * values


def entries(rows: Sequence[Row]) -> list[Entry]:
    """The methods of one data set by name and ranks, each at its best."""
    grouped: dict[tuple[str, int], dict[str, list[Row]]] = {}
    for row in rows:
        s = row["settings"]
        flags = s.get("arguments") or []
        method = " ".join([s["optimizer"], *map(str, flags)])
        kept = {k: v for k, v in s.items() if k != "seed"}
        own = grouped.setdefault((method, s["ranks"]), {})
        own.setdefault(json.dumps(kept, sort_keys=True), []).append(row)
    found = []
    for (method, ranks), tried in sorted(grouped.items()):
        all_of = [Entry(method, ranks, own, len(tried)) for own in tried.values()]
        # As the benchmark chooses: most seeds first, then the best mean.
        found.append(max(all_of, key=lambda entry: (len(entry.rows), entry.mean)))
    return found


def shown_ranks(found: Sequence[Entry]) -> int:
    """The number of ranks that most methods were run at; of equals the largest."""
    count = Counter(entry.ranks for entry in found if not entry.averaging)
    if not count:
        return max(entry.ranks for entry in found)
    return max(count, key=lambda ranks: (count[ranks], ranks))


def section(rows: Sequence[Row]) -> Section | None:
    """The section; None where there are no rows."""
    if not rows:
        return None
    whole = Section(
        "Accuracy against work and payload",
        [
            Text(
                "Test accuracy after equal work: an epoch is as many sample gradients as there "
                "are samples, a forward evaluation a third. Ours (apts) has nothing tuned; the "
                "others are at the best of their settings by the final test accuracy itself, which "
                "favours them. Averaging of gradients takes the same steps at every number "
                "of ranks and was run on one. Payload: what a rank hands over. Lines join what "
                "runs went through: median over seeds, band from the least to the most."
            )
        ],
    )
    sets: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        s = row["settings"]
        sets.setdefault((s["data"], s["hidden"]), []).append(row)
    for (data, hidden), some in sorted(sets.items()):
        found = entries(some)
        name = f"{data}, hidden layers {hidden.replace(',', '-')}"
        good = [entry for entry in found if entry.mean >= 0]
        parts: list[Any] = []
        if good:
            ranks = shown_ranks(good)
            drawn = [e for e in good if e.averaging or e.ranks == ranks]
            sentences = findings(drawn, data, ranks)
            parts += [
                _picture(drawn, name, ranks, "epoch", sentences[:1]),
                _picture(drawn, name, ranks, "bytes", sentences[1:]),
            ]
        whole.below.append(Section(f"Accuracy: {name}", [*parts, _table(found)]))
    return whole


def findings(drawn: Sequence[Entry], data: str, ranks: int) -> list[Finding]:
    """Ours against the best of the others: accuracy, then messages."""
    own = max((e for e in drawn if e.method.startswith("apts")), key=_mean, default=None)
    others = [entry for entry in drawn if not entry.method.startswith("apts")]
    if own is None or not others:
        best = max(drawn, key=_mean)
        return [Finding(f"{data}: {best.method} ends at {100 * best.mean:.2f} percent.")]
    best = max(others, key=_mean)
    seeds = f"{len(own.rows)} seed{'s' if len(own.rows) > 1 else ''}"
    text = (
        f"{data}, N = {ranks}: {own.method} ends at {100 * own.mean:.2f} percent, the best tuned "
        f"other ({best.method}) at {100 * best.mean:.2f} (means of {seeds})."
    )
    found = [Finding(text, key=True)]
    averaging = [entry for entry in others if entry.averaging]
    if averaging:
        best = max(averaging, key=_mean)
        sent, theirs = own.average("vector_allreduces"), best.average("vector_allreduces")
        text = (
            f"{data}, N = {ranks}: {own.method} sends {sent:.0f} messages of the parameters' "
            f"length, {digits(own.average('bytes_allreduced') / 1e6)} MB per rank; {best.method} "
            f"{theirs:.0f}, {digits(best.average('bytes_allreduced') / 1e6)} MB: "
            f"{times(theirs / sent)} times as many messages."
        )
        found.append(Finding(text, key=True))
    return found


def _mean(entry: Entry) -> float:
    return entry.mean


def _picture(
    drawn: Sequence[Entry], name: str, ranks: int, axis: str, found: Sequence[Finding]
) -> Picture:
    looks = draw.styles([entry.method for entry in drawn])
    what = "work" if axis == "epoch" else "payload"

    def on(ax: Any) -> None:
        if axis == "bytes":
            ax.set_xscale("log")
        for entry in drawn:
            look = looks[entry.method]
            x, values = entry.curve(axis)
            ax.plot(
                x,
                np.median(values, axis=0),
                color=look.colour,
                ls=look.dash,
                marker=look.marker,
                markevery=max(1, len(x) // 7),
                ms=4.5,
                lw=1.3,
                label=entry.method,
            )
            ax.fill_between(
                x, values.min(axis=0), values.max(axis=0), color=look.colour, alpha=0.15, lw=0
            )
        finals = [100 * entry.mean for entry in drawn]
        ax.set_ylim(max(0.0, min(finals) - _BELOW), max(finals) + 1)
        if axis == "bytes":
            draw.log_axis(ax.xaxis)
        ax.set_xlabel("work, epochs" if axis == "epoch" else "payload of a rank, MB")
        ax.set_ylabel("test accuracy, %")
        draw.legend(ax)

    return Picture(
        f"accuracy-{slug(name)}-{what}",
        f"Accuracy against {what}, N = {ranks}",
        "Median over seeds; band: least to most. The vertical axis begins where the runs differ.",
        f"Line plot: test accuracy in percent against {what} for "
        f"{', '.join(entry.method for entry in drawn)}; {name}.",
        draw.svg(on, height=4.0),
        tuple(found),
    )


def _table(found: Sequence[Entry]) -> Table:
    header = [
        *("method", "N", "rate", "batch in all", "settings tried", "seeds"),
        *("test accuracy, % [least, most]", "work, epochs", "messages", "MB per rank"),
        *("messages per epoch", "MB per rank and epoch"),
    ]
    rows = []
    for entry in found:
        s = entry.rows[0]["settings"]
        lr, batch = s.get("lr"), s.get("batch")
        line = [
            *(entry.method, "any" if entry.averaging else str(entry.ranks)),
            "-" if lr is None else f"{lr:g}" if isinstance(lr, (int, float)) else str(lr),
            *("-" if batch is None else str(batch), str(entry.tried), str(len(entry.rows))),
        ]
        if entry.mean < 0:
            rows.append([*line, "diverged", "-", "-", "-", "-", "-"])
            continue
        values = [100 * accuracy(row) for row in entry.rows]
        work = fmean(float(row["curves"]["epoch"][-1]) for row in entry.rows)
        messages = entry.average("vector_allreduces")
        sent = entry.average("bytes_allreduced") / 1e6
        rows.append(
            [
                *line,
                f"{fmean(values):.2f} [{min(values):.2f}, {max(values):.2f}]",
                *(f"{work:.1f}", f"{messages:.0f}", digits(sent)),
                *(digits(messages / work), digits(sent / work)),
            ]
        )
    return Table("Every method at its best: means over seeds", header, rows, folded=len(rows) > 16)


def sections(rows: Mapping[str, list[Row]]) -> list[Section]:
    """For the page of ``report``, of the rows by kind."""
    found = section(rows["compare"])
    return [] if found is None else [found]
