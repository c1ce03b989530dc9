"""Plot and table of ``published``: the authors' curves beside ours."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from benchmarks.harness import figures, tables
from benchmarks.harness.results import Row, in_order, matching
from benchmarks.harness.sections import Image, Part, Section, Table
from benchmarks.quality.published.authors import (
    ADAM,
    ADAM_WORK,
    APTS_WORK,
    MINIBATCHES,
    ORDERS,
    OVERLAP,
    Curve,
    read_reference,
)

TITLES = {"first-order": "first order", "sr1": "L-SR1"}
HIDDEN = "128,128"
ON_THE_WAY = (1, 2, 5)  # passes shown besides the last


def _accuracies(group: list[Row], iteration: int) -> list[float]:
    """Test accuracy in percent of each run after an outer iteration."""
    return [100 * row["curves"]["test_accuracy"][iteration - 1] for row in group]


def draw(rows: list[Row], options: Namespace, out: Path) -> None:
    """Accuracy by passes over the data (above) and by work (below): a column per N."""
    rows = _asked(rows, options)
    reference = read_reference(options.reference)
    ranks = sorted({row["settings"]["ranks"] for row in rows})
    passes = max(len(row["curves"]["epoch"]) for row in rows) / MINIBATCHES
    size = (3.6 * len(ranks) + 0.6, 7.2)
    figure, axes = figures.panels(2, len(ranks), size, sharex="row", sharey=True)
    looks = {"first-order": (figures.BLUE, "o"), "sr1": (figures.RED, "s")}
    for column, n in enumerate(ranks):
        for by_work, ax in enumerate(axes[:, column]):
            theirs = {"Adam, authors": (ADAM, ADAM_WORK, figures.BLACK, "", ":")}
            for solver, (colour, marker) in looks.items():
                key = ("apts_d", n, ORDERS[solver])
                theirs[f"{TITLES[solver]}, authors"] = (key, APTS_WORK, colour, marker, "--")
                group = matching(rows, ranks=n, local_solver=solver)
                if group:
                    _draw_ours(ax, group, bool(by_work), colour, marker, f"{TITLES[solver]}, here")
            for label, (key, work, colour, marker, style) in theirs.items():
                if key in reference:
                    mean = reference[key].mean
                    x = [epoch * (work if by_work else 1) for epoch in mean]
                    form = {"color": colour, "ls": style, "marker": marker, "mfc": "white", "ms": 4}
                    ax.plot(x, list(mean.values()), lw=1.2, label=label, **form)
            ax.set_title(f"N = {n}")
            ax.set_xlim(0, passes * (1.2 * APTS_WORK if by_work else 1))
            ax.set_ylim(60, 100)
            ax.set_xlabel("gradient evaluations per sample" if by_work else "passes over the data")
    for ax in axes[:, 0]:
        ax.set_ylabel("test accuracy, %")
    few = {} if len(ranks) > 2 else {"ncols": 2}
    figures.save(figure, out / "published.png", legend=axes[0, 0], **few)


def _draw_ours(
    ax: Any, group: list[Row], by_work: bool, colour: str, marker: str, label: str
) -> None:
    """Mean and range over seeds; a mark per pass."""
    count = min(len(row["curves"]["epoch"]) for row in group)
    values = np.array([_accuracies(group, k + 1) for k in range(count)]).T
    if by_work:
        x = [fmean(row["curves"]["epoch"][k] for row in group) for k in range(count)]
    else:
        x = [(k + 1) / MINIBATCHES for k in range(count)]
    marks = slice(MINIBATCHES - 1, None, MINIBATCHES)
    line: dict[str, Any] = {"marker": marker, "markevery": marks, "ms": 4, "lw": 1.4}
    figures.band(ax, x, values, colour, label=label, **line)


def section(rows: list[Row], options: Namespace) -> Section | None:
    """The table after the last pass, and that of some passes before."""
    rows, reference = _asked(rows, options), read_reference(options.reference)
    if not rows:
        return None
    last = rows[0]["settings"]["iterations"] // MINIBATCHES
    adam = reference[ADAM]
    end, way = [], []
    for n in sorted({row["settings"]["ranks"] for row in rows}):
        for solver in ORDERS:
            group = matching(rows, ranks=n, local_solver=solver)
            theirs = reference.get(("apts_d", n, ORDERS[solver]), Curve({}, {}, {}))
            if not group:
                continue
            for passes in sorted({*(p for p in ON_THE_WAY if p < last), last}):
                ours = _accuracies(group, passes * MINIBATCHES)
                mean = theirs.mean.get(passes)
                differ = "-" if mean is None else f"{fmean(ours) - mean:+.1f}"
                cells = [n, TITLES[solver], theirs.at(passes), tables.span(ours), differ]
                work = fmean(row["curves"]["epoch"][passes * MINIBATCHES - 1] for row in group)
                if passes < last:
                    way.append([*cells[:2], passes, *cells[2:], APTS_WORK * passes, f"{work:.1f}"])
                    continue
                vectors = fmean(row["vector_allreduces"] for row in group)
                megabytes = fmean(row["bytes_allreduced"] for row in group) / 1e6
                end.append(
                    [*cells, APTS_WORK * last, f"{work:.1f}", f"{vectors:.0f}", f"{megabytes:.0f}"]
                )
    header = ["N", "trust region", "authors", "here", "difference", "work, authors", "work, here"]
    seeds = ", ".join(map(str, sorted({row["settings"]["seed"] for row in rows})))
    parts: list[Part] = [
        f"Test accuracy in percent on MNIST after {last} passes over the data "
        f"({last * MINIBATCHES} outer iterations: {MINIBATCHES} minibatches per pass, {OVERLAP} % "
        f"overlap), mean [least, largest]; here over seeds {seeds}. Work: gradient evaluations per "
        f"sample, a forward one counts a third; an epoch of theirs costs about {APTS_WORK}. "
        "Vectors: messages of the length of the parameters in a run; MB: payload of all messages "
        "handed over per rank in a run.",
        Table("", [*header, "vectors", "MB"], end, text=2),
        f"The authors' Adam, one gradient evaluation per sample and epoch: {adam.at(last)} after "
        f"{last} epochs, {adam.at(APTS_WORK * last)} after {APTS_WORK * last} (as much work as "
        f"{last} epochs of theirs with APTS).",
    ]
    if way:
        columns = [*header[:2], "passes", *header[2:]]
        parts += ["On the way:", Table("", columns, way, text=2)]
    parts += [
        Image("test accuracy by passes and by work", "published.png"),
        "The authors' network ends in a sigmoid under the cross-entropy, so that its loss cannot "
        "fall below 1.461: accuracies can be compared, losses cannot, and are not. Their hidden "
        f"layers and initial parameters may differ from ours (784-{HIDDEN.replace(',', '-')}-10, "
        "ReLU, logits at the end). Source of their figures: `benchmarks/reference/README.md`.",
        tables.foot(rows, "published", run=f"{rows[-1]['command']} --data DIR"),
    ]
    return Section("Against the authors' published curves", parts)


def _asked(rows: list[Row], options: Namespace) -> list[Row]:
    """The runs of so many iterations, in the order of the table."""
    chosen = matching(rows, iterations=options.iterations)
    return in_order(chosen, ranks=None, local_solver=ORDERS, seed=None)
