"""What a run leaves behind: settings, a row for every outer iteration, the summary."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from apts_mpi.checkpoints.folder import BEST, FOLDER, Checkpoints, listed, set_aside
from apts_mpi.comm.communicator import Comm
from apts_mpi.errors import AgreedError, InputError, writing
from apts_mpi.files import sealed
from apts_mpi.settings.config import TrainConfig
from apts_mpi.settings.toml import to_toml
from apts_mpi.training.resuming import Resumed

CONFIG, METRICS, SUMMARY = "config.toml", "metrics.jsonl", "summary.json"
_MOST_PENDING = 100_000  # rows kept where the disk takes none
_LONGEST_ROW = 2**20  # bytes; a row has some hundreds


class Rows:
    """The file of metrics: a JSON row per outer iteration, on the disk or kept until it takes it.

    Args:
        path: of the file. begun: rows it starts with. warn: takes a line, once for every time that
            rows cannot be written any more.
    """

    def __init__(self, path: Path, begun: bytes, warn: Callable[[str], object]) -> None:
        sealed.write(path, begun)
        self._path, self._warn = path, warn
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND)
        self._size = len(begun)  # of whole rows
        self._pending: list[bytes] = []

    def add(self, row: dict[str, Any]) -> None:
        """Append a row, at once where that is possible; what is not finite becomes null."""
        failed_before = len(self._pending) > 0
        self._pending = [*self._pending[-_MOST_PENDING:], _json(row).encode() + b"\n"]
        error = self.flush()
        if error is not None and not failed_before:
            self._warn(
                f"warning: {self._path}: {error.strerror}; its rows are kept and tried again"
            )

    def flush(self) -> OSError | None:
        """Write what is pending; what went wrong, after which the file ends with a whole row."""
        data = b"".join(self._pending)
        try:
            if os.write(self._file, data) != len(data):
                os.ftruncate(self._file, self._size)
                raise OSError(0, "there is no room")
        except OSError as error:
            return error
        self._size += len(data)
        self._pending.clear()
        return None

    def sync(self) -> None:
        """Flush to the disk, as far as the disk takes it."""
        if self._pending:
            self.flush()
        try:
            os.fsync(self._file)
        except OSError as error:
            self._warn(f"warning: {self._path}: {error.strerror}")

    def taken_over(self) -> bool:
        """Whether another run has begun the file anew."""
        try:
            return os.stat(self._path).st_ino != os.fstat(self._file).st_ino
        except OSError as error:
            return error.errno == errno.ESTALE  # replaced by another host

    def close(self) -> None:
        """No more rows; OSError where some could not be written."""
        error = self.flush() if self._pending else None
        os.close(self._file)
        if error is not None:
            raise error


class RunDirectory:
    """``config.toml``, ``metrics.jsonl`` and ``summary.json`` of a run; rank 0 writes.

    Args:
        path: made here. config: complete, so that the run repeats from it. comm: the ranks.
        warn: takes a line; on rank 0 it should show it.
        shared: whether the folder may have something in it: files of a batch job, or an attempt
            that came to no checkpoint, whose files are set aside. Otherwise, and where there are
            checkpoints of a run that is not resumed, that is refused, so that none is overwritten.
        begun: folder of the run that is resumed here. rows: how many rows of its metrics stand.

    Raises:
        AgreedError: on every rank, where it cannot be made or is not empty.
    """

    def __init__(
        self,
        path: Path,
        config: TrainConfig,
        comm: Comm,
        *,
        warn: Callable[[str], object],
        shared: bool = False,
        begun: Path | None = None,
        rows: int = 0,
    ) -> None:
        self.path = path
        self._comm = comm
        self._rows: Rows | None = None
        with comm.together(), writing(f"--out {path}", "name another folder"):
            if comm.rank == 0:
                path.mkdir(parents=True, exist_ok=True)
                same = begun is not None and begun.exists() and path.samefile(begun)
                free = shared and not listed(path / FOLDER)
                if not (same or free) and any(path.iterdir()):
                    raise InputError(
                        f"--out {path}: is not empty; name a new folder, remove this one, or "
                        f"resume its run: --resume {path}"
                    )
                kept = _rows_of(begun / METRICS, rows, warn) if begun is not None else b""
                if shared and not same:
                    for name in (CONFIG, METRICS, SUMMARY):
                        _set_aside(path / name)
                if same:  # it is of fewer iterations than the run will have
                    _set_aside(path / SUMMARY)
                sealed.write(path / CONFIG, to_toml(config).encode())
                self._rows = Rows(path / METRICS, kept, warn)

    def row(self, row: dict[str, Any]) -> None:
        """Append a row to the metrics, at once; what is not finite becomes null."""
        if self._rows is not None:
            self._rows.add(row)

    def sync(self) -> None:
        """Flush the metrics to the disk; every rank calls it.

        Raises:
            AgreedError: on every rank, where another run has begun in the same directory.
        """
        with self._comm.together(status=1):
            if self._rows is not None:
                self._rows.sync()
                self._require_ours(self._rows)

    def _require_ours(self, rows: Rows) -> None:
        if rows.taken_over():
            raise InputError(
                f"{self.path}: another run has begun here and continues; this one ends"
            )

    def close(self) -> None:
        """No more rows, of a run that breaks off."""
        if self._rows is not None:
            rows, self._rows = self._rows, None
            with suppress(OSError):
                rows.close()

    def finish(self, summary: dict[str, Any]) -> None:
        """Write the summary and close; every rank calls it. What is not finite becomes null.

        Raises:
            AgreedError: on every rank, where it cannot be written.
        """
        with self._comm.together(status=1), writing(str(self.path)):
            if self._rows is not None:
                self._require_ours(self._rows)
                rows, self._rows = self._rows, None
                rows.close()
                sealed.write(self.path / SUMMARY, f"{_json(summary, indent=2)}\n".encode())


def _rows_of(path: Path, rows: int, warn: Callable[[str], object]) -> bytes:
    """The first rows of a metrics file, as long as they are whole and in order."""
    kept: list[bytes] = []
    try:
        if not path.is_file():  # to open a pipe would wait for a writer
            raise OSError(errno.ENOENT, "no such file")
        with path.open("rb") as file:
            while len(kept) < rows:
                line = file.readline(_LONGEST_ROW)
                if not _is_row(line, len(kept) + 1):
                    break
                kept.append(line)
    except OSError as error:
        warn(f"warning: {path}: cannot be read ({error.strerror})")
    if len(kept) < rows:
        warn(f"warning: {path}: only the first {len(kept)} of {rows} rows are whole and kept")
    return b"".join(kept)


def _is_row(line: bytes, iteration: int) -> bool:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return False
    if not (line.endswith(b"\n") and isinstance(row, dict)):
        return False
    return type(row.get("iteration")) is int and row["iteration"] == iteration


def _set_aside(path: Path) -> None:
    """Rename a file of an attempt that came to no checkpoint."""
    if path.exists():
        number = 1
        while (aside := path.with_name(f"{path.name}.{number}")).exists():
            number += 1
        path.rename(aside)


def _json(values: dict[str, Any], indent: int | None = None) -> str:
    """JSON has no NaN: a test loss, say, that overflows is null."""
    lost = {k: None for k, v in values.items() if isinstance(v, float) and not math.isfinite(v)}
    return json.dumps({**values, **lost}, indent=indent, allow_nan=False)


def default_out(config: TrainConfig, comm: Comm) -> Path:
    """A run directory that does not exist yet, the same on every rank."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    name = f"{Path(config.data).name}-{config.optimizer}-{comm.size}ranks-{stamp}-{os.getpid()}"
    return Path("runs") / comm.broadcast_text(name)


def open_run(
    config: TrainConfig,
    comm: Comm,
    resumed: Resumed | None,
    *,
    threads: int,
    done: int,
    rows: int,
    say: Callable[[str], object],
    again: bool = False,
) -> tuple[RunDirectory, Checkpoints, Checkpoints]:
    """The directory of a run, its checkpoints, and those that were best; every rank calls it.

    Args:
        config: completed. threads: of a rank. done: iterations that the run has behind it.
        rows: of the metrics, so many stand.
        again: whether the same run may have made the directory before.

    Raises:
        AgreedError: on every rank, where the directory cannot be written.
    """
    begun = None if resumed is None else resumed.directory
    if config.out is None and resumed is not None and begun is None:
        raise AgreedError(f"--resume {resumed.path}: lies in no run directory; give --out")
    run = comm.broadcast_text(uuid.uuid4().hex) if resumed is None else resumed.checkpoint.run
    path = Path(config.out) if config.out else begun or default_out(config, comm)
    if comm.watch is not None:
        comm.watch.directory = path
    # Complete, so that the run repeats from it; where to write is the next run's own to choose.
    complete = dataclasses.replace(config, out=None, resume=None, trace=None, threads=threads)
    shared = again or config.resume == "auto"
    directory = RunDirectory(path, complete, comm, warn=say, shared=shared, begun=begun, rows=rows)
    folder, best = path / FOLDER, path / FOLDER / BEST
    for each in (folder, best) if resumed is not None else ():
        with comm.together(), writing(str(each)):
            names = [] if comm.rank else set_aside(each, done)
        for name in names:
            say(f"{each / name}: set aside, as the run resumes before it")
    checkpoints = Checkpoints(folder, comm, keep=config.keep, run=run)
    return directory, checkpoints, Checkpoints(best, comm, keep=1, run=run)
