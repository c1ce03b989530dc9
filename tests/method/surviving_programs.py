"""A user's own loop whose ranks die: ``mpirun --with-ft ulfm -n 3 python programs.py surviving.X``.

What ranks leave in the working folder another of these functions reads.
"""

from __future__ import annotations

import os
import signal
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from apts_mpi import Comm, StochasticAPTS
from apts_mpi.errors import RanksLost
from tests.method.loop_programs import loss_of, minibatches, network, same

FIRST, LAST = 4, 9  # iterations after which rank 1 dies, and at the end


class Loop:
    """A loop of ranks that die: their numbers, those at first, and the iterations before."""

    def __init__(self, *deaths: tuple[int, int], local_steps: int = 1, **options: Any) -> None:
        self.number, self.deaths = Comm().rank, deaths
        self.heard, self.states = list[tuple[int, int, int]](), list[dict[str, Any]]()
        self.net = network()
        self.optimizer = StochasticAPTS(
            self.net.parameters(), local_steps=local_steps, on_lost_ranks=self.hear, **options
        )

    def hear(self, rank: int, size: int, iterations: int) -> None:
        assert (rank, size) == (self.optimizer.comm.rank, self.optimizer.comm.size)
        self.heard.append((rank, size, iterations))
        self.states.append(self.optimizer.state_dict())

    def live(self, place: str, iterations: int) -> None:
        if (self.number, iterations) in self.deaths or (self.number, place) in self.deaths:
            os.kill(os.getpid(), signal.SIGKILL)

    def closure(self, index: Tensor) -> Tensor:
        self.live("closure", self.optimizer.iterations)
        return loss_of(self.net, index)

    def run(self, batches: list[Tensor], until: int) -> None:
        for index in batches:
            if self.optimizer.iterations < until:
                self.optimizer.step(partial(self.closure, index), samples=len(index))

    @property
    def theta(self) -> Tensor:
        return nn.utils.parameters_to_vector(self.net.parameters()).detach()


def shared(state: dict[str, Any]) -> dict[str, Any]:
    """What of a state all ranks have alike; but for ``known``, which a loss of ranks clears."""
    own = ("known", "subdomains", "options", "lost", "taken")
    numbers = {name: value for name, value in state["method"].items() if name not in own}
    vectors = {
        (k, name): entries[name].tolist()
        for k, entries in state["state"].items()
        for name in ("iterate", "velocity", "average")
    }
    return {**numbers, **vectors}


def goes_on() -> None:
    """Rank 1 dies amid a step: what the others have then, and where they come to."""
    loop = Loop((1, FIRST))
    optimizer = loop.optimizer
    with optimizer.join():
        loop.run(minibatches(loop.number, 60), FIRST)
        before = optimizer.state_dict()
        loop.run(minibatches(loop.number, 60, 1), LAST)
    assert loop.heard == [(loop.number // 2, 2, FIRST)]
    assert shared(loop.states[0]) == shared(before)
    torch.save(loop.states[0], f"state-{loop.number}.pt")
    torch.save(loop.theta, f"theta-{loop.number}.pt")
    same(optimizer.comm, optimizer)


def resumed() -> None:
    """On two ranks, from what ranks 0 and 2 had once rank 1 was left out: bit for bit."""
    comm, net = Comm(), network()
    number = 2 * comm.rank
    optimizer = StochasticAPTS(net.parameters(), local_steps=1)
    optimizer.load_state_dict(torch.load(f"state-{number}.pt", weights_only=True))
    with optimizer.join():
        for index in minibatches(number, 60, 1):
            if optimizer.iterations < LAST:
                optimizer.step(partial(loss_of, net, index), samples=len(index))
    theta = nn.utils.parameters_to_vector(net.parameters())
    assert torch.equal(theta, torch.load(f"theta-{number}.pt", weights_only=True))
