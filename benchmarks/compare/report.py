"""Tables and verdicts of ``compare``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks import tables
from benchmarks.compare.figure import plot
from benchmarks.compare.plan import (
    AVERAGING,
    LOCAL,
    DataSet,
    Get,
    Group,
    Method,
    accuracy,
    groups,
)
from benchmarks.launch import Row

FEWER, LEAST_FEWER = 20, 10  # times fewer messages than gradient averaging: goal, and at least
RESULT = ["test accuracy, %", "seeds", "work, epochs", "messages", "MB"]
TUNED = ["rate", "batch", "local steps", "worst rate, %"]
VERDICT = [
    *("method", "N", "averaging", "accuracy", "messages"),
    *("local", "accuracy", "messages", "goals"),
]


@dataclass(frozen=True)
class Entry:
    """A method with so many ranks as it came out of its grid.

    Attributes:
        tuned: the settings chosen, but for the seed. rows: the runs of them that are done.
        worst: accuracy on the first seed at the chosen batch and the worst rate, in percent; None
            without a grid, -100 where that diverged.
    """

    group: Group
    tuned: Row
    rows: list[Row]
    worst: float | None

    @property
    def method(self) -> Method:
        """The method."""
        return self.group.method

    @property
    def percents(self) -> list[float]:
        """Final test accuracy of each run, in percent; none where any diverged."""
        values = [100 * accuracy(row) for row in self.rows]
        return values if min(values) >= 0 else []

    @property
    def mean(self) -> float:
        """Mean final test accuracy, in percent; -100 where a run diverged."""
        return fmean(self.percents) if self.percents else -100.0

    def average(self, name: str) -> float:
        """Mean of a figure over the runs."""
        return fmean(row[name] for row in self.rows)


def entries(data: DataSet, get: Get) -> list[Entry]:
    """What there is of a set, in the order of its methods and ranks."""
    found = []
    for group in groups(data):
        best = group.best(get)
        if best is not None:
            found.append(Entry(group, *best, worst=_worst(group, best[0], get)))
    return found


def _worst(group: Group, tuned: Row, get: Get) -> float | None:
    if "lr" not in tuned:
        return None
    others = [c for c in group.candidates() if c["batch"] == tuned["batch"]]
    rows = [get({**candidate, "seed": group.data.seeds[0]}) for candidate in others]
    return min((100 * accuracy(row) for row in rows if row is not None), default=None)


@dataclass(frozen=True)
class Verdict:
    """An untuned method at a number of ranks against the best of the tuned ones.

    Attributes:
        own: the method. averaging, local: the best by accuracy of gradient averaging, and of the
            local methods at as many ranks, if any has been run.
        margin: points of accuracy that may be lost against gradient averaging.
    """

    own: Entry
    averaging: Entry | None
    local: Entry | None
    margin: float

    def goals(self) -> dict[str, str]:
        """What was aimed at: met, missed, and for messages also nearly."""
        told = {}
        if self.averaging is not None:
            lost = self.averaging.mean - self.own.mean
            told["accuracy"] = _met(lost <= self.margin + 1e-9)
            times = fewer(self.averaging, self.own)
            nearly = "nearly" if times >= LEAST_FEWER else "missed"
            told["messages"] = "met" if times >= FEWER else nearly
        if self.local is not None:
            told["local"] = _met(self.own.mean >= self.local.mean)
        return told

    def cells(self) -> list[str]:
        """Its line of the table."""
        line = [self.own.method.name, str(self.own.group.ranks)]
        for other in (self.averaging, self.local):
            if other is None:
                line += ["-", "-", "-"]
                continue
            line.append(other.method.name)
            good = self.own.percents and other.percents
            line.append(f"{self.own.mean - other.mean:+.2f}" if good else "diverged")
            line.append(f"1/{fewer(other, self.own):.1f}" if good else "-")
        return [*line, ", ".join(f"{name} {told}" for name, told in self.goals().items())]


def _met(good: bool) -> str:
    return "met" if good else "missed"


def fewer(baseline: Entry, own: Entry) -> float:
    """How many times the messages of ours the baseline sends; 0 where either diverged."""
    if not (baseline.percents and own.percents):
        return 0.0
    name = "vector_allreduces"
    return baseline.average(name) / max(own.average(name), 1.0)


def verdicts(data: DataSet, found: Sequence[Entry]) -> list[Verdict]:
    """Every untuned method and number of ranks against what it competes with."""

    def best(kind: tuple[str, ...], ranks: int | None) -> Entry | None:
        rivals = [
            entry
            for entry in found
            if entry.method.optimizer in kind and ranks in (None, entry.group.ranks)
        ]
        return max(rivals, key=lambda entry: entry.mean, default=None)

    return [
        Verdict(entry, best(AVERAGING, None), best(LOCAL, entry.group.ranks), data.margin)
        for entry in found
        if entry.method.optimizer == "apts"
    ]


def rank_losses(data: DataSet, found: Sequence[Entry]) -> list[str]:
    """A sentence an untuned method: what the most ranks lose against the fewest."""
    told = []
    least, most = min(data.ranks), max(data.ranks)
    for method in data.methods:
        own = {entry.group.ranks: entry for entry in found if entry.method == method}
        if method.optimizer != "apts" or least == most or not {least, most} <= set(own):
            continue
        lost = own[least].mean - own[most].mean
        text = f"From N = {least} to {most} {method.name} loses {lost:.2f} points"
        if data.rank_loss is not None:
            text += f" (goal: at most {data.rank_loss:g}): {_met(lost <= data.rank_loss + 1e-9)}"
        told.append(text + ".")
    return told


def report(out: Path, plan: Sequence[DataSet], get: Get) -> None:
    """Write compare.md and a plot a set from the runs that are done; nothing where none is."""
    sections, rows = [], []
    for data in plan:
        found = entries(data, get)
        if not found:
            continue
        path = out / f"compare_{data.name}.png"
        plot(path, data, [(entry.method, entry.group.ranks, entry.rows) for entry in found])
        sections += _section(data, found, get, path.name)
        rows += [row for entry in found for row in entry.rows if "versions" in row]
    if not rows:
        return
    parts = [
        "# Against tuned baselines, at equal work",
        "The default method, no flag set, against gradient averaging (Adam, SGD) and local methods "
        "(local SGD, DiLoCo) whose learning rate and batch were searched: the best by the final "
        "test accuracy itself, which favours them. Test accuracy after the last epoch of work, "
        "mean [least, largest] over seeds. Work: gradient evaluations a sample, a forward one "
        "counts a third. Messages: of the length of the parameters, in a run; MB: payload of all "
        "messages that a rank hands over. Adam and SGD ran on one rank with the joined batch; N "
        "ranks take the same steps, with a message each. Batch: samples of all ranks together. "
        "Worst rate: accuracy at the worst learning rate of the grid with the same batch, first "
        "seed: what a wrong choice costs. The baselines have a constant learning rate and the last "
        "iterate evaluated. The default evaluates its average of the iterates, which is a part of "
        "it; a schedule or an average of their own would help the baselines too.",
        f"Goals: accuracy within the set's margin of the better of Adam and SGD; messages at most "
        f"1/{FEWER} of its (nearly: 1/{LEAST_FEWER}); accuracy not below the better local method.",
        *sections,
        f"A run, here the last: `mpirun -n N python -m apts_mpi {rows[-1]['command']} --data DIR`.",
        tables.setup(rows) + " Repeat: `python -m benchmarks compare --fresh`.",
    ]
    tables.write(out / "compare.md", *parts)


def _section(data: DataSet, found: list[Entry], get: Get, image: str) -> list[str]:
    judged = verdicts(data, found)
    hidden = "-".join(map(str, data.hidden))
    seeds = ", ".join(map(str, data.seeds))
    parts = [
        f"## {data.name}",
        f"Hidden layers {hidden}, {data.epochs:g} epochs of work, seeds {seeds}; margin "
        f"{data.margin:g} points. {_progress(data, get)}",
        tables.markdown(["method", "N", *RESULT, *TUNED], map(_line, found), text=1),
    ]
    if judged:
        parts += [
            "The default against the best of each kind: difference in accuracy, in points, and "
            "messages as a part of theirs.",
            tables.markdown(VERDICT, [verdict.cells() for verdict in judged], text=1),
        ]
    return [*parts, *rank_losses(data, found), f"![accuracy, {data.name}]({image})"]


def _line(entry: Entry) -> list[Any]:
    tuned, ranks = entry.tuned, str(entry.group.ranks)
    line = [entry.method.name, "any" if entry.method.optimizer in AVERAGING else ranks]
    if entry.percents:
        line += [tables.span(entry.percents, ".2f"), str(len(entry.rows))]
        line += [f"{entry.average('epochs'):.1f}", f"{entry.average('vector_allreduces'):.0f}"]
        line.append(f"{entry.average('bytes_allreduced') / 1e6:.1f}")
    else:
        line += ["diverged", str(len(entry.rows)), "-", "-", "-"]
    if entry.worst is None:
        return [*line, "-", "-", "-", "-"]
    worst = "diverged" if entry.worst < 0 else f"{entry.worst:.2f}"
    return [*line, f"{tuned['lr']:g}", tuned["batch"], tuned.get("local_steps", "-"), worst]


def _progress(data: DataSet, get: Get) -> str:
    """How many runs there are, which diverged, and whether any are missing."""
    wanted = [settings for group in groups(data) for settings in group.wanted(get)]
    done = [row for row in map(get, wanted) if row is not None]
    lost = sum(accuracy(row) < 0 for row in done)
    text = f"{len(done)} runs, of which {lost} diverged."
    searching = any(group.finalists(get) is None for group in groups(data))
    if searching or len(done) < len(wanted):
        text += f" **Not complete:** {len(wanted) - len(done)} runs are missing"
        text += ", then those of the finalists." if searching else "."
    return text
