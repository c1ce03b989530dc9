"""One process without MPI, for commands that need no other: they run on any login node."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np
from torch import Tensor

from apts_mpi.comm.communicator import Comm

if TYPE_CHECKING:
    from apts_mpi.comm.job import MPI


class Alone(Comm):
    """A ``Comm`` of one rank, which loads no MPI library."""

    def __init__(self) -> None:
        super().__init__(cast("MPI.Comm", _Self()))

    def _split(self, host_number: int | None) -> MPI.Comm:
        return self._mpi

    def _allreduce(self, buffer: np.ndarray | Tensor, op: str) -> None:
        pass


class _Self:
    """What ``Comm`` asks of a communicator, of a single rank."""

    def Get_rank(self) -> int:
        return 0

    def Get_size(self) -> int:
        return 1

    def Barrier(self) -> None:
        pass

    def Bcast(self, buffer: np.ndarray, root: int = 0) -> None:
        pass

    def Allgather(self, own: np.ndarray, everyone: np.ndarray) -> None:
        everyone[0] = own

    def Free(self) -> None:
        pass
