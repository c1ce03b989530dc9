"""Plots: one look, colours that survive colour blindness, and matplotlib only when asked for."""

from __future__ import annotations

import io
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from apts_mpi.errors import InputError

# Okabe and Ito (2008). Neighbours differ in lightness too; line styles distinguish the rest.
BLUE, ORANGE, GREEN, PURPLE, SKY, RED, BLACK = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#D55E00",
    "#000000",
)
COLOURS = (BLACK, BLUE, SKY, GREEN, ORANGE, RED, PURPLE)
STYLES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1, 1, 1)), (0, (1, 1)))


def require(*names: str) -> None:
    """Make sure, before long work, that libraries are there which come after it.

    Raises:
        InputError: one is not.
    """
    for name in names:
        if find_spec(name) is None:
            raise InputError(f"{name} is not installed: pip install 'apts_mpi[bench]'")


def pyplot() -> Any:
    """matplotlib.pyplot, drawing to files.

    Raises:
        InputError: it is not installed; called before long work, so that none is lost.
    """
    require("matplotlib")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    plt.rcParams.update(
        {
            "font.size": 9,
            "axes.titlesize": 9,
            "axes.grid": True,
            "grid.alpha": 0.3,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "legend.frameon": False,
        }
    )
    return plt


def panels(rows: int, columns: int, size: tuple[float, float], **options: Any) -> tuple[Any, Any]:
    """A figure of so many inches, and its axes (rows, columns)."""
    every: dict[str, Any] = {"squeeze": False, "layout": "constrained", **options}
    figure, axes = pyplot().subplots(rows, columns, figsize=size, **every)
    return figure, axes


def band(ax: Any, x: Any, values: Any, colour: str, *, shade: float = 0.15, **line: Any) -> None:
    """A line through the means of the runs (runs, points), and their range behind it."""
    ax.plot(x, values.mean(0), color=colour, **line)
    ax.fill_between(x, values.min(0), values.max(0), color=colour, alpha=shade, lw=0)


def save(figure: Any, path: Path, *, legend: Any = None, **options: Any) -> None:
    """Write a small PNG that depends on nothing but what is drawn, and say so.

    Args:
        legend: axes whose lines are named below all of them. options: of the legend.
    """
    from PIL import Image  # comes with matplotlib

    if legend is not None:
        handles, labels = legend.get_legend_handles_labels()
        place = {"loc": "outside lower center", "ncols": len(labels)}
        figure.legend(handles, labels, **{**place, **options})
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=110, metadata={"Software": None})
    # A palette is enough for lines, and a third of the size.
    Image.open(drawn).convert("RGB").quantize(64).save(path, optimize=True)
    pyplot().close(figure)
    print(f"written: {path}")
