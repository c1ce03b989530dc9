"""Tables and verdicts of ``compare``."""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apts_mpi.method.options import LOCAL
from benchmarks.harness import tables
from benchmarks.harness.results import Row, finder
from benchmarks.harness.runs import AVERAGING
from benchmarks.harness.sections import Image, Part, Section, Table
from benchmarks.quality.compare.entries import Entry, entries
from benchmarks.quality.compare.figure import plot
from benchmarks.quality.compare.plan import DataSet, Get, groups, read_plan

LEAST_FEWER = 10  # times fewer bytes than gradient averaging that are nearly enough
RESULT = ["seeds", "work, epochs", "messages", "MB"]
TUNED = ["rate", "batch", "local steps"]


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
        """What was aimed at: met, missed, and for bytes also nearly."""
        goals = {}
        if self.averaging is not None:
            lost, data = self.own.behind(self.averaging), self.own.group.data
            good = lost <= self.margin + 1e-9
            if data.least is not None:
                good = good and self.own.mean >= data.least
            goals[data.measured] = tables.met(good)
            times = fewer(self.averaging, self.own)
            nearly = "nearly" if times >= LEAST_FEWER else "missed"
            goals["bytes"] = "met" if times >= data.fewer else nearly
        if self.local is not None:
            goals["local"] = tables.met(self.own.behind(self.local) <= 0)
        return goals

    def cells(self) -> list[str]:
        """Its line of the table."""
        line = [self.own.method.name, str(self.own.group.ranks)]
        for other in (self.averaging, self.local):
            if other is None:
                line += ["-", "-", "-"]
                continue
            line.append(other.method.name)
            good = self.own.figures and other.figures
            form = "+" + self.own.measure.form
            line.append(f"{self.own.mean - other.mean:{form}}" if good else "diverged")
            line.append(f"1/{fewer(other, self.own):.1f}" if good else "-")
        return [*line, ", ".join(f"{name} {goal}" for name, goal in self.goals().items())]


def fewer(baseline: Entry, own: Entry) -> float:
    """How many times the bytes of ours the baseline sends; 0 where either diverged."""
    if not (baseline.figures and own.figures):
        return 0.0
    name = "bytes_allreduced"
    return baseline.average(name) / max(own.average(name), 1.0)


def verdicts(data: DataSet, found: Sequence[Entry]) -> list[Verdict]:
    """Every untuned method and number of ranks against what it competes with."""

    def best(kind: tuple[str, ...], ranks: int | None) -> Entry | None:
        rivals = [
            entry
            for entry in found
            if entry.method.optimizer in kind and ranks in (None, entry.group.ranks)
        ]
        return max(rivals, key=lambda entry: entry.score, default=None)

    return [
        Verdict(entry, best(AVERAGING, None), best(LOCAL, entry.group.ranks), data.margin)
        for entry in found
        if entry.method.optimizer == "apts"
    ]


def rank_losses(data: DataSet, found: Sequence[Entry]) -> list[str]:
    """A sentence per untuned method: what the most ranks lose against the fewest."""
    sentences = []
    least, most = min(data.ranks), max(data.ranks)
    for method in data.methods:
        own = {entry.group.ranks: entry for entry in found if entry.method == method}
        if method.optimizer != "apts" or least == most or not {least, most} <= set(own):
            continue
        lost = own[most].behind(own[least])
        unit = "points" if data.measured == "accuracy" else data.measure.unit
        form = data.measure.form
        text = f"From N = {least} to {most} {method.name} loses {lost:{form}} {unit}"
        if data.rank_loss is not None:
            text += (
                f" (goal: at most {data.rank_loss:g}): {tables.met(lost <= data.rank_loss + 1e-9)}"
            )
        sentences.append(text + ".")
    return sentences


def section(rows: Sequence[Row], options: Namespace) -> Section | None:
    """What the runs of a plan say; None where there are none of it."""
    get, name = finder(rows), options.config.stem
    below, rows = [], []
    for data in read_plan(options.config):
        found = entries(data, get)
        if found:
            below.append(_section(data, found, get, f"{name}_{data.name}.png"))
            rows += [row for entry in found for row in entry.rows if "versions" in row]
    if not rows:
        return None
    lead: list[Part] = [
        "The default method, no flag set but those named, against methods that average gradients "
        "and local ones (local SGD, DiLoCo, MuLoCo) whose learning rate and batch were searched: "
        "the best by the final test accuracy or loss itself, which favours them. Figures after the "
        "last epoch of work, mean [least, largest] over seeds. Work: gradient evaluations per "
        "sample, a forward one counts a third. Messages: of the length of the parameters, in a "
        "run; MB: payload of all messages handed over per rank. Gradient averaging ran on one "
        "rank with the joined batch; N ranks take the same steps, with a message each. Batch: "
        "samples of all ranks together. Worst rate: the figure at the worst learning rate of the "
        "grid with the same batch, first seed: what a wrong choice costs. The baselines have the "
        f"last iterate evaluated and a constant learning rate, except: {_schedules(options)}. "
        "Schedule-Free and the default evaluate their average of the iterates, a part of them.",
        "Goals: accuracy or loss within the set's margin of the best that averages gradients; "
        "bytes "
        f"at most the set's part of its (nearly: 1/{LEAST_FEWER}); not worse than the better local "
        "method.",
    ]
    foot: list[Part] = [
        f"A run, here the last: `mpirun -n N python -m apts_mpi {rows[-1]['command']} --data DIR`.",
        tables.setup(rows) + f" Repeat: `{_command(name)} --fresh`.",
    ]
    return Section("Against tuned baselines, at equal work", lead, below, foot)


def _schedules(options: Namespace) -> str:
    """What the tuned methods are given, each once."""
    methods = [method for data in read_plan(options.config) for method in data.methods]
    given = {m.name: " ".join(m.arguments) for m in methods if m.learning_rates and m.arguments}
    return "; ".join(f"{name} `{flags}`" for name, flags in given.items()) or "none"


def draw(rows: Sequence[Row], options: Namespace, out: Path) -> None:
    """A plot per set."""
    for data in read_plan(options.config):
        found = entries(data, finder(rows))
        if found:
            shown = [(entry.method, entry.group.ranks, entry.rows) for entry in found]
            plot(out / f"{options.config.stem}_{data.name}.png", data, shown)


def _command(name: str) -> str:
    plan = "" if name == "compare" else f" --config benchmarks/{name}.toml"
    return f"python -m benchmarks compare{plan}"


def _section(data: DataSet, found: list[Entry], get: Get, image: str) -> Section:
    judged = verdicts(data, found)
    described = data.described[:1].upper() + data.described[1:]
    seeds = ", ".join(map(str, data.seeds))
    unit = "points" if data.measured == "accuracy" else data.measure.unit
    least = f", and at least {data.least:g}" if data.least is not None else ""
    figure = f"{data.measure.name}, {data.measure.unit}"
    tuned = [*TUNED, f"worst rate, {data.measure.unit}"]
    parts: list[Part] = [
        f"{described}, {data.epochs:g} epochs of work, seeds {seeds}; margin {data.margin:g} "
        f"{unit}{least}; bytes at most 1/{data.fewer}. {_flags(data)}"
        + ("N subdomains are computed one after another on one rank. " if data.simulated else "")
        + _progress(data, get),
        Table("", ["method", "N", figure, *RESULT, *tuned], list(map(_line, found)), text=1),
    ]
    if judged:
        parts += [
            f"The default against the best of each kind: difference in {data.measured}, in "
            f"{unit}, and bytes as a part of theirs.",
            Table(
                "",
                [
                    *("method", "N", "averaging", data.measured, "bytes"),
                    *("local", data.measured, "bytes", "goals"),
                ],
                [verdict.cells() for verdict in judged],
                text=1,
            ),
        ]
    parts += [*rank_losses(data, found), Image(f"{data.measure.name}, {data.name}", image)]
    return Section(data.name, parts)


def _flags(data: DataSet) -> str:
    """What the untuned methods are given on this set."""
    untuned = [method for method in data.methods if not method.learning_rates]
    given = [(method.name, " ".join(method.arguments)) for method in untuned]
    return "".join(f"{name} has the flags `{flags}`. " for name, flags in given if flags)


def _line(entry: Entry) -> list[Any]:
    tuned, ranks = entry.tuned, str(entry.group.ranks)
    line = [entry.method.name, "any" if entry.method.optimizer in AVERAGING else ranks]
    form = entry.measure.form
    if entry.figures:
        line += [tables.span(entry.figures, form), str(len(entry.rows))]
        line += [f"{entry.average('epochs'):.1f}", f"{entry.average('vector_allreduces'):.0f}"]
        line.append(f"{entry.average('bytes_allreduced') / 1e6:.1f}")
    else:
        line += ["diverged", str(len(entry.rows)), "-", "-", "-"]
    if entry.worst is None:
        return [*line, "-", "-", "-", "-"]
    worst = f"{entry.worst:{form}}" if math.isfinite(entry.worst) else "diverged"
    return [*line, f"{tuned['lr']:g}", tuned["batch"], tuned.get("local_steps", "-"), worst]


def _progress(data: DataSet, get: Get) -> str:
    """How many runs there are, which diverged, and whether any are missing."""
    wanted = [settings for group in groups(data) for settings in group.wanted(get)]
    done = [row for row in map(get, wanted) if row is not None]
    lost = sum(data.measure.shown(row) is None for row in done)
    text = f"{len(done)} runs, of which {lost} diverged."
    searching = any(group.finalists(get) is None for group in groups(data))
    if searching or len(done) < len(wanted):
        text += f" **Not complete:** {len(wanted) - len(done)} runs are missing"
        text += ", then those of the finalists." if searching else "."
    return text
