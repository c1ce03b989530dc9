"""Local trust-region solvers: a few steps on one rank's own loss, inside the global ball.

One loop for all; the solvers differ in the model, which proposes a step and may learn
from the gradients it sees. The gradient at the start is given, so that no evaluation is repeated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from apts_mpi.trust_region.lsr1 import LSR1
from apts_mpi.trust_region.radius import RadiusRule, reduction_ratio
from apts_mpi.trust_region.subproblem import Step, box_step, first_order_step, lsr1_step

# Loss at the present parameters; with True its gradient is left in the solver's `gradient`.
Objective = Callable[[bool], float]

# Relative rounding error of a mean of float32 losses that are summed in float64.
LOSS_NOISE = 1e-8


class Model(Protocol):
    """What a trust region minimises instead of the loss."""

    learns: bool  # whether it wants the gradient at every trial point

    def step(
        self, g: Tensor, displacement: Tensor, radius: float, ball: float, out: Tensor
    ) -> Step:
        """Minimise the model for ``|p| <= radius`` with ``|displacement + p| <= ball`` into out."""

    def learn(self, s: Tensor, y: Tensor) -> None:
        """Take in a step and its gradient difference, both (n,)."""

    def state_dict(self) -> dict[str, Any]:
        """What a restart needs."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""


class FirstOrder:
    """Linear model in the 2-norm or the infinity norm ("inf")."""

    learns = False

    def __init__(self, norm: str) -> None:
        self.norm = norm

    def step(
        self, g: Tensor, displacement: Tensor, radius: float, ball: float, out: Tensor
    ) -> Step:
        """Steepest descent of the norm."""
        if self.norm == "inf":
            return box_step(g, displacement, radius, ball, out)
        return first_order_step(g, _remaining(displacement, radius, ball), out)

    def learn(self, s: Tensor, y: Tensor) -> None:
        """Nothing to learn."""

    def state_dict(self) -> dict[str, Any]:
        """No state."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """No state."""


class SecondOrder:
    """Quadratic model with an L-SR1 Hessian, in the 2-norm."""

    learns = True

    def __init__(self, hessian: LSR1) -> None:
        self.hessian = hessian

    def step(
        self, g: Tensor, displacement: Tensor, radius: float, ball: float, out: Tensor
    ) -> Step:
        """The exact minimiser in what remains of the ball."""
        return lsr1_step(g, self.hessian, _remaining(displacement, radius, ball), out)

    def learn(self, s: Tensor, y: Tensor) -> None:
        """Offer the pair to the Hessian."""
        self.hessian.update(s, y)

    def state_dict(self) -> dict[str, Any]:
        """The Hessian's pairs."""
        return self.hessian.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the Hessian's pairs."""
        self.hessian.load_state_dict(state)


def norm_of(v: Tensor, norm: str) -> float:
    """The 2-norm (accumulated in float64) or the infinity norm ("inf") of v."""
    if norm == "inf":
        return float(v.abs().max()) if v.numel() else 0.0
    return float(torch.linalg.vector_norm(v, dtype=torch.float64))


def _remaining(displacement: Tensor, radius: float, ball: float) -> float:
    """Radius left in the ball: to cut a step back afterwards would spoil its prediction."""
    return max(min(radius, ball - norm_of(displacement, "2")), 0.0)


@dataclass(frozen=True)
class LocalResult:
    """Outcome of a rank's local steps.

    Attributes:
        reduction: how much the local objective fell; not negative.
        radius: the local radius to start from next time.
        accepted, tried: steps.
        hits_boundary: whether a step was limited by the ball around the outer iterate.
    """

    reduction: float
    radius: float
    accepted: int
    tried: int
    hits_boundary: bool


class LocalSolver:
    """At most ``steps`` trust-region steps on ``f_i(theta) + <shift, theta - theta_k>``.

    Args:
        vector: (n,) float32, the parameters; they are moved and left at the last trial point.
        gradient: (n,) float32, where an objective leaves its gradient.
        model: proposes the steps. rule: judges them. norm: of the ball, "2" or "inf".
    """

    def __init__(
        self,
        vector: Tensor,
        gradient: Tensor,
        model: Model,
        rule: RadiusRule,
        *,
        norm: str,
        steps: int,
    ) -> None:
        self.vector, self.gradient = vector, gradient
        self.model = model
        self.rule = rule
        self.norm = norm
        self.steps = steps
        self.correction = torch.zeros_like(vector)
        self._q = torch.zeros_like(vector)  # gradient of the local objective
        self._p = torch.zeros_like(vector)
        self._y = torch.zeros_like(vector) if model.learns else self._q

    def run(
        self,
        objective: Objective,
        *,
        start: Tensor,
        loss: float,
        gradient: Tensor,
        shift: Tensor | None,
        radius: float,
        ball: float,
    ) -> LocalResult:
        """Take the steps; ``correction`` holds their sum.

        Args:
            objective: the rank's own loss f_i on its batch.
            start: (n,) theta_k. loss: f_i(theta_k).
            gradient: (n,) gradient of the local objective at theta_k; known, not evaluated again.
            shift: (n,) consistency term ``g - g_i``; None leaves it out.
            radius: of the first step. ball: bound on the norm of the correction.
        """
        d, q, p = self.correction, self._q, self._p
        d.zero_()
        q.copy_(gradient)
        value, accepted, tried = loss, 0, 0
        hits_ball = False
        for j in range(self.steps):
            step = self.model.step(q, d, radius, ball, p)
            if not step.predicted > 0.0:
                break
            tried += 1
            torch.add(start, d, out=self.vector).add_(p)
            # The last step's gradient would only serve a model that learns.
            with_gradient = self.model.learns or j + 1 < self.steps
            trial = objective(with_gradient)
            if shift is not None:
                trial += _dot(shift, d) + _dot(shift, p)
            rho = reduction_ratio(value, trial, step.predicted, noise=LOSS_NOISE)
            if self.model.learns:
                _consistent(self.gradient, shift, self._y)
                self._y.sub_(q)
                self.model.learn(p, self._y)
            if self.rule.accepts(rho):
                accepted += 1
                d.add_(p)
                value = trial
                if self.model.learns:
                    q.add_(self._y)
                elif with_gradient:
                    _consistent(self.gradient, shift, q)
                hits_ball = norm_of(d, self.norm) >= 0.99 * ball
            radius = self.rule.update(
                radius, rho, hits_boundary=step.hits_boundary, length=step.length
            )
            if self.norm == "2" and hits_ball:
                break
        return LocalResult(max(loss - value, 0.0), radius, accepted, tried, hits_ball)


def _dot(a: Tensor, b: Tensor) -> float:
    return float(torch.dot(a, b))


def _consistent(gradient: Tensor, shift: Tensor | None, out: Tensor) -> None:
    """``out = gradient + shift``, the gradient of the local objective."""
    if shift is None:
        out.copy_(gradient)
    else:
        torch.add(gradient, shift, out=out)
