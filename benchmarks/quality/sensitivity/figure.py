"""Tornado plot of ``sensitivity``: from the lowest to the highest accuracy by parameter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import figures
from benchmarks.quality.sensitivity.plan import Plan
from benchmarks.quality.sensitivity.values import Swept, Value

SHOWN = 2.0  # points below the lowest default that the panels reach
COLOURS = (figures.BLUE, figures.SKY)  # of the families of the method
BASELINE = figures.ORANGE


def order(plan: Plan, found: Sequence[Swept]) -> list[str]:
    """Labels from the top: families in turn, in each the widest first, baselines below."""
    widest: dict[str, float] = {}
    for item in found:
        if item.ends is not None:
            label = item.sweep.label
            widest[label] = max(widest.get(label, 0.0), item.spread)
    families = {item.sweep.label: item.sweep.family for item in found}

    def place(label: str) -> tuple[bool, int, float, str]:
        family = families[label]
        return family.batch > 0, plan.families.index(family), -widest[label], label

    return sorted(widest, key=place)


def plot(path: Path, plan: Plan, found: Sequence[Swept]) -> None:
    """A panel per number of ranks; baselines, which have one for all, in each."""
    labels = order(plan, found)
    if not labels:
        return
    shown = [(item, item.ends) for item in found if item.ends is not None]
    own = [pair for pair in shown if not pair[0].sweep.family.batch] or shown
    ranks = sorted({item.ranks for item, _ in own})
    defaults = [item.default.mean for item, _ in own if item.default.percents]
    low = min(defaults or [least.mean for _, (least, _) in own]) - SHOWN
    high = max(most.mean for _, (_, most) in shown)
    size = (4.6 * len(ranks) + 0.8, 0.27 * len(labels) + 1.2)
    figure, axes = figures.panels(1, len(ranks), size, sharex=True, sharey=True)
    for ax, number in zip(axes[0], ranks, strict=True):
        ax.set_xlim(low, high + 0.12 * (high - low))
        for item, ends in shown:
            if item.ranks == number or item.sweep.family.batch:
                _bar(ax, len(labels) - 1 - labels.index(item.sweep.label), item, ends, plan, low)
        ax.set_title(f"N = {number}", loc="left")
        ax.set_xlabel("test accuracy, %")
        ax.grid(axis="y", visible=False)
    axes[0][0].set_yticks(range(len(labels)), labels[::-1])
    axes[0][0].set_ylim(-0.6, len(labels) - 0.4)
    figures.save(figure, path)


def _bar(ax: Any, y: int, item: Swept, ends: tuple[Value, Value], plan: Plan, low: float) -> None:
    """A parameter's bar, with its values at both ends and the default across."""
    family = item.sweep.family
    colour = BASELINE if family.batch else COLOURS[plan.families.index(family) % len(COLOURS)]
    least, most = ends
    start, small = max(least.mean, low), {"va": "center", "fontsize": 7}
    ax.barh(y, most.mean - start, left=start, height=0.62, color=colour)
    if least.mean < low:
        value = "diverged" if least.diverged else f"{least.mean:.1f} %"
        text = f"← {value} at {least.point.text}"
        ax.annotate(text, (low, y), (3, 0), textcoords="offset points", **small)
    else:
        ax.annotate(
            least.point.text, (start, y), (-3, 0), textcoords="offset points", ha="right", **small
        )
    ax.annotate(most.point.text, (most.mean, y), (3, 0), textcoords="offset points", **small)
    if item.default.percents:
        mean = item.default.mean
        ax.plot([mean, mean], [y - 0.5, y + 0.5], color=figures.BLACK, ls="--", lw=1)
