"""A user's own loop whose ranks die: ``mpirun --with-ft ulfm -n 3 python programs.py surviving.X``.

What ranks leave in the working folder another of these functions reads.
"""

from __future__ import annotations

import os
import signal
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from apts_mpi import Comm, StochasticAPTS
from apts_mpi.errors import RanksLost
from tests.method.loop_programs import X, loss_of, minibatches, network, same

FIRST, LAST = 4, 9  # iterations after which rank 1 dies, and at the end


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Loop:
    """A loop of ranks that die: their numbers, those at first, and the iterations before.

    Args:
        hearing: whether rank 2 dies as it hears of it.
    """

    def __init__(
        self, *deaths: tuple[int, int], local_steps: int = 1, hearing: bool = False
    ) -> None:
        self.dies_hearing = hearing
        self.number, self.deaths = Comm().rank, deaths
        self.heard, self.states = list[tuple[int, int, int]](), list[dict[str, Any]]()
        self.net = network()
        self.optimizer = StochasticAPTS(
            self.net.parameters(), local_steps=local_steps, on_lost_ranks=self.hear
        )

    def hear(self, rank: int, size: int, iterations: int) -> None:
        assert (rank, size) == (self.optimizer.comm.rank, self.optimizer.comm.size)
        self.heard.append((rank, size, iterations))
        self.states.append(self.optimizer.state_dict())
        if self.number == 2 and self.dies_hearing:
            die()

    def closure(self, index: Tensor) -> Tensor:
        if (self.number, self.optimizer.iterations) in self.deaths:
            die()
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


def another_dies_meanwhile() -> None:
    """Rank 0 dies, and as the others hear of it rank 2: rank 1 ends alone what they began."""
    loop = Loop((0, FIRST), local_steps=3, hearing=True)
    optimizer = loop.optimizer
    with optimizer.join():
        loop.run(minibatches(loop.number, 60), LAST)
    assert loop.heard == [(0, 2, FIRST), (0, 1, FIRST)]
    assert (optimizer.comm.size, optimizer.iterations) == (1, LAST)
    last = optimizer.last_iteration
    assert last is not None
    assert last.radius == optimizer.radius


def between_loops() -> None:
    """Ranks die where the loop sends no messages, or messages of its own."""
    loop = Loop(local_steps=3)
    net, optimizer = loop.net, loop.optimizer
    net.insert(1, norm := nn.BatchNorm1d(8))
    with optimizer.join():
        loop.run(minibatches(loop.number, 12), LAST)
    if loop.number == 1:
        die()
    with optimizer.averaged(net, [X[: 30 * (loop.number + 1)]]):
        comm = optimizer.comm
        assert comm.size == 2
        assert isinstance(norm.running_mean, Tensor)
        comm.check_replicas(norm.running_mean)
        comm.check_replicas(loop.theta)
    before = optimizer.state_dict()
    if loop.number == 0:
        die()
    try:
        comm.maximum(np.zeros(1))
    except RanksLost:
        assert optimizer.comm is comm
    optimizer.load_state_dict(before)
    assert (optimizer.comm.size, len(loop.heard)) == (1, 2)
    with optimizer.join():
        loop.run(minibatches(loop.number, 12, 1), LAST)
    assert optimizer.iterations > before["method"]["iterations"]


def cannot() -> None:
    """Without what MPI needs for it: one line."""
    try:
        Loop()
    except RuntimeError as error:
        print(error)
