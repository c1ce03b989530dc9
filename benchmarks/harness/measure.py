"""Pieces of work measured in MPI jobs, and written down as each ends."""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from benchmarks.harness.jobs import RunFailed, end_all, mpirun
from benchmarks.harness.methods import outdated, version
from benchmarks.harness.results import Results, Row, origin
from benchmarks.harness.worker import ENDED, collect

START = 60.0  # seconds that the ranks of a job may take to start
DIVERGED = "not finite"  # is in the error of a run whose loss is


class Start(Protocol):
    """Starts ``python ARGUMENTS`` on the ranks of a job, as ``mpirun`` and ``Hosts.mpirun`` do."""

    def __call__(
        self, arguments: Sequence[str], *, timeout: float, heard: Callable[[str], object]
    ) -> None:
        """Returns when all ranks have ended well."""


@dataclass(frozen=True)
class Outcome:
    """What came out of a piece.

    Attributes:
        values: what the task returned, by rank. folder: the piece's, which is about to be removed.
        seconds: since the start of its job, or the end of the piece before it.
    """

    values: list[Any]
    folder: Path
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One call of a task, and the rows that come of it.

    Attributes:
        settings: of its rows. It is done when the results have them all.
        words: names it in what is printed.
        arguments: keyword arguments of the task, JSON values.
        keep: makes the rows, one for each of ``settings``, and a few words on the outcome.
        diverged: makes the rows where the loss was not finite; None counts that as a failure.
    """

    settings: Sequence[Row]
    words: str
    arguments: Row
    keep: Callable[[Outcome], tuple[Sequence[Row], str]]
    diverged: Callable[[str], Sequence[Row]] | None = None


@dataclass(frozen=True, kw_only=True)
class Job:
    """Pieces that are measured by the same ranks, one after another.

    Attributes:
        task: function that every rank calls, as ``module:function``; see ``worker``.
        start: starts the ranks; None is mpirun. timeout: seconds per piece; None is the option's.
    """

    task: str
    ranks: int
    pieces: Sequence[Piece]
    start: Start | None = None
    timeout: float | None = None


class Session:
    """One call of a command: measures what is missing, and counts what fails.

    Attributes:
        options: of the command line. results: of the command.
        folder: for data and jobs, seen by all ranks. failed: the pieces that did, by settings.
    """

    def __init__(self, options: argparse.Namespace, results: Results, folder: Path) -> None:
        self.options, self.results, self.folder = options, results, folder
        self.failed: set[str] = set()
        self._fresh = bool(getattr(options, "fresh", False))
        self._timeout = float(getattr(options, "timeout", 3600.0))
        self._made: set[str] = set()

    def done(self, piece: Piece) -> bool:
        """Whether there is nothing to do for it: measured by this version, or just failed."""
        key = _key(piece)
        if key in self._made | self.failed:
            return True
        rows = [self.results.get(settings) for settings in piece.settings]
        return not self._fresh and all(row is not None and not outdated(row) for row in rows)

    def missing(self, jobs: Iterable[Job]) -> list[Job]:
        """The jobs with the pieces that are not done, each once; empty jobs are left out."""
        seen: set[str] = set()
        found = []
        for job in jobs:
            fresh = {_key(each): each for each in job.pieces if not self.done(each)}
            pieces = [each for key, each in fresh.items() if key not in seen]
            seen |= set(fresh)
            if pieces:
                found.append(replace(job, pieces=pieces))
        return found

    def measure(self, jobs: Iterable[Job]) -> None:
        """Measure what is missing of these jobs; rows are written as pieces end."""
        wanted = list(jobs)
        todo = self.missing(wanted)
        total = sum(len(job.pieces) for job in wanted)
        left = sum(len(job.pieces) for job in todo)
        print(f"{total} runs, {total - left} of them done before", flush=True)
        again = [s for job in todo for piece in job.pieces for s in piece.settings]
        if any(map(self.results.get, again)):  # first, so that what is interrupted may be resumed
            self.results.forget(again)
        at_once = int(getattr(self.options, "jobs", 1))
        _Queue(self, todo, self._timeout).work_off(at_once)

    def add(self, piece: Piece, rows: Sequence[Row]) -> None:
        """Write the rows of a piece."""
        made = origin()
        for settings, row in zip(piece.settings, rows, strict=True):
            computed = version(settings)
            method = {} if computed is None else {"method": computed}
            self.results.add(settings, {**row, **method, **made})
        self._made.add(_key(piece))

    def fail(self, piece: Piece) -> None:
        """A piece has failed; it is not tried again in this session."""
        self.failed.add(_key(piece))


def _key(piece: Piece) -> str:
    return json.dumps(piece.settings, sort_keys=True)


class _Queue:
    """The jobs that threads work off; a line is printed as each piece ends."""

    def __init__(self, session: Session, jobs: Sequence[Job], timeout: float) -> None:
        self._session, self._timeout = session, timeout
        self._jobs, self._lock, self._stopped = deque(jobs), threading.Lock(), threading.Event()
        self._total, self._done = sum(len(job.pieces) for job in jobs), 0
        self._began = time.monotonic()

    def work_off(self, at_once: int) -> None:
        """Make all jobs, so many at a time."""
        if at_once == 1:
            self._work()
            return
        with ThreadPoolExecutor(at_once) as pool:
            threads = [pool.submit(self._work) for _ in range(at_once)]
            try:
                wait(threads)
            except BaseException:  # interrupted: the jobs are in sessions of their own
                self._stopped.set()
                end_all()
                raise
            for thread in threads:
                thread.result()

    def _work(self) -> None:
        while not self._stopped.is_set():
            try:
                job = self._jobs.popleft()
            except IndexError:
                return
            ended = self._make(job)
            rest = job.pieces[ended + 1 :]  # it died in the piece before these
            if rest and not self._stopped.is_set():
                self._jobs.appendleft(replace(job, pieces=rest))

    def _make(self, job: Job) -> int:
        """One MPI job; returns how many of its pieces have ended, well or badly."""
        start = job.start or partial(mpirun, job.ranks)
        with tempfile.TemporaryDirectory(dir=self._session.folder) as name:
            folder, ended, last = Path(name), 0, time.perf_counter()
            for number in range(len(job.pieces)):
                (folder / str(number)).mkdir()
            asked = {"task": job.task, "pieces": [piece.arguments for piece in job.pieces]}
            (folder / "pieces.json").write_text(json.dumps(asked), encoding="utf-8")

            def heard(line: str) -> bool:
                nonlocal ended, last
                found = ENDED.search(line)
                if found is None or int(found[1]) != ended:
                    return False
                now, place = time.perf_counter(), folder / str(ended)
                if found[2]:
                    self._failed(job.pieces[ended], found[2])
                else:
                    outcome = Outcome(collect(place, job.ranks), place, now - last)
                    self._ended(job.pieces[ended], outcome)
                ended, last = ended + 1, now
                return True

            words = ["-m", "benchmarks.harness.worker", str(folder / "pieces.json")]
            try:
                limit = START + (job.timeout or self._timeout)
                start(words, timeout=limit, heard=heard)
            except RunFailed as error:
                if ended < len(job.pieces) and not self._stopped.is_set():
                    self._failed(job.pieces[ended], str(error))
        return ended

    def _ended(self, piece: Piece, outcome: Outcome) -> None:
        rows, words = piece.keep(outcome)
        with self._lock:
            self._session.add(piece, rows)
            self._say(f"{piece.words}: {words}")

    def _failed(self, piece: Piece, why: str) -> None:
        with self._lock:
            if piece.diverged is not None and DIVERGED in why:
                self._session.add(piece, piece.diverged(why))
                self._say(f"{piece.words}: diverged")
            else:
                self._session.fail(piece)
                self._say(f"{piece.words}: failed: {why}")

    def _say(self, text: str) -> None:
        self._done += 1
        minutes, seconds = divmod(round(time.monotonic() - self._began), 60)
        print(f"[{self._done}/{self._total}, {minutes}:{seconds:02d} min] {text}", flush=True)
