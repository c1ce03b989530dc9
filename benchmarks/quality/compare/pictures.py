"""Pictures over all tasks of ``compare``: bytes, ranks, and where ours is behind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.harness import drawing as draw
from benchmarks.harness import figures, names
from benchmarks.harness.sections import Finding, Picture
from benchmarks.harness.units import digits, times
from benchmarks.quality.compare.entries import Entry
from benchmarks.quality.compare.tasks import Task, ahead

NEAR = 0.05  # points of accuracy or percent of a loss that mean nothing


def judged(found: Sequence[Task]) -> list[tuple[Task, Entry, Entry, float]]:
    """Tasks with ours at the ranks of the others, the best other, and by how much ours is ahead."""
    every = []
    for task in found:
        own = task.ours.get(task.ranks)
        if own is not None and task.rivals:
            every.append((task, own, task.rivals[0], ahead(own, task.rivals[0])))
    return sorted(every, key=lambda one: one[-1])


def difference(own: Entry, value: float) -> str:
    """``1.46 points``, ``3.4 percent of the loss``; without a sign."""
    return f"{digits(abs(value))} {'points' if own.measure.sign > 0 else 'percent of the loss'}"


def lost(found: Sequence[Task]) -> Picture | None:
    """Ours against the best other on every task; None where there is nothing to compare."""
    every = judged(found)
    if not every:
        return None
    task, own, other, value = every[0]
    text = "Ours is behind the best tuned method on none of the tasks."
    if value < 0:
        behind = sum(one[-1] < -NEAR for one in every)
        text = (
            f"Behind the best tuned method on {behind} of {len(every)} tasks, most on "
            f"{task.name}: {difference(own, value)} ({names.shown(other.method)}, "
            f"N = {task.ranks})."
        )

    def on(ax: Any) -> None:
        for y, (_, _, _, gain) in enumerate(every):
            good = gain >= -NEAR
            ax.barh(
                *(y, gain),
                **{"color": figures.BLUE if good else figures.RED, "height": 0.5},
                **{"hatch": "" if good else "///", "edgecolor": draw.PAPER, "lw": 0.4},
            )
            side = {"ha": "left" if gain >= 0 else "right", "va": "center", "size": 8}
            ax.text(gain, y, f" {gain:+.2f} ", **side)
        low, high = (f([one[-1] for one in every] + [0.0]) for f in (min, max))
        ax.set_xlim(low - 0.25 * (high - low) - 0.1, high + 0.25 * (high - low) + 0.1)
        ax.axvline(0, color=draw.INK, lw=0.8)
        labels = [
            f"{task.name}\nN = {task.ranks}, best: {names.shown(best.method)}"
            for task, _, best, _ in every
        ]
        ax.set_yticks(range(len(every)), labels, size=7.5)
        ax.invert_yaxis()
        ax.grid(visible=False, axis="y")
        ax.set_xlabel("points ahead (loss: percent)")

    return Picture(
        "where-it-loses",
        "Where it loses: final figures at equal work",
        "Ours less the best of all tuned methods, by the figure itself: points of accuracy, or "
        "percent of the loss. Hatched, to the left: ours is behind.",
        "Bar chart, a bar per task: ours against the best tuned method. "
        + "; ".join(f"{t.name}: {g:+.2f} against {names.shown(o.method)}" for t, _, o, g in every)
        + ".",
        draw.svg(on, height=max(2.6, 1.1 + 0.46 * len(every))),
        (Finding(text),),
    )


def bytes_sent(task: Task) -> Picture | None:
    """Final figures against payload of one task; None without ours or others that average."""
    own, averaging = task.ours.get(task.ranks), task.averaging
    if own is None or averaging is None:
        return None
    every = [own, *reversed(task.rivals)]
    fewer = averaging.average("bytes_allreduced") / max(own.average("bytes_allreduced"), 1.0)
    gain = ahead(own, averaging)
    text = (
        f"{task.name}: {_part(fewer)} the bytes of the best gradient averaging "
        f"({names.shown(averaging.method)}), {difference(own, gain)} "
        f"{'ahead of' if gain >= 0 else 'behind'} it."
    )
    measure = own.measure

    def on(ax: Any) -> None:
        looks, handles = draw.styles([entry.method for entry in every]), []
        for entry in every:
            look, sent = looks[entry.method], entry.average("bytes_allreduced") / 1e6
            ends = (min(entry.figures), max(entry.figures))
            ax.plot([sent, sent], ends, color=look.colour, lw=1.2)
            mark: dict[str, Any] = {"marker": look.marker, "ms": 9 if entry is own else 6.5}
            ax.plot(sent, entry.mean, **mark, color=look.colour, mec=draw.INK, mew=0.5)
            handles.append(draw.handle(look, entry.method))
        ax.set_xscale("log")
        draw.log_axis(ax.xaxis)
        ax.set_xlabel("payload per rank of the whole run, MB")
        ax.set_ylabel(f"final {measure.name}, {measure.unit}")
        draw.legend(ax, handles=handles)

    return Picture(
        "accuracy-against-bytes",
        f"{measure.name.capitalize()} against bytes: {task.name}, N = {task.ranks}, equal work",
        "Every other method at the best of its searched rates. Marks: means over seeds; lines: "
        "least to most. Towards the left fewer bytes.",
        f"Scatter plot: final {measure.name} in {measure.unit} against payload in MB. "
        + "; ".join(
            f"{names.shown(e.method)}: {e.mean:{measure.form}} with "
            f"{digits(e.average('bytes_allreduced') / 1e6)} MB"
            for e in every
        )
        + ".",
        draw.svg(on, height=3.9),
        (Finding(text),),
    )


def _part(fewer: float) -> str:
    return f"1/{times(fewer)} of" if fewer >= 1 else f"{times(1 / max(fewer, 1e-9))} times"


def against_ranks(found: Sequence[Task]) -> Picture | None:
    """Ours by ranks on every task that has several; None where none has."""
    several = [task for task in found if len(task.ours) > 1]
    if not several:
        return None
    by = {task.label: {n: ahead(e, first(task)) for n, e in task.ours.items()} for task in several}
    name, own = min(by.items(), key=lambda one: one[1][max(one[1])])
    task = next(task for task in several if task.label == name)
    most = max(own)
    value = own[most]
    text = (
        f"From N = {min(own)} to {most} ours loses at most "
        f"{difference(task.ours[most], min(value, 0.0))} ({name})."
    )

    def on(ax: Any) -> None:
        for number, (label, own) in enumerate(by.items()):
            look = draw.style(label, number)
            draw.line(ax, list(own), list(own.values()), look, label)
        ax.axhline(0, color=draw.INK, lw=0.7, ls="--")
        draw.ranks_axis(ax, [n for own in by.values() for n in own])
        ax.set_ylabel("change, points (loss: percent)")
        draw.legend(ax, columns=2)

    return Picture(
        "accuracy-against-ranks",
        "Accuracy against the number of ranks, at fixed work",
        "The default method, the same epochs at every N, against its fewest ranks: points of "
        "accuracy, or percent of the loss; lines join what was measured.",
        "Line plot: change of the final figure against number of ranks. "
        + "; ".join(
            f"{label}: " + ", ".join(f"{g:+.2f} at N = {n}" for n, g in own.items())
            for label, own in by.items()
        )
        + ".",
        draw.svg(on, height=4.0),
        (Finding(text, key=True),),
    )


def first(task: Task) -> Entry:
    """Ours at the fewest ranks."""
    return task.ours[min(task.ours)]
