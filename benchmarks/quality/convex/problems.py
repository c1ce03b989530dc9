"""The convex problems of ``convex`` and how they are minimised; float64, with known minima."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apts_mpi.data import load_source
from apts_mpi.method.flat import FlatParameters
from apts_mpi.trust_region.local import FirstOrder, LocalSolver, Model, SecondOrder
from apts_mpi.trust_region.lsr1 import LSR1
from apts_mpi.trust_region.radius import FIRST_ORDER_RULE, RadiusRule
from benchmarks.harness.results import Row

if TYPE_CHECKING:
    from apts_mpi.comm.communicator import Comm

DIMENSION = 100  # of the quadratics
RIDGE = 1e-3
FLOOR = 1e-8  # of f0 - f*; what is below is close to the rounding of float32 parameters


@dataclass(frozen=True)
class Problem:
    """Minimise ``loss`` of (n,) float64 from zero; ``minimum`` is f*."""

    n: int
    loss: Callable[[Tensor], Tensor]
    minimum: float


def quadratic(condition: float) -> Problem:
    """Eigenvalues spaced evenly in the logarithm from 1 to ``condition``, in rotated axes."""
    draw = torch.Generator().manual_seed(0)
    n, kind = DIMENSION, torch.float64
    axes, _ = torch.linalg.qr(torch.randn(n, n, generator=draw, dtype=kind))
    hessian = (axes * torch.logspace(0, math.log10(condition), n, dtype=kind)) @ axes.T
    solution = torch.randn(n, generator=draw, dtype=kind)

    def loss(x: Tensor) -> Tensor:
        return 0.5 * (x - solution) @ (hessian @ (x - solution))

    return Problem(n, loss, 0.0)


def softmax_regression() -> Problem:
    """Cross-entropy of a linear model of the digits with a ridge; f* from L-BFGS in float64."""
    source = load_source("digits")
    x = torch.from_numpy(source.x_train).double().flatten(1) / 16.0
    x, y = F.pad(x, (0, 1), value=1.0), torch.from_numpy(source.y_train).long()
    shape = (len(source.classes), x.shape[1])

    def loss(w: Tensor) -> Tensor:
        return F.cross_entropy(x @ w.view(shape).T, y) + 0.5 * RIDGE * (w @ w)

    w = torch.zeros(math.prod(shape), dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS(
        [w],
        max_iter=5000,
        tolerance_grad=1e-10,
        tolerance_change=0.0,
        history_size=50,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        solver.zero_grad()
        value = loss(w)
        value.backward()
        return value

    solver.step(closure)
    return Problem(len(w), loss, loss(w).item())


PROBLEMS = {
    "quadratic, condition 10": lambda: quadratic(10.0),
    "quadratic, condition 10000": lambda: quadratic(1e4),
    "softmax regression, digits": softmax_regression,
}


@dataclass(frozen=True)
class Method:
    """A local model, its norm, and the rule it is used with."""

    title: str
    norm: str
    model: Callable[[int], Model]
    rule: RadiusRule


METHODS = {
    method.title: method
    for method in (
        Method("first order, 2-norm", "2", lambda n: FirstOrder("2"), FIRST_ORDER_RULE),
        Method("first order, inf-norm", "inf", lambda n: FirstOrder("inf"), FIRST_ORDER_RULE),
        Method("L-SR1", "2", lambda n: SecondOrder(LSR1(n)), RadiusRule()),
    )
}


@dataclass(frozen=True, kw_only=True)
class RecordedRule(RadiusRule):
    """The package's rule; ``radii`` are the start's and those it gave, one per iteration."""

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


def task(
    comm: Comm, folder: Path, problem: str, method: str, radii: list[float], iterations: int
) -> Row:
    """Minimise a problem from every initial radius; gaps and radii by iteration, on one rank."""
    from apts_mpi.training.provenance import versions

    # Small products gain nothing from threads, and lose much where cores are shared.
    torch.set_num_threads(1)
    made = PROBLEMS[problem]()
    curves = [minimise(made, METHODS[method], radius, iterations) for radius in radii]
    return {"curves": curves, "versions": versions()}
