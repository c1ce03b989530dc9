"""A rank under the stochastic method, whose every iteration is checked: for programs on ranks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from apts_mpi.comm.communicator import Comm
from apts_mpi.method.iteration import Iteration
from tests.method.driving import Stochastic
from tests.method.problem import data, minibatches, network

STEPS = 4
Spoil = Callable[[int, bool, Tensor], Tensor]


def no_spoiling(_draw: int, _with_gradient: bool, loss: Tensor) -> Tensor:
    return loss


class Rank:
    """This rank's network, optimizer and minibatches: the i-th drawn is the i-th of ``indices``.

    ``spoil`` changes a loss, told the number of the draw in the iteration and whether the gradient
    is wanted. ``work`` is what this rank has evaluated in the iteration, in samples' gradients.
    """

    def __init__(
        self,
        comm: Comm,
        indices: Callable[[int], Tensor],
        samples: tuple[Tensor, Tensor] | None = None,
        **options: Any,
    ) -> None:
        self.comm, self.indices = comm, indices
        self.x, self.y = data() if samples is None else samples
        self.module = network(seed=comm.rank)  # rank 0's values are everyone's
        options = {"shared": False, "momentum": 0.5, "ahead": False, **options}
        options = {"local_steps": STEPS, **options}
        self.optimizer = Stochastic(self.module.parameters(), comm=comm, **options)
        self.steps = int(options["local_steps"])
        self.drawn = self.draws = 0
        self.fresh = True
        self.spoil: Spoil = no_spoiling
        self.work = 0.0
        self.calls: list[tuple[int, bool, Tensor]] = []

    @property
    def theta(self) -> Tensor:
        return self.optimizer.flat.vector

    @property
    def control(self) -> int:
        """Number of the coming iteration's control batch."""
        return self.steps - 1 + self.fresh

    def batches(self) -> tuple[Callable[[], Tensor], int]:
        index, draw = self.indices(self.drawn), self.draws
        self.drawn += 1
        self.draws += 1

        def closure() -> Tensor:
            assert len(index), "a loss over no samples was asked for"
            grad = torch.is_grad_enabled()
            self.work += len(index) * (1.0 if grad else 1 / 3)
            self.calls.append((draw, grad, self.theta.clone()))
            return self.spoil(
                draw, grad, F.cross_entropy(self.module(self.x[index]), self.y[index])
            )

        return closure, len(index)

    def step(self) -> Iteration:
        """An iteration; what holds of every one is asserted."""
        comm, traffic = self.comm, self.comm.traffic
        self.work, self.draws, self.calls = 0.0, 0, []
        first, control = self.optimizer.iterations == 0, self.control
        before = copy.copy(traffic)
        result = self.optimizer.step(self.batches)
        sent = (
            traffic.vector_allreduces - before.vector_allreduces,
            traffic.scalar_allreduces - before.scalar_allreduces,
        )
        if not first:
            assert sent == (1, 1 if result.local_accepted else 0), sent
        assert (traffic.broadcasts, traffic.agreements) == (before.broadcasts, before.agreements)
        assert self.draws == control + 1
        self.fresh = not result.accepted
        comm.check_replicas(self.theta)
        comm.check_replicas(self.optimizer.average)
        state = self.optimizer.state_dict()
        comm.check_replicas(state["velocity"])
        numbers = [result.loss, result.rho, result.radius, result.local_reduction]
        comm.require_same("results", [repr(result), repr(self.optimizer.radius)])
        comm.check_replicas(torch.tensor(numbers))
        (work,) = comm.sum_scalars((self.work,))
        assert abs(work - result.gradient_evaluations) < 1e-6, (work, result.gradient_evaluations)
        assert self.optimizer.rule.minimum <= result.radius <= 2.0 * self.optimizer.now.reach
        for name in ("m", "v"):
            assert bool(state["subdomains"]["0"]["local"][name].isfinite().all())
        assert bool(self.theta.isfinite().all())
        return result

    def warm(self, count: int = 3) -> Rank:
        """So many iterations, the last of them accepted."""
        while count > 0 or self.fresh:
            self.step()
            count -= 1
        return self


def uneven(comm: Comm) -> Callable[[int], Tensor]:
    """Minibatches of which rank d has about d + 1 shares."""
    return lambda i: minibatches(i, comm.size)[comm.rank]


def spoiled_trial(rank: Rank, spoil: Callable[[Tensor], Tensor]) -> Spoil:
    """The coming iteration's joined trial goes wrong."""
    control = rank.control
    return lambda draw, grad, loss: spoil(loss) if draw == control and grad else loss


def is_last(comm: Comm) -> bool:
    """One rank alone."""
    return comm.rank == comm.size - 1
