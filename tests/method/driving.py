"""To run what takes one minibatch at a time, from a function that draws them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from functools import partial
from typing import Any, TypeVar

from torch import Tensor, nn

from apts_mpi.comm.communicator import Comm
from apts_mpi.method import interface
from apts_mpi.method.apts import DeterministicMethod
from apts_mpi.method.closures import Closures
from apts_mpi.method.flat import FlatParameters
from apts_mpi.method.iteration import Iteration
from apts_mpi.method.stochastic import StochasticMethod
from apts_mpi.trust_region.objective import Batch, Draw

T = TypeVar("T")
Parameters = Iterable[nn.Parameter] | FlatParameters
Give = Callable[[], tuple[Callable[[], Tensor], int]]  # a closure and its samples


def driven(steps: Generator[None, Batch, T], draw: Draw) -> T:
    """What it returns in the end."""
    try:
        next(steps)
        while True:
            steps.send(draw())
    except StopIteration as end:
        done: T = end.value
        return done


def flat_of(parameters: Parameters) -> FlatParameters:
    """Parameters, flat already or not."""
    return parameters if isinstance(parameters, FlatParameters) else FlatParameters(parameters)


class Stochastic(StochasticMethod):
    """The stochastic method over closures: a whole outer iteration per step, of any subdomains."""

    def __init__(self, parameters: Parameters, *, comm: Comm | None = None, **options: Any) -> None:
        super().__init__(flat_of(parameters), comm=comm or Comm(), **options)
        self.closures = Closures(self.flat, warns=False)

    def minibatch(self, give: Give) -> Batch:
        """The next one of a function that gives a closure and its samples."""
        closure, samples = give()
        return self.closures.objective(closure)[0], interface.count(samples)

    def step(self, *gives: Give) -> Iteration:
        """An outer iteration, whose minibatches are drawn as they are needed."""
        with self.closures.called():
            return self.iterate(*(partial(self.minibatch, give) for give in gives))


class Deterministic(DeterministicMethod):
    """The published method over closures, of any subdomains."""

    def __init__(self, parameters: Parameters, *, comm: Comm | None = None, **options: Any) -> None:
        super().__init__(flat_of(parameters), comm=comm or Comm(), **options)
        self.closures = Closures(self.flat, warns=False)

    def step(
        self, *closures: Callable[[], Tensor], samples: int | list[int], same_batch: bool = False
    ) -> Iteration:
        """An outer iteration."""
        counts = samples if isinstance(samples, list) else [samples]
        with self.closures.called():
            batches = [
                (self.closures.objective(closure, repeats=same_batch)[0], interface.count(number))
                for closure, number in zip(closures, counts, strict=True)
            ]
            return self._iterate(batches)
