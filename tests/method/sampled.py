"""A small classifier under the stochastic method, whose every evaluation is recorded."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from apts_mpi.comm.communicator import Comm
from apts_mpi.method.iteration import Iteration
from tests.method.driving import Stochastic

torch.set_num_threads(1)


STEPS = 4  # local ones, where a test does not say


bad_numbers = pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])


@dataclass(frozen=True)
class Call:
    """An evaluation: of which minibatch of the iteration, how, and where."""

    draw: int
    with_gradient: bool
    theta: Tensor
    samples: int


def no_spoiling(_draw: int, _with_gradient: bool, loss: Tensor) -> Tensor:
    return loss


class Run:
    """A small classifier, its optimizer, minibatches of 10 to 20 samples; records every call."""

    def __init__(self, seed: int = 0, **options: Any) -> None:
        torch.manual_seed(seed)
        self.net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
        self.x = torch.randn(60, 5)
        self.y = (self.x[:, 0] > 0).long() + (self.x[:, 1] > 0.5)
        options = {"local_steps": STEPS, "ahead": False, **options}
        self.optimizer = Stochastic(
            self.net.parameters(), comm=Comm(), **{"momentum": 0.5, **options}
        )
        self.rng = np.random.default_rng(seed)
        self.calls: list[Call] = []
        self.draws = 0  # of the iteration
        self.fresh = True  # whether the iteration begins with a minibatch of its own
        self.spoil: Callable[[int, bool, Tensor], Tensor] = no_spoiling

    @property
    def theta(self) -> Tensor:
        return self.optimizer.flat.vector

    @property
    def control(self) -> int:
        """Which minibatch of the coming iteration is its control batch."""
        return self.optimizer._subdomains[0].solver.steps - 1 + self.fresh

    def minibatch(self) -> NDArray[np.int64]:
        return self.rng.choice(len(self.x), size=self.rng.integers(10, 21), replace=False)

    def batches(self) -> tuple[Callable[[], Tensor], int]:
        draw, index = self.draws, self.minibatch()
        self.draws += 1

        def closure() -> Tensor:
            grad = torch.is_grad_enabled()
            self.calls.append(Call(draw, grad, self.theta.clone(), len(index)))
            return self.spoil(draw, grad, cross_entropy(self.net(self.x[index]), self.y[index]))

        return closure, len(index)

    def step(self) -> Iteration:
        self.calls, self.draws = [], 0
        result = self.optimizer.step(self.batches)
        self.fresh = not result.accepted
        return result

    def step_on(self) -> Iteration:
        """The rest of an iteration in progress."""
        done = None
        while done is None:
            done = self.optimizer.take(self.optimizer.minibatch(self.batches))
        return done

    def warm(self, count: int = 3) -> Run:
        """So many iterations of which the last is accepted."""
        while count > 0 or self.fresh:
            self.step()
            count -= 1
        return self

    def loss(self) -> float:
        """Over all samples."""
        with torch.no_grad():
            return float(cross_entropy(self.net(self.x), self.y))

    def reject(self) -> Iteration:
        """An iteration whose trial point fails."""
        control, before = self.control, self.spoil
        self.spoil = lambda draw, grad, loss: loss + 50.0 * (draw == control and grad)
        result = self.step()
        self.spoil = before
        return result


class Downhill:
    """A slope without an end: every correction is taken and keeps what it promised."""

    def __init__(self, **options: Any) -> None:
        self.x = nn.Parameter(torch.zeros(4))
        self.optimizer = Stochastic([self.x], **{"local_steps": STEPS, "momentum": 0.5, **options})
        self.draws = 0
        self.spoilt: int | None = None  # the minibatch whose loss is far too high

    def batches(self) -> tuple[Callable[[], Tensor], int]:
        extra = 1e9 * (self.draws == self.spoilt)
        self.draws += 1
        return lambda: extra - self.x.double().sum(), 1

    def step(self) -> Iteration:
        self.draws = 0
        result = self.optimizer.step(self.batches)
        assert result.accepted
        return result


class Scripted:
    """Minibatches of given losses: local ones of 1, the control batch's before and at the trial."""

    def __init__(self, **options: Any) -> None:
        self.x = nn.Parameter(torch.zeros(4))
        self.optimizer = Stochastic([self.x], **{"local_steps": STEPS, "momentum": 0.5, **options})
        self.fresh = True

    def step(self, before: float, trial: float, *, uphill: bool = False) -> Iteration:
        """An iteration; all gradients are -1, but where it is to go uphill at the trial point."""
        draws, control = iter(range(STEPS + 1)), STEPS - 1 + self.fresh

        def batches() -> tuple[Callable[[], Tensor], int]:
            draw = next(draws)

            def closure() -> Tensor:
                at_trial = draw == control and torch.is_grad_enabled()
                loss = 1.0 if draw < control else trial if at_trial else before
                total = self.x.double().sum()
                return loss - (total - total.detach()) * (-1.0 if at_trial and uphill else 1.0)

            return closure, 1

        result = self.optimizer.step(batches)
        self.fresh = not result.accepted
        assert result.loss == (trial if result.accepted else before)
        return result
