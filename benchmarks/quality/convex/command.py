"""Radius adaptation on convex problems: does the initial radius matter?

One trust region (the package's local solver, one process) on two quadratics of condition 10 and 1e4
and on softmax regression of the embedded digits; first order in the 2-norm and in the infinity
norm, and L-SR1; initial radii from 1e-4 to 1e2 in the units of the norm. Writes convex.md,
convex.jsonl, convex_loss.png and convex_radius.png.
"""

from __future__ import annotations

import argparse
import contextlib
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

import apts_mpi
from apts_mpi.errors import InputError
from apts_mpi.method.flat import FlatParameters
from apts_mpi.trust_region.local import FirstOrder, LocalSolver, Model, SecondOrder
from apts_mpi.trust_region.lsr1 import LSR1
from apts_mpi.trust_region.radius import FIRST_ORDER_RULE, RadiusRule
from benchmarks.harness import figures, tables
from benchmarks.harness.progress import Progress
from benchmarks.harness.results import Results, origin
from benchmarks.quality.convex.problems import (
    DIMENSION,
    RIDGE,
    Problem,
    quadratic,
    softmax_regression,
)

RADII = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2)
TARGET = 1e-6  # of f0 - f*
FLOOR = 1e-8  # of f0 - f*; what is below is close to the rounding of float32 parameters
SHOWN = 100  # radii in the plot; by then the initial one is forgotten


@dataclass(frozen=True)
class Method:
    """A local model, its norm, and the rule it is used with."""

    title: str
    norm: str
    model: Callable[[int], Model]
    rule: RadiusRule


METHODS = (
    Method("first order, 2-norm", "2", lambda n: FirstOrder("2"), FIRST_ORDER_RULE),
    Method("first order, inf-norm", "inf", lambda n: FirstOrder("inf"), FIRST_ORDER_RULE),
    Method("L-SR1", "2", lambda n: SecondOrder(LSR1(n)), RadiusRule()),
)


@dataclass(frozen=True, kw_only=True)
class RecordedRule(RadiusRule):
    """The package's rule; ``radii`` are the start's and those it gave, one an iteration."""

    radii: list[float] = field(default_factory=list)

    def update(self, *arguments: Any, **named: Any) -> float:
        """The next radius, remembered."""
        self.radii.append(super().update(*arguments, **named))
        return self.radii[-1]


class AtFloor(Exception):
    """Nothing more to see: the solver itself stops after a number of steps only."""


def minimise(
    problem: Problem, method: Method, radius: float, iterations: int
) -> tuple[list[float], list[float]]:
    """Relative gap (f - f*) / (f0 - f*) of the best point so far, and radius, both by iteration.

    An iteration is one trial point, evaluated with its gradient.
    """
    flat = FlatParameters([nn.Parameter(torch.zeros(problem.n))])
    rule = RecordedRule(radii=[radius], **asdict(method.rule))
    values: list[float] = []

    def objective(with_gradient: bool) -> float:
        x = flat.vector.double().requires_grad_()
        value = problem.loss(x)
        if with_gradient:
            flat.gradient.copy_(torch.autograd.grad(value, x)[0])
        values.append(value.item() - problem.minimum)
        if values[-1] < FLOOR * values[0]:
            raise AtFloor
        return value.item()

    loss = objective(True)
    solver = LocalSolver(
        flat.vector,
        flat.gradient,
        method.model(problem.n),
        rule,
        norm=method.norm,
        steps=iterations,
    )
    with contextlib.suppress(AtFloor):
        solver.run(
            objective,
            start=flat.vector.clone(),
            loss=loss,
            gradient=flat.gradient.clone(),
            shift=None,
            radius=radius,
            ball=math.inf,
        )
    # Steps are taken only downhill, so that the best value so far is the iterate's.
    gaps = torch.tensor(values, dtype=torch.float64).cummin(0).values / values[0]
    return gaps.tolist(), rule.radii


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument(
        "--iterations", type=int, default=2000, metavar="N", help="most a run (default 2000)"
    )


def run(parsed: argparse.Namespace) -> int:
    """Run all, write all."""
    if parsed.iterations < 1:
        raise InputError(f"--iterations {parsed.iterations}: must be at least 1")
    plt, out = figures.pyplot(), Path(parsed.out)
    # Small products gain nothing from threads, and lose much where cores are shared.
    torch.set_num_threads(1)
    problems = [quadratic(10.0), quadratic(1e4), softmax_regression()]
    progress = Progress(len(problems) * len(METHODS))
    results = Results(out / "convex.jsonl", fresh=True)
    shape = {"nrows": len(problems), "ncols": len(METHODS), "figsize": (10, 8.5)}
    losses, loss_axes = plt.subplots(**shape, sharex="row", sharey=True, layout="constrained")
    radii, radius_axes = plt.subplots(**shape, sharex="row", layout="constrained")
    rows = []
    for i, problem in enumerate(problems):
        for j, method in enumerate(METHODS):
            runs = [minimise(problem, method, radius, parsed.iterations) for radius in RADII]
            for radius, curves in zip(RADII, runs, strict=True):
                settings = {"problem": problem.title, "method": method.title, "radius": radius}
                rows.append(results.add(settings, _figures(*curves)))
            _draw(loss_axes[i, j], [gaps for gaps, _ in runs])
            _draw(radius_axes[i, j], [followed[:SHOWN] for _, followed in runs])
            for axes in (loss_axes[i, j], radius_axes[i, j]):
                axes.set_title(f"{problem.title}\n{method.title}")
            progress.say(f"{problem.title}; {method.title}: {_iterations(rows[-len(RADII) :])}")
    for figure, axes, name in ((losses, loss_axes, "loss"), (radii, radius_axes, "radius")):
        for axis in axes[-1]:
            axis.set_xlabel("iteration + 1")
        for axis in axes[:, 0]:
            axis.set_ylabel("(f - f*) / (f0 - f*)" if name == "loss" else "radius")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(
            handles, labels, title="initial radius", loc="outside lower center", ncols=len(RADII)
        )
        figures.save(figure, out / f"convex_{name}.png")
    _write(out / "convex.md", rows, parsed.iterations)
    return 0


def _figures(gaps: list[float], radii: list[float]) -> dict[str, Any]:
    """What the table tells of a run; None where the target was not reached."""
    reached = next((k for k, gap in enumerate(gaps) if gap < TARGET), None)
    return {
        "iterations": reached,
        "evaluations": None if reached is None else reached + 1,
        "gap": gaps[-1],
        "last_radius": radii[-1],
    }


def _draw(axes: Any, curves: list[list[float]]) -> None:
    for curve, radius, colour, style in zip(
        curves, RADII, figures.COLOURS, figures.STYLES, strict=True
    ):
        # Shifted by one, so that the start is seen on the logarithmic axis.
        iterations = range(1, len(curve) + 1)
        axes.loglog(iterations, curve, color=colour, ls=style, lw=1.3, label=f"{radius:g}")


def _iterations(rows: list[dict[str, Any]]) -> str:
    """Least and largest number of iterations over the initial radii."""
    reached = [row["iterations"] for row in rows if row["iterations"] is not None]
    if len(reached) < len(rows):
        return f"{len(reached)} of {len(rows)} reached the target"
    return f"{min(reached)} to {max(reached)}"


def _write(path: Path, rows: list[dict[str, Any]], limit: int) -> None:
    body = []
    for first in range(0, len(rows), len(RADII)):
        group = rows[first : first + len(RADII)]
        cells = [
            f"({row['gap']:.0e})" if row["iterations"] is None else row["iterations"]
            for row in group
        ]
        settings = group[0]["settings"]
        body.append([settings["problem"], settings["method"], *cells])
    here, rule = origin(), RadiusRule()
    tables.write(
        path,
        "# Radius adaptation on convex problems",
        f"Iterations until f - f* < {TARGET:g} (f0 - f*), by initial radius. An iteration is one "
        "trial point, evaluated with its gradient; the start is one evaluation more. In brackets: "
        f"not reached in {limit} iterations, and the (f - f*) / (f0 - f*) they came to.",
        tables.markdown(["problem", "method", *(f"{radius:g}" for radius in RADII)], body, text=2),
        f"Quadratics in {DIMENSION} dimensions, eigenvalues from 1 to the condition, evenly spaced "
        "in the logarithm, in rotated axes; softmax regression of the 1437 embedded digits, 650 "
        f"parameters, ridge {RIDGE:g}. Start at zero, parameters float32, losses float64; L-SR1 "
        f"with 5 pairs. Radius rule of the package: factor {rule.shrink:g} below a ratio of "
        f"{rule.shrink_below:g}, {rule.grow:g} above {rule.grow_above:g} (first order: "
        f"{FIRST_ORDER_RULE.grow_above:g}). One process, the quadratics drawn from a fixed seed.",
        "![relative gap](convex_loss.png)",
        "![radius](convex_radius.png)",
        f"Set-up: apts_mpi {apts_mpi.__version__}, commit {here['commit']}, torch "
        f"{torch.__version__}, one thread; {here['date']}. Repeat: `python -m benchmarks convex`.",
    )
