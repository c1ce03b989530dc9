"""Table and verdicts of ``sensitivity``."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

from benchmarks.harness import tables
from benchmarks.harness.results import Row, finder
from benchmarks.harness.sections import Image, Markdown, Part, Section, Table, bullets
from benchmarks.quality.sensitivity.figure import plot
from benchmarks.quality.sensitivity.plan import Family, Plan, Sweep, read_plan, shown, wanted
from benchmarks.quality.sensitivity.values import Swept, Value, swept

LOSS = itemgetter(0)
HEADER = ["setting", "N", "values", "reached", "spread", "worst loss", "at"]


@dataclass(frozen=True)
class Verdict:
    """Whether values of some parameters cost little against the default.

    Attributes:
        what: is judged. limit: what a value may cost, and in which unit. losses: by parameter and
            value.
        missing: values that have not been run.
    """

    what: str
    limit: float
    unit: str
    losses: list[tuple[float, Swept, Value]]
    missing: int

    @property
    def worst(self) -> tuple[float, Swept, Value] | None:
        """The largest loss."""
        return max(self.losses, key=LOSS, default=None)

    @property
    def over(self) -> list[tuple[float, Swept, Value]]:
        """What costs more than it may, the worst first."""
        found = [item for item in self.losses if item[0] > self.limit + 1e-9]
        return sorted(found, key=LOSS, reverse=True)

    def sentence(self) -> str:
        """What came out."""
        if self.worst is None:
            return f"{self.what}: {'not run yet' if self.missing else 'none in this plan'}."
        lines = "missed" if self.over else "met"
        text = f"{self.what} costs more than {self.limit:g} {self.unit}: {lines}"
        if self.missing:
            text += f" so far, {self.missing} values are missing"
        items = self.over or [self.worst]
        listed = "; ".join(_named(*item) for item in items)
        return f"{text}. {'Those that do' if self.over else 'The worst'}: {listed}."


def _named(loss: float, found: Swept, value: Value) -> str:
    more = ", diverged" if value.diverged else ""
    return (
        f"{found.sweep.label} {value.point.text} at N = {found.ranks} ({loss:{found.form}}{more})"
    )


def verdicts(plan: Plan, found: Sequence[Swept]) -> list[Verdict]:
    """One per family that has a goal, then one per parameter that has its own."""
    judged = []
    for family in plan.families:
        own = [item for item in found if item.sweep.family == family]
        if family.most_lost is not None:
            what = f"No single choice of {family.name}"
            judged.append(_verdict(what, family.most_lost, own, family))
        if family.near_lost is not None:
            what = f"No choice of {family.name} within a factor of two of the default"
            judged.append(_verdict(what, family.near_lost, own, family, near=True))
        for name, limit in family.limits.items():
            of_it = [item for item in own if item.sweep.field == name]
            sweep = Sweep(family, name)
            judged.append(_verdict(f"No {sweep.label} from {sweep.range}", limit, of_it, family))
    return judged


def _verdict(
    what: str, limit: float, found: Sequence[Swept], family: Family, *, near: bool = False
) -> Verdict:
    def judged(value: Value) -> bool:
        return value.point.near or not near

    missing = sum(value.loss is None for item in found for value in item.values if judged(value))
    losses = [loss for item in found for loss in item.losses if judged(loss[2])]
    return Verdict(what, limit, family.measure.points, losses, missing)


def spreads(found: Sequence[Swept]) -> list[str]:
    """A sentence per parameter with a goal of its own, or of a family without one."""
    lines = []
    for item in found:
        family = item.sweep.family
        if family.most_lost is not None and item.sweep.field not in family.limits:
            continue
        if item.ends is not None:
            least, most = item.ends
            text = f"{item.sweep.label} {item.sweep.range}"
            text += f", N = {item.ranks}" if family.optimizer == "apts" else ""
            measure, form = family.measure, item.form
            text += f": {least.mean:{form}} to {most.mean:{form}} {measure.unit}, "
            text += f"{item.spread:{form}} {measure.points}"
            lines.append(text)
    return lines


def section(rows: list[Row], options: Namespace) -> Section | None:
    """What the runs of a plan say; None where there are none of it."""
    plan, get = read_plan(options.config), finder(rows)
    seeds = _seeds(plan, options)
    needed = wanted(plan.sweeps(), seeds)
    rows = [row for row in map(get, needed) if row is not None]
    good = [row for row in rows if "versions" in row]
    if not good:
        return None
    found = swept(plan, seeds, get)
    lost = sum(row["test_accuracy"] is None for row in rows)
    # The plan's own seeds are what makes it complete.
    missing = sum(get(settings) is None for settings in wanted(plan.sweeps(), plan.seeds))
    parts: list[Part] = [
        "One setting changed at a time, all others at their default, equal work. Test accuracy at "
        "the end in percent, of text the test loss in nats, mean over seeds "
        f"{', '.join(map(str, seeds))}, in the order of the values; the default in bold. Worst "
        "loss: what a value costs against the default with the same seeds, and the value; negative "
        "where every value is better. A run that diverged counts as chance.",
        bullets([_described(family) for family in plan.families]),
        f"{len(rows)} runs, of which {lost} diverged."
        + (f" **Not complete:** {missing} runs are missing." if missing else ""),
        bullets([verdict.sentence() for verdict in verdicts(plan, found)]),
    ]
    if lines := spreads(found):
        parts += ["Spread over the range:", bullets(lines)]
    parts += [
        Table("", HEADER, [_line(item) for item in found], text=1),
        Image("what is reached by setting", "sensitivity.png"),
        "Bars: from the lowest to the highest value over a setting's range, with the settings at "
        "both ends; dashed: the default. Bars that leave the panel have their end written.",
        tables.foot(good, "sensitivity", run=f"{good[-1]['command']} --data DIR"),
    ]
    return Section("Every parameter alone", parts)


def draw(rows: list[Row], options: Namespace, out: Path) -> None:
    """The plot."""
    plan = read_plan(options.config)
    plot(out / "sensitivity.png", plan, swept(plan, _seeds(plan, options), finder(rows)))


def _seeds(plan: Plan, options: Namespace) -> list[int]:
    return sorted({*plan.seeds, *(options.seeds or ())})


def _described(family: Family) -> str:
    """A family's runs in a line."""
    sizes = [f"{name} {shown(value)}" for name, value in family.shared.items()]
    words = [family.data, family.optimizer, *sizes]
    if family.batch:
        words.append(f"batch {family.batch}, one rank (N ranks take its steps)")
    elif family.simulated:
        words.append("all subdomains on one rank")
    if "iterations" not in family.shared:
        words.append(f"{family.epochs:g} epoch{'s' * (family.epochs != 1)}")
    return f"{family.name}: {', '.join(words)}."


def _line(item: Swept) -> list[str]:
    cells = []
    for value in item.values:
        text = _cell(value, item.form)
        cells.append(f"**{text}**" if value.point.default else text)
    line = [item.sweep.label, "any" if item.sweep.family.batch else str(item.ranks)]
    line += [", ".join(value.point.text for value in item.values), Markdown(", ".join(cells))]
    if not item.losses:
        return [*line, "-", "-", "-"]
    worst, _, value = max(item.losses, key=LOSS)
    return [*line, f"{item.spread:{item.form}}", f"{worst:{item.form}}", value.point.text]


def _cell(value: Value, form: str) -> str:
    if not value.reached:
        return "-"
    if value.diverged == len(value.reached):
        return "diverged"
    mark = f" ({value.diverged} diverged)" if value.diverged else ""
    return f"{value.mean:{form}}{mark}"
