"""An iteration that takes one minibatch at a time and keeps what it needs between, as a generator.

So the loop that draws minibatches may be the program's or a user's own.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Generator, Sequence

from torch import Tensor

from apts_mpi.method.flat import FlatParameters
from apts_mpi.method.interface import require_each
from apts_mpi.method.iteration import Iteration
from apts_mpi.method.state import Numbers
from apts_mpi.method.subdomain import Subdomain
from apts_mpi.trust_region.objective import Batch, Draw


class Stepwise:
    """Drives the generator of a method.

    Attributes:
        turn: the subdomain whose minibatch ``take`` needs next.
    """

    turn = 0
    _running: Generator[None, Batch, Iteration] | None = None  # the iteration in progress

    flat: FlatParameters
    now: Numbers
    _start: Tensor
    _subdomains: Sequence[Subdomain]

    @abstractmethod
    def _iteration(self) -> Generator[None, Batch, Iteration]:
        """One outer iteration; each ``yield`` is a minibatch of the subdomain ``turn``."""

    def iterate(self, *draws: Draw) -> Iteration:
        """One outer iteration; each subdomain's minibatches are drawn as they are needed."""
        require_each(draws, self._subdomains)
        self._abandon()
        result = None
        try:
            while result is None:
                result = self.take(draws[self.turn]())
        finally:
            self._abandon()
        return result

    def take(self, batch: Batch) -> Iteration | None:
        """The next minibatch of the subdomain ``turn``; the iteration, where that completes it.

        What it evaluates is done when it returns, but for the losses of local steps on a GPU.
        """
        if self._running is None:
            self._running = self._iteration()
            next(self._running)
        try:
            self._running.send(batch)
        except StopIteration as completed:
            self._running, self.turn = None, 0
            done: Iteration = completed.value
            return done
        except BaseException:  # nothing can be sent to what has ended
            self._abandon()
            raise
        return None

    def _abandon(self) -> None:
        """Leave an iteration that something has ended before its end, from where it began."""
        if self._running is not None:
            self._running.close()
            self.flat.vector.copy_(self._start)
            self.now.known = False
        self._running, self.turn = None, 0

    def _require_between(self) -> None:
        """The iterate, and vectors that an iteration uses, are only there between iterations."""
        if self._running is not None:
            raise RuntimeError("amid an iteration: wait until take has returned one")
