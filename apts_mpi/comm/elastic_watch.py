"""A watch over ranks that can go on without one that stands still: that one is killed.

What MPI then sees is a rank that has died. One that no other can kill, on another host, may read
that it is lost and end itself.
"""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from apts_mpi.comm.status_board import RECOVERY, News, Ranks, Status, StatusBoard, born, rounded
from apts_mpi.comm.watch import Watch


@dataclass(frozen=True)
class Process:
    """A rank's process, as others find it.

    Attributes:
        host, pid: where it is. born: what no other process with its number has.
    """

    host: str
    pid: int
    born: str

    @classmethod
    def of(cls, fact: str) -> Process:
        """From the text that ``Watch`` has of every rank."""
        host, pid, start = fact.split()
        return cls(host, int(pid), start)

    def __str__(self) -> str:
        return f"{self.host} (process {self.pid})"

    @property
    def stopped(self) -> bool:
        """Whether it was stopped by a signal, as far as this host's system says."""
        try:
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
        except (OSError, IndexError):
            return False

    def end(self) -> None:
        """Kill it, if it is still there; called on its host."""
        if self.born == born(self.pid):
            os.kill(self.pid, signal.SIGKILL)


@dataclass
class Left:
    """What the watch needs of ranks before they have a ``Comm``; it knows them already."""

    rank: int
    size: int
    host: str = ""

    def gather_texts(self, text: str) -> list[str]:
        """Not asked for."""
        raise NotImplementedError


class ElasticWatch(Watch):
    """As ``Watch``, and ranks that have not arrived in time are killed.

    Args:
        ranks, warning, abort, facts: as its. lose: seconds that a rank may keep others waiting; 0
            or infinity: for ever.
    """

    def __init__(
        self,
        ranks: Ranks,
        warning: float,
        abort: float,
        *,
        lose: float,
        facts: Sequence[str] | None = None,
    ) -> None:
        super().__init__(ranks, warning, abort, facts=facts)
        self._lose = lose or math.inf
        self._first = min(self._first, self._lose)
        self.interval = min(1.0, self._first / 8)
        self._watches = True  # one that is left alone, too: its launcher
        self._rest(self._state)

    def recover(self) -> None:
        """A call begins that ranks come to from different ones, as one of them has died."""
        self._state = (RECOVERY, "recovery")

    def advance(self, seconds: float) -> None:
        """As its; without the launcher, whose end MPI does not tell here, this process ends."""
        if os.getppid() != self._parent:
            self._say(f"{self._peers.name(self._rank)} ends, as its launcher is gone")
            self._end_process(0.1)
            return
        if self._size > 1:
            super().advance(seconds)

    def _move(self, state: tuple[int, str | None]) -> None:
        if state[0] == RECOVERY:
            self._reported = None  # they have not arrived
        super()._move(state)

    def _exchange(self, board: StatusBoard, status: Status | None, look: bool) -> News:
        self._end_those(board.gone())
        return super()._exchange(board, status, look)

    def _end_those(self, ranks: Iterable[int]) -> None:
        """Kill those of some ranks that are on this host."""
        host = Process.of(self.facts[self._rank]).host
        for process in (Process.of(self.facts[rank]) for rank in ranks):
            if process.host == host:
                process.end()

    def _guess(self, why: str) -> None:
        """As its; without files those that were stopped by a signal can be told, on this host."""
        if self._age >= self._lose:
            processes = map(Process.of, self.facts)
            self._end_those(rank for rank, each in enumerate(processes) if each.stopped)
        super()._guess(why)

    def _report(self, line: str, missing: list[int]) -> None:
        board = self._board
        if missing and board is not None and self._lose <= self._due < self._abort:
            self._reported = missing
            self._say(f"{line}; taken for lost (--rank-timeout)")
            status = self._status()
            self._errands.do(lambda: board.lose(missing, status))
            self._end_those(missing)
            self._later()
        elif self._due < self._lose < self._abort:
            self._reported = missing
            self._say(f"{line}; taken for lost after {rounded(self._lose)} (--rank-timeout)")
            self._later()
        else:
            super()._report(line, missing)

    def _later(self) -> None:
        before, shift = self._due, self._look - self._due
        super()._later()
        if before < self._lose < self._due:
            self._due = self._lose
            self._look = max(self._due + shift, self._age)
