"""What ranks that are left do where others have died: a run's and those of a user's own loop.

They agree, and leave the dead out (elastic.py). One that is furthest then hands what all ranks have
alike to the others, so that all have the same bits whatever message broke off where.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from apts_mpi.comm import job
from apts_mpi.comm.communicator import Comm
from apts_mpi.comm.elastic import Guarded, unavailable
from apts_mpi.comm.watch import Watch


@dataclass(frozen=True)
class Loss:
    """Ranks that have died.

    Attributes:
        ranks: the launcher's numbers of them. before: those of all until then. after: those of the
            ranks that are left.
    """

    ranks: list[int]
    before: list[int]
    after: list[int]

    def head(self, phase: str, processes: Sequence[object] = ()) -> str:
        """The beginning of a line about it, which says what those that are left do.

        Args:
            phase: what the ranks were doing. processes: of the dead, where they are known.
        """
        names = [f"rank {number}" for number in self.ranks]
        if processes:
            names = [f"{name} on {each}" for name, each in zip(names, processes, strict=True)]
        are = "is" if len(names) == 1 else "are"
        left = f"{len(self.after)} of {len(self.before)} ranks are left"
        return f"{', '.join(names)} {are} gone (in {phase}): {left} and"


def without_dead(guarded: Guarded) -> tuple[Guarded, Loss]:
    """The ranks that are left, and who is not; every one of them calls it.

    Raises:
        AgreedError: on every rank, where a call has failed and none has died.
    """
    before = guarded.numbers()
    left = guarded.shrink()
    after = left.numbers()
    job.shrunk(left.Get_rank(), left.Get_size())
    return left, Loss([number for number in before if number not in after], before, after)


def furthest(comm: Comm, place: int) -> int:
    """The rank that is furthest, the lowest of them; every rank calls it, with how far it is."""
    places = np.array([float(place)])
    comm.maximum(places)
    first = np.array([comm.rank if place == places[0] else comm.size])
    comm.allreduce(first, "MIN")
    return int(first[0])


class Survivors:
    """The ranks that are left of those that a ``Comm`` had; every one of them makes one.

    Args:
        comm: all of them.

    Raises:
        RuntimeError: on every rank, where the MPI library or its launcher cannot.

    Attributes:
        comm: those that are left; its calls raise RanksLost where one has died.
    """

    def __init__(self, comm: Comm) -> None:
        why = None if comm.elastic else unavailable()
        if why is not None:
            raise RuntimeError(why)
        ranks = comm._mpi
        self._ranks = ranks if isinstance(ranks, Guarded) else Guarded(ranks)
        self.comm = comm
        self.renew()

    def agreed(self, fine: bool) -> bool:
        """Whether all that are left say so, or one has seen a death; every one of them calls it."""
        if self.comm.watch is not None:
            self.comm.watch.enter("recovery")
        try:
            return self._ranks.agreed(fine)[0]
        finally:
            if self.comm.watch is not None:
                self.comm.watch.leave()

    def shrink(self) -> Loss:
        """Leave the dead out; every rank that is left calls it, and then ``renew``."""
        self._ranks, loss = without_dead(self._ranks)
        return loss

    def renew(self) -> None:
        """Have a ``Comm`` that is as the one before, over the ranks that there are now.

        With its counts so far, and with a watch of its own where that has one.

        Raises:
            RanksLost: another one has died.
        """
        old = self.comm
        made = Comm(self._ranks, timed=old.clock.on, hierarchical=old._node is not None)
        made.clock, made.traffic = old.clock, old.traffic
        made.watch = old.watch.renewed(made) if isinstance(old.watch, Watch) else old.watch
        self.comm = made
