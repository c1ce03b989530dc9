"""Minibatches of a user's loop, one by one, where the loops of ranks may be of several lengths."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from apts_mpi.errors import RanksLost
from apts_mpi.method.iteration import Iteration
from apts_mpi.method.stochastic import StochasticMethod
from apts_mpi.method.surviving import Surviving
from apts_mpi.trust_region.objective import Batch

_NOTHING: Batch = (lambda with_gradient: 0.0), 0  # a minibatch without samples


class Joining(Surviving):
    """What ``StochasticAPTS`` does with a minibatch, and where there is none any more."""

    _method: StochasticMethod | None
    _joining = False
    _agreed: BaseException | None = None  # an error that every rank has raised

    @property
    def _method_now(self) -> StochasticMethod:
        assert self._method is not None
        return self._method

    def _require_join(self) -> None:
        """Loops of ranks that are left may be of several lengths."""
        if self._survivors is not None and not self._joining:
            raise RuntimeError(
                "with on_lost_ranks steps are within join(): put `with optimizer.join():` around "
                "the loop, so that ranks that are left end it together"
            )

    def _take(self, batch: Batch) -> None:
        method = self._method_now
        try:
            if self._joining and method.meets:
                self._out(0.0)
            done = method.take(batch)
            if self._joining and method.messages.error is not None:
                self._out(0.0)  # which raises on every rank
            while done is None and method.messages.error is not None:
                done = method.take(_NOTHING)  # until a message raises on every rank
        except BaseException as error:
            method.abandon()
            self._agreed = error
            raise
        self._took(done)

    def _took(self, done: Iteration | None) -> None:
        self._gradient_version = self._method_now.flat.gradient._version
        if done is not None:
            self.last_iteration = done
            self._remember()

    # ---- loops of several lengths ----------------------------------------------------------

    @contextmanager
    def join(self) -> Iterator[None]:
        """Around a loop: a rank that has run out of minibatches takes part until all have.

        It takes part without samples. The outer iteration in which the last rank runs out continues
        in the next loop. An error in a rank's loop is raised on every rank.

        Raises:
            AgreedError: the loop of another rank has raised an error.
        """
        if self._joining:
            raise RuntimeError("join() within join()")
        self._joining = self.comm.size > 1 or self._survivors is not None
        try:
            yield
            if self._joining:
                self._jointly(self._take_part)
        except Exception as error:
            if self._joining and error is not self._agreed and not isinstance(error, RanksLost):
                self._fail(error)
                self._out(1.0)
            raise
        finally:
            self._joining = False

    def _take_part(self) -> None:
        """Without minibatches, until no rank has any more."""
        while self._out(1.0) < self.comm.size:
            meets = False
            while not meets:
                meets = self._method_now.meets
                self._took(self._method_now.take(_NOTHING))

    def _out(self, out: float) -> float:
        """How many ranks have run out, before a message; every rank says whether it has."""
        try:
            return self._method_now.messages.sum((out,))[0]
        except Exception as error:
            self._agreed = error
            raise
