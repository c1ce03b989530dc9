"""Ranks that wait for one that does not come: which one, where it is, and the end of the run.

A rank counts its calls that wait for others. A thread of its own checks now and then; only once
nothing has moved for a while does it write what the rank is doing into a small file, and read the
other ranks' files. The lowest rank that waits reports what they say. No message is sent, as the
ranks that would have to answer are the ones that may not be able to.
"""

from __future__ import annotations

import contextlib
import faulthandler
import math
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from apts_mpi.comm import job
from apts_mpi.comm.status_board import (
    Errands,
    News,
    Peers,
    Ranks,
    Status,
    StatusBoard,
    born,
    lines_of,
    place,
    rounded,
)
from apts_mpi.files.streams import write_error

FOLDER = ".watch"  # in the run directory, while there is something in it
_GRACE = 5.0  # seconds for the launcher to end the processes, before they end by themselves
_SLACK = 2.0  # seconds a thread may be late on a busy machine


class Watch:
    """A thread that reports, and finally ends, a run whose ranks wait for one that does not come.

    Every rank makes one, as its construction sends a message, and gives it to its ``Comm``::

        with Watch(comm, warning=60, abort=600) as comm.watch:
            ...

    A single rank is not watched, and ranks that all compute are no stall, as nobody waits. A stall
    counts from the last rank that arrived; time in which this thread was not woken (the job was
    suspended, the machine slept) does not count.

    Args:
        ranks: the ``Comm``.
        warning: seconds of waiting after which one line on standard error says which ranks have
            not arrived; again after twice the time, and so on. 0 or infinity: never.
        abort: seconds after which the run ends with exit status 1. 0 or infinity: never.
        facts: as the attribute, where they are known; then no message is sent.

    Attributes:
        facts: of every rank its host, process, and what no other process with its number has.
        directory: where the folder of the files is made, the same on all ranks and on a file
            system that all hosts see; may be set at any time. None: which ranks are missing is not
            known.
    """

    def __init__(
        self,
        ranks: Ranks,
        warning: float = 60.0,
        abort: float = 600.0,
        *,
        facts: Sequence[str] | None = None,
    ) -> None:
        if not (warning >= 0 and abort >= 0):
            raise ValueError(f"warning {warning} and abort {abort} must be seconds, 0 for never")
        self.directory: Path | None = None
        self._limits, self._rank, self._size = (warning, abort), ranks.rank, ranks.size
        self._abort = abort or math.inf
        self._first = min(warning or math.inf, self._abort)  # what comes first of the two
        self._watches = self._size > 1 and self._first < math.inf
        self.interval = min(1.0, self._first / 8)
        own = f"{ranks.host[:64]} {os.getpid()} {born(os.getpid()) or time.time_ns()}"
        self.facts = facts or (ranks.gather_texts(own) if ranks.size > 1 else [own])
        self._job = f"{self.facts[0]} {len(self.facts)}"  # ranks may be fewer later on
        self._peers = Peers(self.facts)
        self._parent = os.getppid()
        self._board: StatusBoard | None = None
        self._errands = Errands(_GRACE)
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._end: IO[str] | None = None  # open once the end has been set
        self._main = threading.get_ident()
        # Number of the main thread's call, and its name while it is in it. Assigned as one, so that
        # the watching thread sees no half of a change.
        self._state: tuple[int, str | None] = (0, None)
        self._rest(self._state)

    def __enter__(self) -> Watch:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def enter(self, call: str) -> None:
        """A call begins that returns only when other ranks have arrived, too."""
        self._state = (self._state[0] + 1, call)

    def leave(self) -> None:
        """It has returned."""
        self._state = (self._state[0], None)

    def start(self) -> None:
        """Watch, from now on, the thread that calls this."""
        self._main = threading.get_ident()
        if self._watches:
            self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Watch no more; this rank's file is removed."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(_GRACE)

    def renewed(self, ranks: Ranks) -> Watch:
        """The same over other ranks, from now on; this one ends. Every rank calls it."""
        self.stop()
        watch = Watch(ranks, *self._limits)
        watch.directory = self.directory
        watch.start()
        return watch

    def _run(self) -> None:
        last = time.monotonic()
        while not self._stopped.wait(self.interval):
            now = time.monotonic()
            self.advance(now - last)
            last = now
        if self._end is None:  # else it says what this rank did
            self._remove()

    def _rest(self, state: tuple[int, str | None]) -> None:
        """The main thread is in a new state, in which it rests until further notice."""
        self._seen = state
        self._age = 0.0  # seconds in it
        self._posted = False  # whether there may be a file
        self._renew = self._first / 2  # age at which to write it, or to write it again
        self._due = self._first  # the next length of a stall to report
        self._look = self._first  # age at which to look whether it is one
        self._reported: list[int] | None = None  # who had not arrived then

    def advance(self, seconds: float) -> None:
        """Check on the ranks; so many seconds have passed since the last call."""
        if self._board is None and self.directory is not None:
            self._board = StatusBoard(self.directory / FOLDER, self._job)
            if self._rank == 0:
                self._errands.do(self._board.clear)
        state, suspended = self._state, seconds > 10 * self.interval
        if state is not self._seen:
            self._move(state)
        elif suspended:  # so others may have been, and all files are old
            self._renew = min(self._renew, self._age) if self._posted else self._renew
            self._look = max(self._look, self._age + self._first / 4)
        else:
            self._age += seconds
        if self._posted or self._age >= self._renew:
            self._consider()

    def _move(self, state: tuple[int, str | None]) -> None:
        """The main thread has moved on."""
        call, name = self._seen
        if self._reported is not None:
            who = self._peers.names(self._reported)
            what = f"{who} arrived" if who else "the ranks continue"
            self._say(f"{what} at {place(name, call)} after {rounded(self._age)}")
        posted, arrives = self._posted, name is None and state[1] and state[0] == call + 1
        self._rest(state)
        if posted and arrives:
            self._posted, self._renew = True, 0.0  # others may have long waited: they see it now
        elif posted:
            self._remove()

    def _consider(self) -> None:
        """Write this rank's file if it is time, and see what the others' files say."""
        status = self._status() if self._age >= self._renew else None
        look = self._seen[1] is not None and self._age >= self._look
        if status is None and not look:
            return
        news: News | str = "there is no run directory yet"
        if self._board is not None:
            board, self._posted = self._board, True
            news = self._errands.do(lambda: self._exchange(board, status, look))
        if self._age >= self._first and os.getppid() != self._parent:
            self._say(f"{self._peers.name(self._rank)} ends, as its launcher is gone")
            self._end_process(0.1)
        elif isinstance(news, str):
            if look:
                self._guess(news)
        elif news.ended:
            self._end_process(_GRACE)
        else:
            self._renew = self._renew if status is None else self._age + self._pause()
            if look:
                self._judge(news)

    def _exchange(self, board: StatusBoard, status: Status | None, look: bool) -> News:
        if status is not None:
            board.post(status)
        if not look:
            return News(board.ended(), False, {})
        return board.read(self._rank, self._size, time.time())

    def _judge(self, news: News) -> None:
        """Report a stall if there is one, and end the run if it is too long."""
        if not news.reports:
            self._later()
            return
        now, (call, name) = time.time(), self._seen
        seen = {rank: other for rank, other in news.others.items() if not other.late(now)}
        stall = min([self._age, *(each.age(now) for each in seen.values() if each.waiting)])
        if stall < self._due:
            self._look = self._age + self._due - stall
            return
        missing = [
            rank
            for rank in range(self._size)
            if rank != self._rank and (rank not in seen or seen[rank].call < call)
        ]
        wait = f"waited {rounded(stall)} at {place(name, call)}"
        self._report(self._peers.stalled(wait, missing, news.others, now), missing)

    def _guess(self, why: str) -> None:
        """The same without files; the lowest two ranks report, as one of them may be missing."""
        if self._rank > 1 and self._age < self._abort + _GRACE:
            self._due, self._look = self._abort, self._abort + _GRACE
            return
        (call, name), who = self._seen, self._peers.name(self._rank)
        line = f"{who} has waited {rounded(self._age)} at {place(name, call)}"
        self._report(f"{line}; which ranks have not arrived is not known: {why}", [])

    def _report(self, line: str, missing: list[int]) -> None:
        """Report a stall of the length that was due, and end the run if it is the last."""
        self._reported = missing
        if self._due < self._abort:
            rest = f"the run ends after {rounded(self._abort)} (--stall-abort)"
            self._say(f"{line}; {rest if self._abort < math.inf else 'the run waits on'}")
            self._later()
            return
        self._end_process(_GRACE)  # first, as whatever follows may hang
        where = "" if self._board is None else f"; what ranks did is in {self._board.folder}"
        self._say(f"{line}; the run is ended (--stall-abort){where}")
        if self._board is not None:
            board, status = self._board, self._status()
            self._errands.do(lambda: board.end(status))
        self._end_job()

    def _later(self) -> None:
        """Look again after twice the time, and when it is time for the end."""
        shift = self._look - self._due  # from the stall's length to this rank's own waiting
        self._due = min(2 * self._due, self._abort)
        self._look = max(self._due + shift, self._age)

    def _status(self) -> Status:
        call, name = self._seen
        where, stack = lines_of(self._main)
        return Status(
            job=self._job,
            rank=self._rank,
            call=call,
            name=name or "",
            waiting=name is not None,
            seconds=round(self._age, 3),
            written=round(time.time(), 3),
            renewed=self._pause() + max(self._first / 2, _SLACK),
            where=where,
            stack=stack,
        )

    def _pause(self) -> float:
        """Seconds until the file is written again: seldom, even where ranks rest for hours."""
        return max(self._age, self._first / 2) / 4

    def _remove(self) -> None:
        if (board := self._board) is not None:
            self._errands.do(lambda: board.remove(self._rank))

    def _say(self, line: str) -> None:
        with contextlib.suppress(OSError):
            write_error(f"apts_mpi: {line}\n")

    def _end_process(self, seconds: float) -> None:
        """End this process after some seconds with status 1, whatever hangs in it."""
        self._stopped.set()
        self._end = open(os.devnull, "w")  # noqa: SIM115 - until then
        faulthandler.dump_traceback_later(seconds, exit=True, file=self._end)

    def _end_job(self) -> None:
        job.abort(1)
