"""Drawings of the report: SVG that reads at phone width, on light and on dark ground."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from apts_mpi.comm.clock import PHASES
from benchmarks.harness import figures, names
from benchmarks.harness.results import digest
from benchmarks.harness.statistics import Estimate
from benchmarks.harness.units import digits

# Stand for the page's own colours, which change with its ground.
INK, LINE, PAPER = "#1c1c21", "#d3d3da", "#fdfdfe"
_VARIABLES = {INK: "var(--ink)", LINE: "var(--line)", PAPER: "var(--paper)"}
WIDTH = 4.3  # inches: at phone width the type is still 9 pixels high

_LABEL = 32  # characters

_LOOK = {
    **{"svg.fonttype": "none", "svg.hashsalt": "report", "text.parse_math": False},
    "font.sans-serif": ["DejaVu Sans"],  # named in every text, with sans-serif behind it
    **{"axes.edgecolor": INK, "axes.labelcolor": INK, "axes.titlecolor": INK, "text.color": INK},
    **{"xtick.color": INK, "ytick.color": INK, "grid.color": LINE, "grid.alpha": 1.0},
    **{"grid.linewidth": 0.6, "axes.axisbelow": True, "hatch.linewidth": 0.7},
    **{"legend.fontsize": 8, "legend.handlelength": 1.8, "legend.columnspacing": 1.2},
}


@dataclass(frozen=True)
class Style:
    """What sets a method apart from others: colour, and besides it marker and dashes."""

    colour: str
    marker: str
    dash: Any


_STYLES = {
    "apts": Style(INK, "o", "-"),
    "apts-sr1": Style(figures.GREEN, "s", (0, (5, 1))),
    "apts-auto": Style(figures.GREEN, "s", (0, (5, 1))),
    "apts-first-order": Style(figures.PURPLE, "D", (0, (1, 1))),
    "adam": Style(figures.BLUE, "^", "--"),
    "sgd": Style(figures.SKY, "v", "-."),
    "ddp-adam": Style(figures.SKY, "v", "-."),
    "ddp-muon": Style(figures.PURPLE, "h", "--"),
    "local-sgd": Style(figures.ORANGE, "P", ":"),
    "diloco": Style(figures.RED, "X", (0, (3, 1, 1, 1, 1, 1))),
    "adamw": Style(figures.BLUE, "<", "-."),
    "sgd-cosine": Style(figures.SKY, ">", ":"),
    "muon": Style(figures.PURPLE, "h", "--"),
    "schedule-free": Style(figures.GREEN, "p", "-."),
    "prodigy": Style(figures.ORANGE, "*", "--"),
    "diloco-cosine": Style(figures.RED, "d", "-."),
    "muloco": Style(figures.PURPLE, "H", ":"),
}
_STYLES = {names.shown(name): look for name, look in _STYLES.items()}
PHASE_LOOK = {  # colour, hatch
    "gradient": (figures.BLUE, ""),
    "algebra": (figures.SKY, "///"),
    "data": (figures.GREEN, "|||"),
    "wait": (figures.ORANGE, "xxx"),
    "allreduce": (figures.RED, "\\\\\\"),
    "broadcast": (figures.PURPLE, "+++"),
    "other": ("#999999", ""),
    "evaluation": ("none", "---"),
}
assert set(PHASE_LOOK) == set(PHASES)


def style(name: str, number: int = 0) -> Style:
    """The look of a method, of an unknown one by its number."""
    known = _STYLES.get(names.shown(name))
    if known is not None:
        return known
    every = list(_STYLES.values())
    return every[number % len(every)]


def styles(every: Sequence[str]) -> dict[str, Style]:
    """Looks of lines that differ in more than a method, all different."""
    looks = list(dict.fromkeys(_STYLES.values()))
    wanted = {name: _STYLES.get(names.shown(name)) for name in every}
    for name, known in wanted.items():  # a method with flags looks like the method, if that is free
        look = _STYLES.get(names.shown(name.partition(" ")[0]))
        if known is None and look not in wanted.values():
            wanted[name] = look
    free = [one for one in looks if one not in wanted.values()] or looks
    chosen, used = {}, 0
    for name, known in wanted.items():
        chosen[name] = known or free[used % len(free)]
        used += known is None
    return chosen


def svg(draw: Callable[[Any], None], *, height: float, panels: int = 1) -> Callable[[], str]:
    """What makes one drawing, as an ``<svg>`` element; the same drawing gives the same text.

    Args:
        draw: draws on the axes it is given. height: in inches. panels: one below the other;
            with more than one an array of axes is given.
    """

    def made() -> str:
        plt = figures.pyplot()
        drawn = io.StringIO()
        with plt.rc_context(_LOOK), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph")  # the reader's fonts count, not ours
            figure, ax = plt.subplots(panels, figsize=(WIDTH, height), layout="constrained")
            try:
                draw(ax)
                nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
                figure.savefig(drawn, format="svg", transparent=True, metadata=nothing)
            finally:
                plt.close(figure)
        text = drawn.getvalue()
        text = text[text.index("<svg") :]
        text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
        text = re.sub(r'<g id="[^"]*">', "<g>", text)  # nothing refers to groups
        text = re.sub(r' transform="rotate\(-0 [^"]*"', "", text)
        # Two digits behind the point, and no blanks that say nothing.
        shorter = partial(re.sub, r"(?<=\.\d\d)\d+|(?<=[;:]) ", "")
        text = re.sub(r"<[^>]*>", lambda tag: shorter(tag[0]), text)
        return re.sub(r"^[ \t]+", "", text, flags=re.MULTILINE).strip()

    return made


def inline(text: str, name: str, label: str) -> str:
    """A drawing within the page: colours are the page's, ids its own.

    Args:
        label: its text alternative, escaped.
    """
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>p{digest(name)}", text)
    # Width and height are left out, so that it is as wide as its place.
    more = f'role="img" aria-label="{label}" preserveAspectRatio="xMidYMid"'
    opening = r"<svg [^>]*?(viewBox=\"[^\"]*\")[^>]*>"
    return re.sub(opening, lambda found: f"<svg {found[1]} {more}>", text, count=1)


# ---- axes ----------------------------------------------------------------------------------


def legend(ax: Any, *, columns: int = 3, handles: Sequence[Any] | None = None) -> None:
    """A legend below the axes, where it hides nothing; of all that has a label, or of these."""
    handles = ax.get_legend_handles_labels()[0] if handles is None else handles
    labels = [one.get_label() for one in handles]
    if handles:
        labels = list(map(short, labels))
        columns = columns if max(map(len, labels)) < 22 else 2
        ax.figure.legend(handles, labels, loc="outside lower center", ncols=columns)


def ranks_axis(ax: Any, ranks: Sequence[int]) -> None:
    """A logarithmic axis of numbers of ranks, a tick at each that was measured."""
    ax.set_xscale("log", base=2)
    few = sorted(set(ranks))
    shown = few if len(few) <= 8 else few[:: -(-len(few) // 8)]
    ax.set_xticks(shown, [str(n) for n in shown])
    ax.minorticks_off()
    ax.set_xlim(min(few) / 1.25, max(few) * 1.25)
    ax.set_xlabel("ranks N")


def log_axis(axis: Any, form: Callable[[float], str] = digits) -> None:
    """Plain numbers on a logarithmic axis, 1, 2 and 5 of a decade where it spans few."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    if low > 0 and high / low < 10:  # widen, so that there are ticks enough to read from
        middle = (low * high) ** 0.5
        low, high = min(low, middle / 2.2), max(high, middle * 2.2)
        axis.set_view_interval(low, high, ignore=True)
    narrow = low > 0 and high / low < 60
    few = 6 if axis.axis_name == "x" else 9  # labels with units are wide
    subs = (1, 2, 5) if narrow else (1,)
    axis.set_major_locator(LogLocator(10, subs=subs, numticks=9 if narrow else few))
    axis.set_major_formatter(FuncFormatter(lambda value, _: _short(form(value))))
    axis.set_minor_formatter(NullFormatter())


def _short(text: str) -> str:
    """Without zeros that say nothing: ``1.00 s`` is ``1 s``."""
    return re.sub(r"(\.\d*?)0+(?=\D|$)", lambda m: "" if m[1] == "." else m[1], text)


def point(ax: Any, x: float, value: Estimate, look: Style, *, hollow: bool = False) -> None:
    """A measured median with its interval."""
    points(ax, [x], [value], look, hollow=hollow)


def points(
    ax: Any, x: Sequence[float], values: Sequence[Estimate], look: Style, *, hollow: bool = False
) -> None:
    """Measured medians with their intervals, where they have any."""
    mark: dict[str, Any] = {"mfc": look.colour, "mec": INK, "mew": 0.5}
    if hollow:
        mark = {"mfc": "none", "mec": look.colour, "mew": 1.0}
    bars = [
        (0.0, 0.0)
        if hollow or one.low is None or one.high is None
        else (max(0.0, one.value - one.low), max(0.0, one.high - one.value))
        for one in values
    ]
    heights = list(zip(*bars, strict=True)) if any(map(any, bars)) else None
    bar: dict[str, Any] = {"yerr": heights, "ecolor": look.colour, "elinewidth": 1.2}
    middle = [one.value for one in values]
    ax.errorbar(x, middle, fmt=look.marker, ms=6, capsize=2.5, **mark, **bar)


def line(ax: Any, x: Any, y: Any, look: Style, label: str, **options: Any) -> None:
    """A line through points in a method's look."""
    given = {"color": look.colour, "ls": look.dash, "marker": look.marker, "ms": 4.5, "lw": 1.3}
    ax.plot(x, y, label=label, **{**given, **options})


def handle(look: Style, label: str) -> Any:
    """A legend's entry for a look: its marker."""
    from matplotlib.lines import Line2D

    form: dict[str, Any] = {"ls": "none", "marker": look.marker, "ms": 6, "mec": INK, "mew": 0.5}
    return Line2D([], [], color=look.colour, label=label, **form)


def short(label: str) -> str:
    """A label as people know it that leaves room for the drawing; tables have the whole of it."""
    label = names.shown(label)
    return label if len(label) <= _LABEL else label[: _LABEL - 3] + "..."


def spread_out(number: int, of: int, width: float = 0.16) -> float:
    """A factor beside 1 that sets one of several marks apart on a logarithmic axis."""
    return float(2 ** (width * (number - (of - 1) / 2) / max(1, of - 1) * 2)) if of > 1 else 1.0
