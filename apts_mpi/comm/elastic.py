"""Ranks that die while the others go on: ULFM's revoke, agree and shrink, behind one exception.

ULFM is a part of an MPI library that reports a dead rank as an error of the calls that wait for
it. Whoever sees one revokes the communicator and those derived from it, so that no other rank keeps
waiting in them, and raises ``RanksLost``. What catches it is training/recovery.py: the survivors
agree that one was lost (``agreed``) and ``shrink``. Nothing is sent as long as nobody dies.
"""

from __future__ import annotations

import faulthandler
import math
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from apts_mpi.comm import job
from apts_mpi.comm.job import MPI
from apts_mpi.errors import AgreedError, RanksLost
from apts_mpi.files.streams import write_error

_TRIES, _PAUSE = 60, 0.25  # a death is known to MPI some time after the first call that fails
_SLACK = 1.0  # seconds a process may be late on a busy machine
_REMEDY = "start with Open MPI 5's mpirun --with-ft ulfm (docs/elastic.md)"


def unavailable() -> str | None:
    """Why the MPI library or its launcher lets no rank outlive another; None if they do."""
    try:
        MPI.COMM_WORLD.Is_revoked()
    except NotImplementedError:
        return f"{job.library_version()} has no ULFM: {_REMEDY}"
    if "Open MPI" in job.library_version() and not job.tolerates_faults():
        return f"{job.library_version()} has its fault tolerance off: {_REMEDY}"
    return None


@contextmanager
def bounded(seconds: float) -> Iterator[None]:
    """Within, MPI starts; where that takes longer, this process ends with status 1 and a line.

    A rank that dies before MPI has started on all keeps the others waiting in its start, for ever
    and with no thread of theirs running: so another process says it, for the first two ranks.

    Args:
        seconds: the limit; 0 or infinity: none.
    """
    if job.is_loaded() or not 0 < seconds < math.inf:
        yield
        return
    number, own, child = getattr(job.launched(), "rank", 0), os.getpid(), 0
    with open(os.devnull, "w") as nowhere:
        faulthandler.dump_traceback_later(seconds + _SLACK, exit=True, file=nowhere)
        if number < 2 and (child := os.fork()) == 0:
            end = time.monotonic() + seconds
            while os.getppid() == own and time.monotonic() < end:
                time.sleep(0.1)
            if os.getppid() == own:
                why = f"MPI has not started on all ranks after {seconds:g} s (--stall-abort)"
                write_error(f"apts_mpi: rank {number} on {socket.gethostname()} ends: {why}\n")
            os._exit(0)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()
            if child:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)


class Guarded:
    """A communicator whose calls revoke it and raise RanksLost where they fail.

    Those that are split from it are guarded too, and revoked with it.

    Args:
        communicator: of mpi4py. family: for those that are split from one that is guarded.
    """

    def __init__(self, communicator: MPI.Comm, family: list[MPI.Comm] | None = None) -> None:
        communicator.Set_errhandler(MPI.ERRORS_RETURN)
        self.communicator = communicator
        self._family = [] if family is None else family
        self._family.append(communicator)

    @classmethod
    def world(cls) -> Guarded:
        """All ranks; Misfit where these are fewer than a launcher has started processes."""
        job.check(MPI.COMM_WORLD.Get_size(), job.library_version())
        return cls(MPI.COMM_WORLD)

    def __getattr__(self, name: str) -> Any:
        function = getattr(self.communicator, name)

        def guarded(*arguments: Any, **named: Any) -> Any:
            try:
                result = function(*arguments, **named)
            except MPI.Exception as error:
                self.revoke()
                raise RanksLost(f"{name}: {error}") from error
            split = isinstance(result, MPI.Comm) and result != MPI.COMM_NULL
            return Guarded(result, self._family) if split else result

        setattr(self, name, guarded)  # so that it is looked up once
        return guarded

    def revoke(self) -> None:
        """Have all calls on it and its family fail, on every rank, from now on."""
        for each in self._family:
            if each != MPI.COMM_NULL and not each.Is_revoked():
                each.Revoke()

    def agreed(self, fine: bool, known: bool = True) -> tuple[bool, bool]:
        """Of each, whether all ranks that are left say so; of the first, and none has died."""
        for _ in range(_TRIES):
            dead = self.communicator.Ack_failed()
            try:
                both = self.communicator.Agree(int(fine and not dead) + 2 * known)
            except MPI.Exception:  # on all alike: another one has died
                continue
            return bool(both & 1), bool(both & 2)
        return False, False

    def shrink(self) -> Guarded:
        """The ranks that are left, in their order; every one of them calls it.

        Raises:
            AgreedError: on every rank, where a call has failed and none has died.
        """
        for _ in range(_TRIES):
            try:
                left = Guarded(self.communicator.Shrink())
            except MPI.Exception:
                continue
            if left.communicator.Get_size() < self.communicator.Get_size():
                return left
            time.sleep(_PAUSE)
        raise AgreedError("an MPI call has failed, and no rank has died", status=1)

    def numbers(self) -> list[int]:
        """The launcher's numbers of its ranks."""
        group = self.communicator.Get_group()
        return list(MPI.Group.Translate_ranks(group, None, MPI.COMM_WORLD.Get_group()))


def die() -> NoReturn:
    """End this rank alone; the others see it die."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise SystemExit(1)
