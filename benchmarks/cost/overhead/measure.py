"""Measurements of ``cost``: an outer iteration against the evaluations it makes, and no more.

The calls of the loss that an outer iteration makes are recorded and made again by a loop
without optimizer, in turns; the ratio of the two times is what the method adds.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

import torch
from torch import Tensor

from apts_mpi.comm.communicator import Comm
from apts_mpi.networks import named
from apts_mpi.networks.losses import cross_entropy
from apts_mpi.networks.task import Task
from apts_mpi.settings.config import TrainConfig
from apts_mpi.settings.defaults import completed
from apts_mpi.training.flat_network import FlatNetwork
from apts_mpi.training.optimizer import optimizer
from apts_mpi.training.provenance import versions
from benchmarks.cost.overhead.command import NETWORKS, Network
from benchmarks.cost.overhead.memory import PeakVectors, bytes_held
from benchmarks.harness.results import Row

BATCH, SAMPLES, CLASSES = 250, 60_000, 10  # per rank; of a training set, for the defaults
POOL = 64  # minibatches that are drawn from in turn
WARM_UP = 3  # iterations: the radius is searched, memory is taken

Call = tuple[int, bool]  # minibatch in the pool, and whether the gradient was wanted
Seconds = tuple[float, float]  # of wall, and of the processor


@dataclass(frozen=True)
class Turn:
    """Calls of an iteration, and the time of it, of the bare loop and of Adam's."""

    calls: list[Call]
    own: Seconds
    bare: Seconds
    adam: Seconds


class Minibatches:
    """Random minibatches in turn; records which of them is evaluated, and how.

    Attributes:
        calls: since they were last cleared.
    """

    def __init__(self, network: FlatNetwork, inputs: int, seed: int) -> None:
        make = torch.Generator().manual_seed(seed)
        self.network = network
        self.pool = [
            (
                torch.randn(BATCH, inputs, generator=make),
                torch.randint(CLASSES, (BATCH,), generator=make),
            )
            for _ in range(POOL)
        ]
        self.calls: list[Call] = []
        self._next = 0

    def draw(self) -> tuple[Callable[[bool], float], int]:
        """The loss over the next one, and its samples."""
        number, self._next = self._next, (self._next + 1) % POOL
        x, y = self.pool[number]
        network, calls = self.network, self.calls

        def objective(with_gradient: bool) -> float:
            calls.append((number, with_gradient))
            return network.loss_and_gradient(x, y) if with_gradient else network.loss(x, y)

        return objective, BATCH


def replay(
    network: FlatNetwork,
    pool: Sequence[tuple[Tensor, Tensor]],
    calls: Sequence[Call],
    after: Callable[[], object] | None = None,
) -> None:
    """Make the same evaluations again.

    Args:
        after: called after every gradient; None is the bare loop.
    """
    for number, with_gradient in calls:
        x, y = pool[number]
        if not with_gradient:
            network.loss(x, y)
            continue
        network.loss_and_gradient(x, y)
        if after is not None:
            after()


def flat_network(network: Network) -> FlatNetwork:
    """The network with its first parameters."""
    task = Task("classification", (network.inputs,), CLASSES)
    module, _ = named.build("mlp", task, {"hidden": network.hidden}, seed=0)
    return FlatNetwork(module, cross_entropy)


class Contest:
    """A local solver's optimizer, the bare loop and Adam, each on a network of its own."""

    def __init__(self, network: Network, solver: str, comm: Comm) -> None:
        self.comm = comm
        self.own, self.bare, self.adams = (flat_network(network) for _ in range(3))
        self.minibatches = Minibatches(self.own, network.inputs, seed=comm.rank)
        config = completed(TrainConfig(local_solver=solver, batch=BATCH), comm.size, SAMPLES)
        self.config = config
        before = bytes_held()
        own = optimizer(config, self.own, comm)
        self._iterate, self.averaged = own.iterate, own.averaged
        for _ in range(WARM_UP):
            self.iterate()
        self.held = self._vectors(bytes_held() - before)
        with PeakVectors(self.own.n) as peak:
            self._iterate(peak.unseen(self.minibatches.draw))
        self.peak = self.held + self._vectors(peak.most)
        before = bytes_held()
        self.adam = torch.optim.Adam(self.adams.module.parameters())
        replay(self.adams, self.minibatches.pool, [(0, True)], self.adam.step)
        self.adam_held = self._vectors(bytes_held() - before)

    def iterate(self) -> list[Call]:
        """An outer iteration; the calls it made."""
        calls = self.minibatches.calls
        calls.clear()
        self._iterate(self.minibatches.draw)
        return list(calls)

    def turns(self, repetitions: int) -> Iterator[Turn]:
        """An iteration, the bare loop and Adam's loop, again and again."""
        pool, calls = self.minibatches.pool, self.iterate()

        def bare() -> None:
            replay(self.bare, pool, calls)

        def adam() -> None:
            replay(self.adams, pool, calls, self.adam.step)

        bare()
        adam()
        for _ in range(repetitions):
            self.bare.vector.copy_(self.own.vector)
            own = self._timed(self.iterate)
            calls = list(self.minibatches.calls)
            yield Turn(calls, own, self._timed(bare), self._timed(adam))

    def _timed(self, what: Callable[[], object]) -> Seconds:
        self.comm.sum_scalars((0.0,))  # all ranks together
        wall, processor = time.perf_counter(), time.process_time()
        what()
        return time.perf_counter() - wall, time.process_time() - processor

    def _vectors(self, size: int) -> float:
        return size / (4 * self.own.n)


def task(comm: Comm, folder: Path, network: str, solver: str, repetitions: int) -> dict[str, Row]:
    """The rows of a network and a solver, on every rank."""
    return measure(NETWORKS[network], solver, comm, repetitions)


def measure(network: Network, solver: str, comm: Comm, repetitions: int) -> dict[str, Row]:
    """A row by method: the solver's, and Adam's over the same loop; rank 0's times."""
    load, threads = os.getloadavg()[0], torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        contest = Contest(network, solver, comm)
        turns = list(contest.turns(repetitions))
    finally:
        torch.set_num_threads(threads)
    gradients = [sum(with_gradient for _, with_gradient in turn.calls) for turn in turns]
    common = {
        "parameters": contest.own.n,
        "local_steps": contest.config.local_steps,
        "memory": contest.config.memory,
        "gradients": median(gradients),
        "forwards": median(len(t.calls) - g for t, g in zip(turns, gradients, strict=True)),
        "repetitions": repetitions,
        "seconds_bare": median(turn.bare[0] for turn in turns),
        "threads_per_rank": 1,
        "load": max(load, os.getloadavg()[0]),
        "versions": versions(),
    }
    own, adam = ([getattr(turn, name) for turn in turns] for name in ("own", "adam"))
    bare = [turn.bare for turn in turns]
    return {
        solver: {**common, **_against(own, bare), "held": contest.held, "peak": contest.peak},
        "adam": {**common, **_against(adam, bare), "held": contest.adam_held, "peak": None},
    }


def _against(own: list[Seconds], bare: list[Seconds]) -> Row:
    """Median seconds, and quartiles of what is added to the bare loop in percent."""
    row: Row = {"seconds": median(wall for wall, _ in own)}
    for i, name in enumerate(("overhead", "overhead_processor")):
        ratios = [a[i] / b[i] for a, b in zip(own, bare, strict=True)]
        row[name] = [100 * (ratio - 1) for ratio in quantiles(ratios, n=4)]
    return row
