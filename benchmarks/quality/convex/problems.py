"""The convex problems of ``convex``; float64, with known minima."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from apts_mpi.data import load_source

DIMENSION = 100  # of the quadratics
RIDGE = 1e-3


@dataclass(frozen=True)
class Problem:
    """Minimise ``loss`` of (n,) float64 from zero; ``minimum`` is f*."""

    title: str
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

    return Problem(f"quadratic, condition {condition:g}", n, loss, 0.0)


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
    return Problem("softmax regression, digits", len(w), loss, loss(w).item())
