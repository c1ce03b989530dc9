"""What each rank does, in small files that all ranks can read where no message comes through."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

_END = "end"  # a file that says that the run is over
_GONE = "gone-"  # one that says that a rank is taken for lost
RECOVERY = 1 << 40  # the number of a call that is after all others
_MOST_NAMED = 8  # ranks in a line

T = TypeVar("T")


@dataclass(frozen=True)
class Status:
    """What a rank did when it wrote this.

    Attributes:
        job: distinguishes this run's files from those of an earlier one in the same directory.
        call: number of the call it waits in, or of the last one it left. name: of the former.
        waiting: for other ranks; False: computing. seconds: for how long.
        written: in seconds since 1970. renewed: at the latest so many seconds after it.
        where: line of the program the main thread was at. stack: all lines, the innermost first.
    """

    job: str
    rank: int
    call: int
    name: str
    waiting: bool
    seconds: float
    written: float
    renewed: float
    where: str
    stack: list[str]

    def late(self, now: float) -> bool:
        """Whether it should have been written again by now."""
        return now - self.written > self.renewed

    def age(self, now: float) -> float:
        """For how long the rank has done this, in seconds; hosts' clocks may differ somewhat."""
        return self.seconds + min(max(now - self.written, 0.0), self.renewed)

    def describe(self, now: float) -> str:
        """What the rank does and for how long, in words."""
        at = f"at {place(self.name, self.call)}" if self.waiting else f"in {self.where}"
        state = "waiting" if self.waiting else "computing"
        if self.late(now):
            return f"no sign of life for {rounded(now - self.written)}, then {state} {at}"
        return f"{state} for {rounded(self.age(now))} {at}"


def born(pid: int) -> str:
    """When a process was started, in the system's ticks; "" if it is gone or that is not known."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def place(name: str | None, call: int) -> str:
    """A call in words."""
    return f"{name} {call}" if call < RECOVERY else f"{name}"


def rounded(seconds: float) -> str:
    """A duration in words."""
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"


class Ranks(Protocol):
    """What the watch needs of a ``Comm``."""

    rank: int
    size: int
    host: str

    def gather_texts(self, text: str) -> list[str]:
        """Every rank's text, on every rank."""


class Peers:
    """The processes of a job, in words.

    Args:
        facts: of every rank its host and the number of its process.
    """

    def __init__(self, facts: Sequence[str]) -> None:
        self._facts = [fact.split()[:2] for fact in facts]

    def name(self, rank: int) -> str:
        """A rank and its host."""
        return f"rank {rank} on {self._facts[rank][0]}"

    def names(self, ranks: Sequence[int]) -> str:
        """Several of them, but no endless line."""
        return _listed([self.name(rank) for rank in ranks])

    def describe(self, ranks: Sequence[int], statuses: Mapping[int, Status], now: float) -> str:
        """What some ranks do, as far as their status is known."""
        does = {rank: statuses[rank].describe(now) for rank in ranks if rank in statuses}
        dead = "no sign of life: stopped, killed, or its host is gone"
        return _listed(
            [
                f"{self.name(rank)} (process {self._facts[rank][1]}, {does.get(rank, dead)})"
                for rank in ranks
            ]
        )

    def stalled(
        self, wait: str, missing: Sequence[int], statuses: Mapping[int, Status], now: float
    ) -> str:
        """That all but those that are missing have waited, in the words of ``wait``."""
        size, here = len(self._facts), len(self._facts) - len(missing)
        if not missing:
            why = "the network fails, or a rank was stopped within the call"
            return f"all {here} ranks have {wait}: {why}"
        have = f"{here} of {size} ranks {'has' if here == 1 else 'have'}"
        return f"{have} {wait}; not arrived: {self.describe(missing, statuses, now)}"


def _listed(names: list[str]) -> str:
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


@dataclass(frozen=True)
class News:
    """What the files say.

    Attributes:
        ended: the run is over. reports: this rank is the one to report what it sees.
        others: what other ranks do, as far as there are files and this rank has read them.
        gone: ranks that are taken for lost.
    """

    ended: bool
    reports: bool
    others: dict[int, Status]
    gone: frozenset[int] = frozenset()


class StatusBoard:
    """A folder of such files, made with the first and removed with the last.

    Every method may raise OSError.

    Args:
        folder: on a file system that all hosts see; its parent exists.
        job: files of other jobs are as if they were not there.
    """

    def __init__(self, folder: Path, job: str) -> None:
        self.folder, self._job = folder, job

    def post(self, status: Status) -> None:
        """Write a rank's file."""
        try:
            self._write(self._path(status.rank), status)
        except FileNotFoundError:  # the folder has just been removed by the last that left it
            self._write(self._path(status.rank), status)

    def read(self, rank: int, size: int, now: float) -> News:
        """What a job's other ranks do; not read to the end where a lower one waits and reports."""
        others: dict[int, Status] = {}
        for each in range(size):
            other = self._load(self._path(each)) if each != rank else None
            if other is None:
                continue
            if each < rank and other.waiting and not other.late(now):
                return News(self.ended(), False, others)
            others[each] = other
        return News(self.ended(), True, others)

    def remove(self, rank: int) -> None:
        """Remove a rank's file."""
        self._path(rank).unlink(missing_ok=True)
        self._remove_empty()

    def end(self, status: Status) -> None:
        """Leave word that the run is over, with the status of the rank that ends it."""
        self._write(self.folder / _END, status)

    def lose(self, ranks: Iterable[int], status: Status) -> None:
        """Leave word that some are taken for lost, with the status of the one that says so."""
        for rank in ranks:
            self._write(self.folder / f"{_GONE}{rank:05d}.json", status)

    def gone(self) -> frozenset[int]:
        """Ranks that are."""
        found = (path for path in self.folder.glob(f"{_GONE}*.json") if self._load(path))
        return frozenset(int(path.stem.removeprefix(_GONE)) for path in found)

    def ended(self) -> bool:
        """Whether a rank has left word of that."""
        return self._load(self.folder / _END) is not None

    def clear(self) -> None:
        """Remove what other jobs have left."""
        if self.folder.is_dir():
            for path in self.folder.iterdir():
                if self._load(path) is None:
                    path.unlink(missing_ok=True)
            self._remove_empty()

    def _remove_empty(self) -> None:
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    def _path(self, rank: int) -> Path:
        return self.folder / f"rank-{rank:05d}.json"

    def _write(self, path: Path, status: Status) -> None:
        self.folder.mkdir(exist_ok=True)
        beside = path.with_suffix(".new")
        beside.write_text(json.dumps(dataclasses.asdict(status), indent=1), encoding="utf-8")
        beside.replace(path)

    def _load(self, path: Path) -> Status | None:
        try:
            status = Status(**json.loads(path.read_bytes()))
        except (FileNotFoundError, ValueError, TypeError, RecursionError):
            return None
        return status if status.job == self._job else None


class Errands:
    """Does things with files, but waits no longer than it must: a file system can hang for ever."""

    def __init__(self, limit: float) -> None:
        self._limit = limit  # seconds
        self._thread: threading.Thread | None = None

    def do(self, action: Callable[[], T]) -> T | str:
        """What the action returns, or the line of its OSError or that it takes too long.

        One that takes too long is left to itself, and nothing else is done before its end.
        """
        if self._thread is not None and self._thread.is_alive():
            return "its file system does not answer"
        done: list[T | str] = []

        def work() -> None:
            try:
                done.append(action())
            except OSError as error:
                done.append(f"{error.filename}: {error.strerror}")

        self._thread = threading.Thread(target=work, name="errand", daemon=True)
        self._thread.start()
        self._thread.join(self._limit)
        return done[0] if done else "its file system does not answer"


_PACKAGE = os.path.dirname(os.path.dirname(__file__))
_LIBRARIES = tuple(
    sysconfig.get_paths()[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")
)


def lines_of(thread: int) -> tuple[str, list[str]]:
    """The line of the program that a thread is at, and all of its stack, the innermost first."""
    frame = sys._current_frames().get(thread)
    where, stack = "", []
    while frame is not None:
        file = frame.f_code.co_filename
        stack.append(f"{os.path.basename(file)}:{frame.f_lineno} {frame.f_code.co_name}")
        ours = file.startswith(_PACKAGE) or not file.startswith(("<", *_LIBRARIES))
        if ours and not where:
            where = stack[-1]
        frame = frame.f_back
    return where or "".join(stack[:1]), stack
