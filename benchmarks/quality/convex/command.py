"""Radius adaptation on convex problems: does the initial radius matter?

One trust region (the package's local solver, one process) on two quadratics of condition 10 and 1e4
and on softmax regression of the embedded digits; first order in the 2-norm and in the infinity
norm, and L-SR1; initial radii from 1e-4 to 1e2 in the units of the norm. Writes convex.md,
convex.jsonl, convex_loss.png and convex_radius.png.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from apts_mpi.trust_region.radius import FIRST_ORDER_RULE, RadiusRule
from benchmarks.harness import figures
from benchmarks.harness.command import Command, Namespace, Rounds
from benchmarks.harness.measure import Job, Outcome, Piece, Session
from benchmarks.harness.options import whole
from benchmarks.harness.results import Row, grouped, matching
from benchmarks.harness.sections import Image, Part, Section, Table
from benchmarks.quality.convex.problems import DIMENSION, METHODS, PROBLEMS, RIDGE

RADII = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2)
TARGET = 1e-6  # of f0 - f*
SHOWN = 100  # radii in the plot; by then the initial one is forgotten
POINTS = 120  # of a curve that are kept, evenly spaced in the logarithm


def plan(session: Session) -> Rounds:
    """One job on one rank; a piece per problem and method."""
    iterations = session.options.iterations
    pieces = [
        Piece(
            settings=[
                dict(problem=problem, method=method, radius=radius, limit=iterations)
                for radius in RADII
            ],
            words=f"{problem}; {method}",
            arguments={
                **{"problem": problem, "method": method},
                **{"radii": RADII, "iterations": iterations},
            },
            keep=keep,
        )
        for problem in PROBLEMS
        for method in METHODS
    ]
    yield [Job(task="benchmarks.quality.convex.problems:task", ranks=1, pieces=pieces)]


def keep(outcome: Outcome) -> tuple[list[Row], str]:
    """When the target was reached, and curves; None where it was not."""
    rows = []
    for gaps, radii in outcome.values[0]["curves"]:
        reached = next((k for k, gap in enumerate(gaps) if gap < TARGET), None)
        # From 1, so that the start is seen on a logarithmic axis.
        chosen = np.unique(np.geomspace(1, len(gaps), POINTS).round().astype(int))
        row = {
            "iterations": reached,
            "evaluations": None if reached is None else reached + 1,
            "gap": gaps[-1],
            "last_radius": radii[-1],
            "curve": {
                "iteration": chosen.tolist(),
                "gap": [float(f"{gaps[k - 1]:.3g}") for k in chosen],
            },
            "radii": [float(f"{radius:.3g}") for radius in radii[:SHOWN]],
            "versions": outcome.values[0]["versions"],
        }
        rows.append(row)
    return rows, _iterations(rows)


def _iterations(rows: list[Row]) -> str:
    """Least and largest number of iterations over the initial radii."""
    reached = [row["iterations"] for row in rows if row["iterations"] is not None]
    if len(reached) < len(rows):
        return f"{len(reached)} of {len(rows)} reached the target"
    return f"{min(reached)} to {max(reached)}"


def draw(rows: list[Row], options: Namespace, out: Path) -> None:
    """Relative gaps, and radii, by iteration."""
    for name, label in (("loss", "(f - f*) / (f0 - f*)"), ("radius", "radius")):
        _plot(out / f"convex_{name}.png", matching(rows, limit=options.iterations), name, label)


def _plot(path: Path, rows: list[Row], name: str, label: str) -> None:
    """A panel per problem and method."""
    if not all("curve" in row for row in rows):
        return  # of an earlier version, which drew while it measured
    shared: dict[str, Any] = {"sharex": "row", "sharey": name == "loss"}
    figure, axes = figures.panels(len(PROBLEMS), len(METHODS), (10, 8.5), **shared)
    looks = dict(zip(RADII, zip(figures.COLOURS, figures.STYLES, strict=True), strict=False))
    for row in rows:
        s = row["settings"]
        ax = axes[list(PROBLEMS).index(s["problem"]), list(METHODS).index(s["method"])]
        curve, (colour, style) = row["curve"], looks[s["radius"]]
        x, y = curve["iteration"], curve["gap"]
        if name == "radius":
            x, y = range(1, len(row["radii"]) + 1), row["radii"]
        ax.loglog(x, y, color=colour, ls=style, lw=1.3, label=f"{s['radius']:g}")
        ax.set_title(f"{s['problem']}\n{s['method']}")
    for ax in axes[-1]:
        ax.set_xlabel("iteration + 1")
    for ax in axes[:, 0]:
        ax.set_ylabel(label)
    figures.save(figure, path, legend=axes[0, 0], title="initial radius")


def section(rows: list[Row], options: Namespace) -> Section | None:
    """What the rows say."""
    rows, rule = matching(rows, limit=options.iterations), RadiusRule()
    if not rows:
        return None
    limit, first = options.iterations, rows[0]
    parts: list[Part] = [
        f"Iterations until f - f* < {TARGET:g} (f0 - f*), by initial radius. An iteration is one "
        "trial point, evaluated with its gradient; the start is one evaluation more. In brackets: "
        f"not reached in {limit} iterations, and the (f - f*) / (f0 - f*) they came to.",
        Table("", ["problem", "method", *(f"{radius:g}" for radius in RADII)], _body(rows), text=2),
        f"Quadratics in {DIMENSION} dimensions, eigenvalues from 1 to the condition, evenly spaced "
        "in the logarithm, in rotated axes; softmax regression of the 1437 embedded digits, 650 "
        f"parameters, ridge {RIDGE:g}. Start at zero, parameters float32, losses float64; L-SR1 "
        f"with 5 pairs. Radius rule of the package: factor {rule.shrink:g} below a ratio of "
        f"{rule.shrink_below:g}, {rule.grow:g} above {rule.grow_above:g} (first order: "
        f"{FIRST_ORDER_RULE.grow_above:g}). One process, the quadratics drawn from a fixed seed.",
        Image("relative gap", "convex_loss.png"),
        Image("radius", "convex_radius.png"),
        f"Set-up: apts_mpi {first['versions']['apts_mpi']}, commit {first['commit']}, torch "
        f"{first['versions']['torch']}, one thread; {first['date']}. Repeat: `python -m benchmarks "
        "convex --fresh`.",
    ]
    return Section("Radius adaptation on convex problems", parts)


def _body(rows: list[Row]) -> list[list[Any]]:
    def cell(row: Row) -> Any:
        return f"({row['gap']:.0e})" if row["iterations"] is None else row["iterations"]

    lines = grouped(rows, lambda row: (row["settings"]["problem"], row["settings"]["method"]))
    return [[*names, *map(cell, own)] for names, own in lines.items()]


COMMAND = Command(
    name="convex",
    options=(whole("--iterations", 2000, "most per run"),),
    libraries=("matplotlib",),
    plan=plan,
    section=section,
    draw=draw,
)
