"""A user's own loop outlives its ranks: what ``StochasticAPTS`` does where one has died.

A death comes up as ``RanksLost``, on every rank that is left, out of whatever message waited for
the dead one. What follows is a resume on fewer ranks, out of memory, as training/recovery.py has it
for the program's own loop: docs/elastic.md.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from typing import Any, TypeVar

import torch
from torch import nn

from apts_mpi.comm.communicator import Comm
from apts_mpi.comm.survivors import Loss, Survivors, furthest
from apts_mpi.errors import RanksLost
from apts_mpi.method.iteration import Iteration
from apts_mpi.method.torch_optimizer import TorchOptimizer

log = logging.getLogger("apts_mpi")

Heard = Callable[[int, int, int], object]
T = TypeVar("T")


class Surviving(TorchOptimizer):
    """Goes on without the ranks that die, where its user wants to hear of them."""

    _survivors: Survivors | None = None  # None: where a rank dies all end
    _heard: Heard
    _kept: dict[str, Any]  # what all ranks have alike, as it was after the last iteration

    def _outlive(self, comm: Comm, heard: Heard | None) -> Comm:
        """The ranks, which from now on may outlive each other if there is who hears of it.

        Raises:
            TypeError: it is no function. RuntimeError: on every rank, where MPI cannot.
        """
        if heard is not None and not callable(heard):
            raise TypeError(
                "on_lost_ranks is no function: give one that takes the rank, the number of ranks "
                "and of iterations, and cuts the data anew"
            )
        if heard is None or comm.size == 1:
            return comm
        try:
            self._survivors = Survivors(comm)
        except RuntimeError as error:
            raise RuntimeError(f"on_lost_ranks: {error}; or leave it out") from error
        self._heard = heard
        return self._survivors.comm

    def _remember(self) -> None:
        """Keep what all ranks have alike before an iteration that not all may complete."""
        if self._survivors is not None:
            last = self.last_iteration
            self._kept = self._in_form(self._method.shared_state())
            self._kept["last"] = None if last is None else asdict(last)
            del self._kept["param_groups"]

    def _jointly(self, work: Callable[[], T]) -> T:
        """What all ranks do together, again where one dies meanwhile.

        Nobody returns while another one needs it.
        """
        if self._survivors is None:
            return work()
        while True:
            try:
                result = work()
            except RanksLost:
                self._recover()
                continue
            if self._survivors.agreed(True):
                return result
            self._go_on_without()

    def _recover(self) -> None:
        """A message has failed on this rank."""
        assert self._survivors is not None
        self._survivors.agreed(False)
        self._go_on_without()

    def _go_on_without(self) -> None:
        """Leave out the dead, begin the iteration anew that the furthest rank is in."""
        assert self._survivors is not None
        while True:
            loss = self._survivors.shrink()
            try:
                self._survivors.renew()
                self.comm = self._survivors.comm
                self._take_up(loss)
                return
            except RanksLost:  # of another one, meanwhile
                self._survivors.agreed(False)

    def _take_up(self, loss: Loss) -> None:
        """What the furthest rank has, and the user's new part of the data."""
        file = io.BytesIO()
        torch.save(self._kept, file)
        root = furthest(self.comm, self._kept["method"]["iterations"])
        data = self.comm.broadcast_bytes(file.getvalue(), root)
        self._kept = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        self._rebuild(self._kept)
        last = self._kept["last"]
        self.last_iteration = None if last is None else Iteration(**last)
        self.comm.check_replicas(self._method.flat.vector)
        done = self.iterations
        if self.comm.rank == 0:
            head = loss.head(f"iteration {done + 1}")
            what = f"what was done of iteration {done + 1}, and {self._method.LOST_ON_RESIZE}"
            log.warning("%s go on after iteration %d; lost: %s", head, done, what)
        self._heard(self.comm.rank, self.comm.size, done)

    # ---- what sends messages, besides steps ------------------------------------------------

    def _change(self) -> None:
        self._jointly(super()._change)
        self._remember()

    @contextmanager
    def averaged(
        self, model: nn.Module | None = None, batches: Iterable[Any] = ()
    ) -> Iterator[None]:
        """As the base class's."""
        averaged, stack = super().averaged, ExitStack()

        def enter() -> None:
            stack.close()  # where another rank has died after this one had entered
            stack.enter_context(averaged(model, batches))

        with stack:
            if model is None:
                enter()
            else:
                self._jointly(enter)
            yield

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """As the base class's."""
        load = super().load_state_dict
        self._jointly(lambda: load(state_dict))
        self._remember()
