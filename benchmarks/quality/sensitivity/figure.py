"""Tornado plot of ``sensitivity``: from the lowest to the highest value reached by setting."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import figures
from benchmarks.quality.sensitivity.plan import Plan
from benchmarks.quality.sensitivity.values import Swept, Value

SHOWN = {"accuracy": 2.0, "loss": 0.1}  # beyond the worst default that the panels reach
COLOURS = (figures.BLUE, figures.SKY)  # of the families of the method
BASELINE = figures.ORANGE


def order(plan: Plan, found: Sequence[Swept]) -> list[Swept]:
    """From the top: families in turn, in each the widest first, baselines below."""

    def place(item: Swept) -> tuple[bool, int, float, str]:
        family = item.sweep.family
        return family.batch > 0, plan.families.index(family), -item.spread, item.sweep.label

    return sorted((item for item in found if item.ends is not None), key=place)


def panels(plan: Plan, found: Sequence[Swept]) -> list[tuple[str, list[Swept]]]:
    """The title and the bars of each: a data set and a number of subdomains.

    Baselines, which have one for all, are in each of their data set.
    """
    shown = []
    for data in dict.fromkeys(family.data for family in plan.families):
        items = [item for item in order(plan, found) if item.sweep.family.data == data]
        numbers = {item.ranks for item in items if not item.sweep.family.batch}
        for ranks in sorted(numbers):
            bars = [item for item in items if item.sweep.family.batch or item.ranks == ranks]
            shown.append((f"{data}, N = {ranks}", bars))
    return shown


def plot(path: Path, plan: Plan, found: Sequence[Swept]) -> None:
    """One panel below the other."""
    shown = panels(plan, found)
    if not shown:
        return
    heights = [len(bars) for _, bars in shown]
    size = (7.2, sum(0.25 * height + 0.75 for height in heights))
    ratios = {"height_ratios": [height + 1 for height in heights]}
    figure, axes = figures.panels(len(shown), 1, size, gridspec_kw=ratios)
    for ax, (title, bars) in zip(axes[:, 0], shown, strict=True):
        _panel(ax, title, bars, plan)
    figures.save(figure, path)


def _panel(ax: Any, title: str, bars: Sequence[Swept], plan: Plan) -> None:
    family = bars[0].sweep.family
    measure, own = family.measure, [item for item in bars if not item.sweep.family.batch]
    ends = [value.mean for item in bars for value in item.ends or ()]
    defaults = [item.default.mean for item in own or bars if item.default.reached] or ends
    if measure.sign > 0:
        low, high = min(defaults) - SHOWN[family.measured], max(ends)
    else:
        low, high = min(ends), max(defaults) + SHOWN[family.measured]
    ax.set_xlim(low - 0.1 * (high - low), high + 0.12 * (high - low))
    for y, item in enumerate(reversed(bars)):
        _bar(ax, y, item, plan, (low, high))
    ax.set_title(title, loc="left")
    ax.set_xlabel(f"{measure.name}, {measure.unit}")
    ax.grid(axis="y", visible=False)
    ax.set_yticks(range(len(bars)), [item.sweep.label for item in reversed(bars)])
    ax.set_ylim(-0.6, len(bars) - 0.4)


def _bar(ax: Any, y: int, item: Swept, plan: Plan, shown: tuple[float, float]) -> None:
    """A setting's bar, with its values at both ends and the default across."""
    family, (low, high) = item.sweep.family, shown
    colour = BASELINE if family.batch else COLOURS[plan.families.index(family) % len(COLOURS)]
    assert item.ends is not None
    least, most = item.ends
    start, stop = max(least.mean, low), min(most.mean, high)
    ax.barh(y, stop - start, left=start, height=0.62, color=colour)
    _end(ax, (start, y), least, item.form, out=least.mean < low, side=-1)
    _end(ax, (stop, y), most, item.form, out=most.mean > high, side=1)
    if item.default.reached:
        mean = item.default.mean
        ax.plot([mean, mean], [y - 0.5, y + 0.5], color=figures.BLACK, ls="--", lw=1)


def _end(
    ax: Any, place: tuple[float, int], value: Value, form: str, *, out: bool, side: int
) -> None:
    """The setting at an end of a bar, the left (-1) or the right one (1).

    Of one that is outside the panel with what it reached, within the bar.
    """
    text = value.point.text
    if out:
        reached = "diverged" if value.diverged else f"{value.mean:{form}}"
        text = f"← {reached} at {text}" if side < 0 else f"{reached} at {text} →"
    away = -side if out else side
    look = {"ha": "left" if away > 0 else "right", "va": "center", "fontsize": 7}
    ax.annotate(text, place, (3 * away, 0), textcoords="offset points", **look)
