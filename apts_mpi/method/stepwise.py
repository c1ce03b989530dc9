"""An iteration that takes one minibatch at a time and keeps what it needs between, as a generator.

So the loop that draws minibatches may be the program's or a user's own.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

from torch import Tensor

from apts_mpi.method.flat import FlatParameters
from apts_mpi.method.interface import require_one_per_subdomain
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
    _at_control = False  # whether the next minibatch is its control batch

    flat: FlatParameters
    now: Numbers
    _start: Tensor
    _subdomains: Sequence[Subdomain]

    def _iteration(self) -> Generator[None, Batch, Iteration]:
        """One outer iteration from ``_start``; each ``yield`` is a minibatch of ``turn``'s."""
        raise NotImplementedError

    def _reject(self) -> None:
        """Restore ``_start``, and what must not outlive a correction that was not accepted."""
        raise NotImplementedError

    def iterate(self, *draws: Draw) -> Iteration:
        """One outer iteration; each subdomain's minibatches are drawn as they are needed."""
        require_one_per_subdomain(draws, self._subdomains)
        self.abandon()
        result = None
        try:
            while result is None:
                result = self.take(draws[self.turn]())
        finally:
            self.abandon()
        return result

    def take(self, batch: Batch) -> Iteration | None:
        """The next minibatch of the subdomain ``turn``; the iteration, where that completes it.

        What it evaluates is done when it returns, but for the losses of local steps on a GPU.
        Where something raises, the iteration is abandoned: the next minibatch begins another one.
        """
        try:
            if self._running is None:
                self._start.copy_(self.flat.vector)
                self._running = self._iteration()
                next(self._running)
            self._running.send(batch)
        except StopIteration as completed:
            self._close()
            done: Iteration = completed.value
            return done
        except BaseException:  # nothing can be sent to what has ended
            self.abandon()
            raise
        return None

    @property
    def in_progress(self) -> bool:
        """Whether an iteration is in progress."""
        return self._running is not None

    def abandon(self) -> None:
        """Go back to where an unfinished iteration began, as if its correction were rejected.

        What its minibatches have taught the local steps (their moments and last losses) stays.
        """
        if self._running is not None:
            self._reject()
            self.now.known = False
        self._close()

    def _close(self) -> None:
        """End the iteration in progress, the parameters as they are."""
        if self._running is not None:
            self._running.close()
        self._running, self.turn, self._at_control = None, 0, False
