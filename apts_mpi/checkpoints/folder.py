"""Checkpoints of a run: a folder each, written by all ranks at once, nothing gathered.

    checkpoint/00000120/common.h5      by rank 0: what is the same on every rank
                        rank-00003.h5  by each rank: what it alone has
    checkpoint/best/00000090/...       the one that was best on the validation samples

The files are written to `.00000120.partial`, which is renamed when the last rank has its own on
the disk: a folder with a checkpoint's name is whole.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from apts_mpi.checkpoints.state_file import (
    REMEDY,
    State,
    Unwritable,
    check,
    read_state,
    write_state,
)
from apts_mpi.comm.communicator import Comm
from apts_mpi.errors import AgreedError, InputError, fault
from apts_mpi.files import sealed

VERSION = 2
FOLDER = "checkpoint"
BEST = "best"  # folder in it, of the checkpoint that was best on the validation samples
COMMON = "common.h5"
_NAME = re.compile(r"\d{8,}")


def rank_file(rank: int) -> str:
    """The name of a rank's file."""
    return f"rank-{rank:05d}.h5"


@dataclass(frozen=True)
class Checkpoint:
    """One that was read and verified, as this rank needs it.

    Attributes:
        path: its folder. run: name that all checkpoints of a run share.
        iteration: outer iterations done. ranks: of the run that wrote it.
        common: what was the same on every rank.
        own: of this rank; of rank ``r mod ranks`` where this run has more ranks or fewer.
    """

    path: Path
    run: str
    iteration: int
    ranks: int
    common: State
    own: State


class Checkpoints:
    """The checkpoints that a run writes.

    Args:
        folder: of the run directory; made with the first one. comm: the ranks.
        keep: so many are kept, older ones removed. run: name of the run.
    """

    def __init__(self, folder: Path, comm: Comm, *, keep: int, run: str) -> None:
        self.folder, self.keep, self.run = folder, keep, run
        self._comm = comm
        self.last: Path | None = None  # the newest that this run has written
        if comm.rank == 0:
            for left in folder.glob(".*"):  # by runs that were broken off
                shutil.rmtree(left, ignore_errors=True)

    def save(self, iteration: int, common: State, own: State) -> str | None:
        """Write one; every rank calls it.

        Args:
            iteration: outer iterations done. common: the same on every rank. own: this rank's.

        Returns:
            None, or on every rank the line of what failed; older checkpoints are then untouched.
        """
        comm, path = self._comm, self.folder / f"{iteration:08d}"
        partial = path.with_name(f".{path.name}.partial")
        head = {"version": VERSION, "run": self.run, "iteration": iteration, "ranks": comm.size}
        try:
            with comm.together(), self._writing(partial):
                # By every rank: to make a folder is surer than to wait for another host's.
                partial.mkdir(parents=True, exist_ok=True)
                if comm.rank == 0:
                    write_state(partial / COMMON, {**head, "state": common})
                rank = {"rank": comm.rank, "state": own}
                write_state(partial / rank_file(comm.rank), {**head, **rank})
            with comm.together(), self._writing(path):
                if comm.rank == 0:
                    self._publish(partial, path)
        except AgreedError as failed:
            if comm.rank == 0:
                shutil.rmtree(partial, ignore_errors=True)
                with suppress(OSError):  # it has checkpoints in it
                    self.folder.rmdir()
            return str(failed)
        self.last = path
        if comm.rank == 0:
            self._prune()
        return None

    @contextmanager
    def _writing(self, path: Path) -> Iterator[None]:
        """Within, what cannot be written is an InputError that names the rank."""
        who = f"rank {self._comm.rank} on {self._comm.host}"
        try:
            yield
        except Unwritable as error:
            raise InputError(f"{error} ({who})") from error
        except OSError as error:
            what = f"{error.filename or path}: {error.strerror or error} ({who})"
            raise InputError(what) from error

    def _publish(self, partial: Path, path: Path) -> None:
        for rank in range(self._comm.size):
            if not (partial / rank_file(rank)).is_file():
                what = f"rank {rank}'s file is not there: is it on a file system of all hosts?"
                raise OSError(0, what, str(partial))
        sealed.sync(partial)
        if path.exists():  # the same iteration again, after a resume from an older one
            self._remove(path)
        partial.rename(path)
        sealed.sync(self.folder)

    def _prune(self) -> None:
        """Remove what is older than the last few; what cannot be now is tried after the next."""
        with suppress(OSError):
            for path in listed(self.folder)[self.keep :]:
                self._remove(path)

    def _remove(self, path: Path) -> None:
        """Under another name first, so that no half-removed folder has a checkpoint's name."""
        away = path.with_name(f".{path.name}.removed")
        path.rename(away)
        shutil.rmtree(away, ignore_errors=True)


def listed(folder: Path) -> list[Path]:
    """The checkpoints in a folder, newest first, none of them looked at."""
    if not _is_folder(folder):
        return []
    found = (path for path in folder.iterdir() if _NAME.fullmatch(path.name) and path.is_dir())
    return sorted(found, key=lambda path: int(path.name), reverse=True)


def _is_folder(path: Path) -> bool:
    """OSError where that cannot be seen, which pathlib would take for a no."""
    try:
        return stat.S_ISDIR(os.stat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def set_aside(folder: Path, iteration: int) -> list[str]:
    """Rename checkpoints of later iterations, so that none is taken for the newest; their names.

    They are damaged, or of a course that the run has left by resuming from an older one.
    """
    later = [path for path in listed(folder) if int(path.name) > iteration]
    for path in later:
        number, aside = 1, path.with_name(f"{path.name}.set-aside")
        while aside.exists():
            number += 1
            aside = path.with_name(f"{path.name}.set-aside-{number}")
        path.rename(aside)
    return [path.name for path in later]


def find(path: Path) -> list[Path]:
    """The checkpoints that a path names: one itself, a run directory, or the folder in one."""
    if (path / COMMON).exists():
        return [path]
    return listed(path / FOLDER) or listed(path)


def holds(path: Path, comm: Comm) -> bool:
    """Whether rank 0 finds a checkpoint that a path names; every rank calls it."""
    found = np.zeros(1)
    if comm.rank == 0:
        try:
            found[0] = bool(find(path))
        except OSError:
            found[0] = True  # where it cannot be looked for, reading it says what is wrong
    comm.maximum(found)
    return bool(found[0])


def newest(path: Path, comm: Comm, warn: Callable[[str], object]) -> Checkpoint:
    """The newest valid checkpoint that a path names; every rank calls it.

    Every file of it is verified by some rank. One that fails is passed over with a warning.

    Args:
        path: as ``find``'s. comm: the ranks, as many as wrote it or others.
        warn: takes a line; on rank 0 it should show it.

    Raises:
        AgreedError: on every rank, where there is none, or one cannot be read for lack of memory or
            the like.
    """
    names = ""
    with comm.together():
        try:
            names = "" if comm.rank else "\n".join(map(str, find(path)))
        except OSError as caught:
            what = f"{path}: cannot be read ({caught.strerror}); name a run directory"
            raise InputError(what) from caught
    paths = [Path(name) for name in comm.broadcast_text(names).split("\n") if name]
    failures = []
    for candidate in paths:
        try:
            with comm.together():
                found = read(candidate, comm.rank, comm.size)
            return found
        except AgreedError as error:
            if error.status != 2:  # what cannot be read now may yet be whole
                raise
            failures.append(error)
            if candidate is not paths[-1]:
                line = str(error).split(";")[0]
                warn(f"warning: {line}; going back to an older checkpoint")
    if failures:
        raise failures[0]
    raise AgreedError(f"{path}: has no checkpoint; name a run directory that has")


def read(path: Path, rank: int, ranks: int) -> Checkpoint:
    """Read a checkpoint as one of so many ranks, which verify all its files together.

    Raises:
        InputError: a file is missing, damaged, or of another checkpoint than the others.
    """
    common = _part(path / COMMON, None)
    wrote = int(common["ranks"])
    own = _part(path / rank_file(rank % wrote), common)
    for other in range(rank, wrote, ranks):
        if other != rank % wrote:
            check(path / rank_file(other))
    return Checkpoint(
        path=path,
        run=common["run"],
        iteration=common["iteration"],
        ranks=wrote,
        common=common["state"],
        own=own["state"],
    )


def _part(path: Path, common: State | None) -> State:
    state = read_state(path)
    version = state.get("version")
    if type(version) is not int or version != VERSION:
        what = f"has version {version!r}, not {VERSION}"
        raise fault(path, what, "use the version of apts_mpi that wrote it")
    likes: dict[str, Any] = {"run": str, "iteration": int, "ranks": int, "state": dict}
    for name, kind in likes.items():
        if type(state.get(name)) is not kind:
            raise fault(path, f"has no {name}", REMEDY)
        if common is not None and kind is not dict and state[name] != common[name]:
            what = f"is of another checkpoint: {name} is {state[name]!r}, not {common[name]!r}"
            raise fault(path, what, REMEDY)
    if not (state["ranks"] >= 1 and state["iteration"] >= 0 and state["run"].isprintable()):
        raise fault(path, "has a head that cannot be", REMEDY)
    rank = state.get("rank")
    if common is None and rank is not None:
        raise fault(path, f"is the file of rank {rank!r}, not that of all", REMEDY)
    if common is not None and (type(rank) is not int or path.name != rank_file(rank)):
        raise fault(path, f"is the file of rank {rank!r}", REMEDY)
    return state
