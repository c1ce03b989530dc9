"""Ranks that wait for one that does not come: which one, where it is, and the end of the run.

A rank counts its calls that wait for others. A thread of its own looks now and then; only where
nothing has moved for a while does it write what the rank does into a small file, and read those of
the others. The lowest rank that waits tells what they say. No message is sent, as the ranks that
would have to answer are those that may not.
"""

from __future__ import annotations

import contextlib
import faulthandler
import math
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Protocol

from apts_mpi.comm import job
from apts_mpi.comm.status_board import Errands, Status, StatusBoard, lines_of
from apts_mpi.files.streams import write_error

FOLDER = ".watch"  # in the run directory, while there is something in it
_GRACE = 5.0  # seconds for the launcher to end the processes, before they end by themselves
_SLACK = 2.0  # seconds a thread may be late on a busy machine
_MOST_NAMED = 8  # ranks in a line


class Ranks(Protocol):
    """What the watch needs of a ``Comm``."""

    rank: int
    size: int
    host: str

    def gather_texts(self, text: str) -> list[str]:
        """Every rank's text, on every rank."""


@dataclass(frozen=True)
class _News:
    """What the files say.

    Attributes:
        ended: the run is over. speaks: this rank is to tell what it sees.
        others: what other ranks do, as far as there are files and this rank has read them.
    """

    ended: bool
    speaks: bool
    others: dict[int, Status]


class Watch:
    """A thread that tells, and in the end ends, a run whose ranks wait for one that does not come.

    Every rank makes one, as this sends a message, and gives it to its ``Comm``::

        with Watch(comm, warning=60, abort=600) as comm.watch:
            ...

    A rank alone is not watched, and ranks that all compute are no stall, as nobody waits. A stall
    counts from the last rank that arrived; time in which this thread was not woken (the job was
    suspended, the machine slept) does not count.

    Args:
        ranks: the ``Comm``.
        warning: seconds of waiting after which one line on standard error says which ranks have
            not arrived; again after twice the time, and so on. 0 or infinity: never.
        abort: seconds after which the run ends with exit status 1. 0 or infinity: never.

    Attributes:
        directory: where the folder of the files is made, on a file system that all hosts see, the
            same on all ranks; may be set at any time. None: which ranks are missing is not known.
    """

    def __init__(self, ranks: Ranks, warning: float = 60.0, abort: float = 600.0) -> None:
        if not (warning >= 0 and abort >= 0):
            raise ValueError(f"warning {warning} and abort {abort} must be seconds, 0 for never")
        self.directory: Path | None = None
        self._rank, self._size = ranks.rank, ranks.size
        self._abort = abort or math.inf
        self._first = min(warning or math.inf, self._abort)  # what comes first of the two
        self.interval = min(1.0, self._first / 8)
        own = f"{ranks.host[:64]} {os.getpid()} {time.time_ns()}"
        facts = ranks.gather_texts(own) if ranks.size > 1 else [own]
        self._job = facts[0]
        self._peers = [fact.split()[:2] for fact in facts]  # host, process
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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
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
        if self._size > 1 and self._first < math.inf:
            self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Watch no more; this rank's file is removed."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(_GRACE)

    # ---- the watching thread ---------------------------------------------------------------

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
        self._due = self._first  # the next length of a stall to tell
        self._look = self._first  # age at which to look whether it is one
        self._told: list[int] | None = None  # who was told not to have arrived

    def advance(self, seconds: float) -> None:
        """Look after the ranks; so much time has passed since this was called last."""
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
        """The main thread has gone on."""
        if self._told is not None:
            self._tell_over()
        call, name = self._seen
        posted, arrives = self._posted, name is None and state[1] and state[0] == call + 1
        self._rest(state)
        if posted and arrives:
            self._posted, self._renew = True, 0.0  # others may have long waited: they see it now
        elif posted:
            self._remove()

    def _consider(self) -> None:
        """Write this rank's file if it is time, and see what those of others say."""
        status = self._status() if self._age >= self._renew else None
        look = self._seen[1] is not None and self._age >= self._look
        if status is None and not look:
            return
        news: _News | str = "there is no run directory yet"
        if self._board is not None:
            board, self._posted = self._board, True
            news = self._errands.do(lambda: self._exchange(board, status, look))
        if self._age >= self._first and os.getppid() != self._parent:
            self._say(f"{self._who(self._rank)} ends, as its launcher is gone")
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

    def _exchange(self, board: StatusBoard, status: Status | None, look: bool) -> _News:
        if status is not None:
            board.post(status)
        others: dict[int, Status] = {}
        if look:
            now = time.time()
            for rank in range(self._size):
                other = board.read(rank) if rank != self._rank else None
                if other is None:
                    continue
                if rank < self._rank and other.waiting and not other.late(now):
                    return _News(board.ended(), False, others)  # that one speaks
                others[rank] = other
        return _News(board.ended(), look, others)

    def _judge(self, news: _News) -> None:
        """Tell of a stall if there is one, and end it if it is too long."""
        if not news.speaks:
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
        here = self._size - len(missing)
        have = f"{here} of {self._size} ranks {'has' if here == 1 else 'have'}"
        if not missing:
            have = f"all {here} ranks have"
        line = f"{have} waited {_rounded(stall)} at {name} {call}"
        if missing:
            who = [self._describe(each, news.others.get(each), now) for each in missing]
            line += f"; not arrived: {_listed(who)}"
        else:
            line += ": the network fails, or a rank was stopped within the call"
        self._tell(line, missing)

    def _guess(self, why: str) -> None:
        """The same without files; the lowest two ranks tell it, as one of them may be missing."""
        if self._rank > 1 and self._age < self._abort + _GRACE:
            self._due, self._look = self._abort, self._abort + _GRACE
            return
        call, name = self._seen
        self._tell(
            f"{self._who(self._rank)} has waited {_rounded(self._age)} at {name} {call}; which "
            f"ranks have not arrived is not known: {why}",
            [],
        )

    def _tell(self, line: str, missing: list[int]) -> None:
        """Tell a stall of the length that was due, and end the run if it is the last."""
        self._told = missing
        if self._due < self._abort:
            rest = f"the run ends after {_rounded(self._abort)} (--stall-abort)"
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

    # ---- words and files -------------------------------------------------------------------

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
        board = self._board
        if board is not None:
            self._errands.do(lambda: board.remove(self._rank))

    def _who(self, rank: int) -> str:
        return f"rank {rank} on {self._peers[rank][0]}"

    def _describe(self, rank: int, status: Status | None, now: float) -> str:
        does = "no sign of life: stopped, killed, or its host is gone"
        if status is not None:
            at = f"at {status.name} {status.call}" if status.waiting else f"in {status.where}"
            state = "waiting" if status.waiting else "computing"
            does = f"{state} for {_rounded(status.age(now))} {at}"
            if status.late(now):
                does = f"no sign of life for {_rounded(now - status.written)}, then {state} {at}"
        return f"{self._who(rank)} (process {self._peers[rank][1]}, {does})"

    def _tell_over(self) -> None:
        (call, name), who = self._seen, [self._who(rank) for rank in self._told or []]
        what = f"{_listed(who)} arrived" if who else "the ranks go on"
        self._say(f"{what} at {name} {call} after {_rounded(self._age)}")

    def _say(self, line: str) -> None:
        with contextlib.suppress(OSError):
            write_error(f"apts_mpi: {line}\n")

    # ---- the end ---------------------------------------------------------------------------

    def _end_process(self, seconds: float) -> None:
        """End this process after some seconds with status 1, whatever hangs in it."""
        self._stopped.set()
        self._end = open(os.devnull, "w")  # noqa: SIM115 - until then
        faulthandler.dump_traceback_later(seconds, exit=True, file=self._end)

    def _end_job(self) -> None:
        job.abort(1)


def _rounded(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"


def _listed(names: list[str]) -> str:
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
