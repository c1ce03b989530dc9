"""Plots and tables of ``corrections``."""

from __future__ import annotations

import itertools
from argparse import Namespace
from collections import Counter
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from benchmarks.harness import figures, tables
from benchmarks.harness.results import Row, grouped, matching
from benchmarks.harness.sections import Image, Part, Section, Table

SOLVERS = ("first-order", "sr1")
JOINS = ("sum", "average", "adaptive")
DATA = {
    "i.i.d.": "equal parts of the shuffled digits",
    "uneven": "shuffled, parts in the proportion 1 : 2 : ... : N",
    "skewed": "every class dealt out in Dirichlet(0.1) proportions: few classes per part",
}
HIDDEN = "128,128"


def _groups(rows: list[Row]) -> dict[tuple[Any, ...], list[Row]]:
    """Rows by all settings but the seed: data, solver, ranks, consistency, join."""
    names = ("data", "local_solver", "ranks", "consistency", "join")
    return grouped(rows, lambda row: tuple(row["settings"][name] for name in names))


def draw(rows: list[Row], options: Namespace, out: Path) -> None:
    """A plot per local solver."""
    rows = matching(rows, work=options.work)
    for solver in SOLVERS:
        _plot(out / f"corrections_{solver}.png", matching(rows, local_solver=solver), rows)


def _plot(path: Path, own: list[Row], rows: list[Row]) -> None:
    """Training loss against work: a panel per kind of data and number of ranks."""
    plt, groups = figures.pyplot(), _groups(own)
    ranks = sorted({key[2] for key in groups if key[2] > 1}) or [1]
    size = (3.2 * len(ranks) + 1.0, 8.0)
    figure, axes = figures.panels(len(DATA), len(ranks), size, sharex=True, sharey=True)
    colours = dict(zip(JOINS, (figures.BLUE, figures.ORANGE, figures.GREEN), strict=True))
    # A run goes past the limit by what its last iteration takes.
    grid = np.linspace(0.0, max(row["curves"]["epoch"][-1] for row in rows), 241)
    for (kind, _, n, term, join), group in groups.items():
        if n not in ranks:
            continue
        ax = axes[list(DATA).index(kind), ranks.index(n)]
        curves = np.array([_at(row["curves"], grid) for row in group])
        label = f"{join}, consistency {'on' if term else 'off'}"
        dash = "-" if term else "--"
        figures.band(ax, grid, curves, colours[join], shade=0.12, ls=dash, label=label)
        ax.set_title(f"{kind}, N = {n}")
    for ax in axes[-1]:
        ax.set_xlabel("gradient evaluations per sample")
    for ax in axes[:, 0]:
        ax.set_ylabel("training loss")
    axes[0, 0].set_yscale("log")
    for which in (axes[0, 0].yaxis.set_major_formatter, axes[0, 0].yaxis.set_minor_formatter):
        which("{x:g}")
    axes[0, 0].yaxis.set_minor_locator(plt.LogLocator(subs=(2, 5)))
    figures.save(figure, path, legend=axes[0, 0], ncols=min(3, len(ranks) + 1))


def _at(curves: dict[str, list[float]], grid: Any) -> Any:
    """Loss after as much work as in ``grid``: that of the last iteration finished by then."""
    index = np.searchsorted(curves["epoch"], grid, side="right") - 1
    return np.where(index < 0, np.nan, np.array(curves["loss"])[np.maximum(index, 0)])


def section(rows: list[Row], options: Namespace) -> Section | None:
    """A table per kind of data and solver."""
    rows = matching(rows, work=options.work)
    if not rows:
        return None
    groups = _groups(rows)
    seeds = ", ".join(map(str, sorted({row["settings"]["seed"] for row in rows})))
    parts: list[Part] = [
        "Embedded digits (1437 training, 360 test samples), network "
        f"64-{HIDDEN.replace(',', '-')}-10, full batch, no global step, no momentum, "
        f"{options.work:g} gradient evaluations per sample (a forward one counts a third; the "
        "iteration that passes the limit is finished), at most five local steps. Mean [least, "
        f"largest] over seeds {seeds}, which also cut the shards. Accepted: share of outer "
        "iterations whose joined correction was taken.",
        "Data: " + "; ".join(f"**{kind}**: {text}" for kind, text in DATA.items()) + ".",
        _wins(groups),
    ]
    header = ["N", "consistency", "join", "accepted, %", "training loss", "test accuracy, %"]
    below = []
    for kind, solver in itertools.product(DATA, SOLVERS):
        body = [
            (
                n,
                "on" if term else "off",
                join,
                tables.span([100 * r["accepted"] / r["outer_iterations"] for r in group], ".0f"),
                tables.span([r["train_loss"] for r in group], ".4f"),
                tables.span([100 * r["test_accuracy"] for r in group]),
            )
            for (k, s, n, term, join), group in groups.items()
            if (k, s) == (kind, solver)
        ]
        if body:
            below.append(Section(f"{kind}, {solver}", [Table("", header, body, text=3)]))
    line = " ".join(command(rows[-1]["settings"], "DIR"))
    foot: list[Part] = [Image(f"training loss, {s}", f"corrections_{s}.png") for s in SOLVERS]
    foot.append(tables.foot(rows, "corrections", run=line))
    title = "Additive correction on i.i.d., uneven and label-skewed data"
    return Section(title, parts, below, foot)


def command(settings: Row, data: str) -> list[str]:
    """The program's arguments for a run, but for its --out."""
    return [
        *("train", "--data", data, "--hidden", HIDDEN, "--device", "cpu"),
        *("--global-step", "off", "--momentum", str(settings["momentum"])),
        *("--threads", "1", "--evaluate-every", "1e6", "--epochs", str(settings["work"])),
        *("--local-solver", settings["local_solver"], "--join", settings["join"]),
        *("--consistency", "on" if settings["consistency"] else "off"),
        *("--seed", str(settings["seed"])),
    ]


def _wins(groups: dict[tuple[Any, ...], list[Row]]) -> str:
    """How often each join came to the lowest mean training loss of the three."""
    lines = []
    for solver, term in itertools.product(SOLVERS, (True, False)):
        best: Counter[str] = Counter()
        for kind, n in {(k, n) for k, s, n, t, _ in groups if (s, t) == (solver, term) and n > 1}:
            losses = {
                join: fmean(row["train_loss"] for row in groups[kind, solver, n, term, join])
                for join in JOINS
                if (kind, solver, n, term, join) in groups
            }
            best[min(losses, key=lambda join: losses[join])] += 1
        counts = ", ".join(f"{join} {best[join]}" for join in JOINS)
        lines.append(f"- {solver}, consistency {'on' if term else 'off'}: {counts}")
    return (
        "How often each join came to the lowest mean training loss, of all N above 1 and kinds of "
        "data (where two are equal, the one named first):\n\n" + "\n".join(lines)
    )
