"""Section of ``compare``: accuracy against work and payload, baselines at their best."""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

from benchmarks.harness import drawing as draw
from benchmarks.harness import figures, names, tables
from benchmarks.harness.results import Row, finder
from benchmarks.harness.runs import Measure
from benchmarks.harness.sections import Finding, Image, Part, Picture, Section, Table, Text, slug
from benchmarks.harness.units import digits, times
from benchmarks.quality.compare.entries import Entry, planned
from benchmarks.quality.compare.pictures import against_ranks
from benchmarks.quality.compare.plan import DataSet, Get, groups, read_plan
from benchmarks.quality.compare.tasks import tasks
from benchmarks.quality.compare.verdicts import LEAST_FEWER, rank_losses, verdicts

TITLE = "Against tuned baselines, at equal work"
WHAT = Text(
    "The default method (apts), no flag set but those named, against averaging of gradients and "
    "local methods (local SGD, DiLoCo, MuLoCo) whose learning rate and batch were searched: the "
    "best by the final test accuracy or loss itself, which favours them. Figures after the last "
    "epoch of work, mean [least, largest] over seeds. Work: an epoch is as many sample gradients "
    "as there are samples, a forward evaluation counts a third. Messages: of the length of the "
    "parameters, in a run; MB: payload of all messages handed over per rank. Averaging of "
    "gradients ran on one rank with the joined batch; N ranks take the same steps, with a message "
    "each. "
    "Batch: samples of all ranks together. Worst rate: the figure at the worst learning rate of "
    "the grid with the same batch, first seed: what a wrong choice costs. The learning rate is "
    "constant where no flag names a schedule. The default and Schedule-Free evaluate their average "
    "of the iterates, which is a part of them, the others the last iterate."
)
GOALS = (
    "Goals: accuracy or loss within the set's margin of the best that averages gradients; bytes at "
    f"most the set's part of its (nearly: 1/{LEAST_FEWER}); not worse than the best local method."
)
AXES = {
    "epoch": ("work", "work, epochs"),
    "megabytes": ("payload", "payload per rank, MB"),
    "messages": ("messages", "messages of the parameters' length"),
}
SCORE = attrgetter("score")
_BELOW = 10.0  # points under the least final accuracy that are shown


def section(rows: Sequence[Row], options: Namespace) -> Section | None:
    """What the runs of a plan say; None where there are none of it."""
    get, name = finder(rows), options.config.stem
    whole, used = Section(TITLE, [WHAT, GOALS]), list[Row]()
    for data in read_plan(options.config):
        found = planned(data, get)
        if found:
            whole.below.append(Section(data.name, _planned(data, found, get, name)))
            used += [row for entry in found for row in entry.rows if "versions" in row]
    if not used:
        return None
    plan = "" if name == "compare" else f" --config benchmarks/{name}.toml"
    run = f"{used[-1]['command']} --data DIR"
    whole.foot.append(tables.foot(used, f"compare{plan}", run=run))
    return whole


def sections(rows: Mapping[str, list[Row]]) -> list[Section]:
    """For the page of ``report``, of the rows by kind, whatever plan they are of."""
    found = tasks(rows["compare"])
    if not found:
        return []
    drawn_ = (against_ranks(found),)
    whole = Section(TITLE, [*(one for one in drawn_ if one is not None), WHAT])
    for task in found:
        parts = [*pictures(task.entries, task.name, task.name, task.ranks), table(task.entries)]
        whole.below.append(Section(task.name, parts))
    return [whole]


def draw_png(rows: Sequence[Row], options: Namespace, out: Path) -> None:
    """A plot per set: three panels, of the methods with the ranks that the set names."""
    for data in read_plan(options.config):
        found = drawn(planned(data, finder(rows)), data.shown)
        if not found:
            continue
        figure, (axes,) = figures.panels(1, len(AXES), (11.0, 3.8), sharey=True)
        for ax, axis in zip(axes, AXES, strict=True):
            _panel(ax, found, axis)
        for ax in axes[1:]:
            ax.set_ylabel("")
        axes[0].set_title(f"{data.name}, N = {data.shown}", loc="left")
        figures.save(figure, out / f"{options.config.stem}_{data.name}.png", legend=axes[0])


def _planned(data: DataSet, found: list[Entry], get: Get, name: str) -> list[Part]:
    """Of a plan's set: what is aimed at, and whether it is met."""
    described = data.described[:1].upper() + data.described[1:]
    least = f", and at least {data.least:g}" if data.least is not None else ""
    given = [(method.name, " ".join(method.arguments)) for method in data.methods]
    parts: list[Part] = [
        f"{described}, {data.epochs:g} epochs of work, seeds {', '.join(map(str, data.seeds))}; "
        f"margin {data.margin:g} {data.points}{least}; bytes at most 1/{data.fewer}. "
        + "".join(
            f"{names.shown(method)} has the flags `{flags}`. " for method, flags in given if flags
        )
        + ("N subdomains are computed one after another on one rank. " if data.simulated else "")
        + _progress(data, get),
        *pictures(found, names.shown(data.name), f"{data.name}, {described}", data.shown),
        table(found),
    ]
    judged = [verdict.cells() for verdict in verdicts(data, found)]
    if judged:
        header = ["method", "N", "averaging", data.measured, "bytes", "local", data.measured]
        caption = f"The default against the best of each kind: difference in {data.measured}, in "
        caption += f"{data.points}, and bytes as a part of theirs"
        parts.append(Table(caption, [*header, "bytes", "goals"], judged))
    image = Image(f"{data.measure.name}, {data.name}", f"{name}_{data.name}.png")
    return [*parts, *rank_losses(data, found), image]


def drawn(found: Sequence[Entry], ranks: int) -> list[Entry]:
    """What is drawn: the methods at so many ranks, and those that are the same at all."""
    at = {True: 1, False: ranks}
    return [e for e in found if e.figures and e.ranks == at[e.averaging]]


def pictures(found: Sequence[Entry], data: str, name: str, ranks: int) -> list[Part]:
    """Against work and payload, with what is found."""
    found, made = drawn(found, ranks), list[Part]()
    if not found:
        return []
    sentences, what = findings(found, data, ranks), found[0].measure.name
    methods = ", ".join(names.shown(entry.method) for entry in found)
    for axis, own in (("epoch", sentences[:1]), ("megabytes", sentences[1:])):
        word = AXES[axis][0]

        def on(ax: Any, axis: str = axis) -> None:
            _panel(ax, found, axis)
            draw.legend(ax)

        made.append(
            Picture(
                f"accuracy-{slug(name)}-{word}",
                f"{what.capitalize()} against {word}, N = {ranks}",
                "Lines join what runs went through: mean over seeds; band: least to most. The "
                "vertical axis begins where the runs differ.",
                f"Line plot: {what} in {found[0].measure.unit} against {word} for {methods}; "
                f"{name}.",
                draw.svg(on, height=4.0),
                tuple(own),
            )
        )
    return made


def _panel(ax: Any, found: Sequence[Entry], axis: str) -> None:
    """Mean and range over seeds of every method."""
    looks = draw.styles([entry.method for entry in found])
    if axis != "epoch":
        ax.set_xscale("log")
    for entry in found:
        look, (x, values) = looks[entry.method], entry.curve(axis)
        line: dict[str, Any] = {"ls": look.dash, "marker": look.marker, "ms": 4.5, "lw": 1.3}
        line |= {"markevery": max(1, len(x) // 7), "label": names.shown(entry.method)}
        figures.band(ax, x, values, look.colour, **line)
    finals, measure = [value for entry in found for value in entry.figures], found[0].measure
    if measure.sign > 0:
        low, top = max(min(finals) - _BELOW, 0.0), max(finals)
        ax.set_ylim(low, min(top + 0.05 * (top - low) + 0.1, 100.5))
    else:
        ax.set_ylim(0.95 * min(finals), 1.3 * max(finals))
    if axis != "epoch":
        draw.log_axis(ax.xaxis)
    ax.set_xlabel(AXES[axis][1])
    ax.set_ylabel(f"{measure.name}, {measure.unit}")


def findings(found: Sequence[Entry], data: str, ranks: int) -> list[Finding]:
    """Ours against the best of the others: accuracy or loss, then messages."""

    def ends(entry: Entry) -> str:
        measure = entry.measure
        unit = measure.unit.replace("%", "percent")
        return f"{entry.mean:{measure.form}} {unit}"

    mine = [entry for entry in found if entry.settings["optimizer"] == "apts"]
    others = [entry for entry in found if entry.settings["optimizer"] != "apts"]
    own = min(mine, key=lambda entry: len(entry.method), default=None)  # the fewest flags
    if own is None or not others:
        best = max(found, key=SCORE)
        return [Finding(f"{data}: {names.shown(best.method)} ends at {ends(best)}.")]
    best, at = max(others, key=SCORE), f"{data}, N = {ranks}"
    seeds = f"{len(own.rows)} seed{'s' if len(own.rows) > 1 else ''}"
    text = (
        f"{at}: {names.shown(own.method)} ends at {ends(own)}, the best tuned other "
        f"({names.shown(best.method)}) at "
        f"{best.mean:{best.measure.form}} (means of {seeds})."
    )
    sentences = [Finding(text, key=True)]
    averaging = [entry for entry in others if entry.averaging]
    if averaging:
        best = max(averaging, key=SCORE)
        sent, theirs = own.average("vector_allreduces"), best.average("vector_allreduces")
        text = (
            f"{at}: {names.shown(own.method)} sends {sent:.0f} messages of the parameters' length, "
            f"{digits(own.average('bytes_allreduced') / 1e6)} MB per rank; "
            f"{names.shown(best.method)} {theirs:.0f}, "
            f"{digits(best.average('bytes_allreduced') / 1e6)} MB: {times(theirs / sent)} times as "
            "many messages."
        )
        sentences.append(Finding(text, key=True))
    return sentences


def table(found: Sequence[Entry]) -> Table:
    """A line per method and number of ranks."""
    measure = found[0].measure
    header = [
        *("method", "N", f"{measure.name}, {measure.unit}", "seeds", "work, epochs", "messages"),
        *("MB", "rate", "batch", "local steps", f"worst rate, {measure.unit}", "settings tried"),
        *("messages per epoch", "MB per epoch"),
    ]
    lines = [_line(entry, measure) for entry in found]
    caption = (
        "Every method at its best: means [least, largest] over seeds; a star marks a rate at the "
        "edge of those tried"
    )
    return Table(caption, header, lines)


def _line(entry: Entry, measure: Measure) -> list[str]:
    tuned = [entry.settings.get(name) for name in ("batch", "local_steps")]
    cells = [entry.rate, *("-" if x is None else str(x) for x in tuned)]
    worst = "-"
    if entry.worst is not None:
        worst = f"{entry.worst:{measure.form}}" if math.isfinite(entry.worst) else "diverged"
    line = [
        names.shown(entry.method),
        "any" if entry.averaging and entry.ranks == 1 else str(entry.ranks),
    ]
    tail = [*cells, worst, str(entry.tried)]
    if not entry.figures:
        return [*line, "diverged", str(len(entry.rows)), "-", "-", "-", *tail, "-", "-"]
    messages, sent = entry.average("vector_allreduces"), entry.average("bytes_allreduced") / 1e6
    return [
        *(*line, tables.span(entry.figures, measure.form), str(len(entry.rows))),
        *(f"{entry.work:.1f}", f"{messages:.0f}", digits(sent, 1), *tail),
        *(digits(messages / entry.work), digits(sent / entry.work)),
    ]


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
