"""What a plan of ``compare`` aims at, and whether it is met."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.harness import names, tables
from benchmarks.harness.runs import AVERAGING
from benchmarks.quality.compare.entries import Entry
from benchmarks.quality.compare.plan import LOCAL, DataSet

LEAST_FEWER = 10  # times fewer bytes than gradient averaging that are nearly enough


@dataclass(frozen=True)
class Verdict:
    """An untuned method at a number of ranks against the best of the tuned ones.

    Attributes:
        own: the method. averaging, local: the best by accuracy of gradient averaging, and of the
            local methods at as many ranks, if any has been run.
    """

    data: DataSet
    own: Entry
    averaging: Entry | None
    local: Entry | None

    def goals(self) -> dict[str, str]:
        """What was aimed at: met, missed, and for bytes also nearly."""
        goals, data = {}, self.data
        if self.averaging is not None:
            good = self.own.behind(self.averaging) <= data.margin + 1e-9
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
        line = [names.shown(self.own.method), str(self.own.ranks)]
        for other in (self.averaging, self.local):
            if other is None:
                line += ["-", "-", "-"]
                continue
            good = self.own.figures and other.figures
            form = "+" + self.own.measure.form
            difference = f"{self.own.mean - other.mean:{form}}" if good else "diverged"
            line += [
                names.shown(other.method),
                difference,
                f"1/{fewer(other, self.own):.1f}" if good else "-",
            ]
        return [*line, ", ".join(f"{name} {goal}" for name, goal in self.goals().items())]


def fewer(baseline: Entry, own: Entry) -> float:
    """How many times the bytes of ours the baseline sends; 0 where either diverged."""
    if not (baseline.figures and own.figures):
        return 0.0
    name = "bytes_allreduced"
    return baseline.average(name) / max(own.average(name), 1.0)


def verdicts(data: DataSet, found: Sequence[Entry]) -> list[Verdict]:
    """Every untuned method and number of ranks against what it competes with."""

    def rival(kind: tuple[str, ...], ranks: int | None) -> Entry | None:
        rivals = [
            entry
            for entry in found
            if entry.settings["optimizer"] in kind and ranks in (None, entry.ranks)
        ]
        return max(rivals, key=lambda entry: entry.score, default=None)

    return [
        Verdict(data, entry, rival(AVERAGING, None), rival(LOCAL, entry.ranks))
        for entry in found
        if entry.settings["optimizer"] == "apts"
    ]


def rank_losses(data: DataSet, found: Sequence[Entry]) -> list[str]:
    """A sentence per untuned method: what the most ranks lose against the fewest."""
    sentences = []
    least, most = min(data.ranks), max(data.ranks)
    for method in data.methods:
        own = {entry.ranks: entry for entry in found if entry.method == method.name}
        if method.optimizer != "apts" or least == most or not {least, most} <= set(own):
            continue
        lost, form = own[most].behind(own[least]), data.measure.form
        text = f"From N = {least} to {most} {names.shown(method.name)} loses "
        text += f"{lost:{form}} {data.points}"
        if data.rank_loss is not None:
            good = tables.met(lost <= data.rank_loss + 1e-9)
            text += f" (goal: at most {data.rank_loss:g}): {good}"
        sentences.append(text + ".")
    return sentences
