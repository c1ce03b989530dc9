"""A trace of a run: what every rank did when, as one Chrome trace with the ranks' clocks aligned.

Rank 0 writes it, a piece of one rank at a time, so that its memory does not grow with the ranks.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from apts_mpi.comm.clock import Span
from apts_mpi.comm.communicator import ClockReading, Comm
from apts_mpi.errors import InputError
from apts_mpi.version import __version__

_PIECE = 4096  # events of a message, some 500 kB
_OWN = ("config.toml", "metrics.jsonl", "summary.json", "checkpoint")  # of a run directory


@dataclass(frozen=True)
class Alignment:
    """This rank's clock as a line through two readings of rank 0's: its offset and its drift."""

    start: ClockReading
    end: ClockReading

    @property
    def error(self) -> float:
        """What an aligned time may be off, in seconds."""
        return max(self.start.error, self.end.error)

    def nanoseconds(self, seconds: np.ndarray, origin: float) -> np.ndarray:
        """Times of this rank's clock, (n,), as whole nanoseconds of rank 0's after ``origin``.

        The order of times is kept, so that what is nested stays nested.
        """
        start, end = self.start, self.end
        if all(abs(r.root - r.own) <= r.error for r in (start, end)):
            # As far as can be seen it is rank 0's own clock, as on the same host it is.
            since = seconds - origin
        else:
            drift = (end.root - start.root) / (end.own - start.own)
            since = (seconds - start.own) * drift + (start.root - origin)
        return np.rint(since * 1e9).astype(np.int64)


def refusal(file: str, out: str | None) -> InputError | None:
    """Why a trace cannot be written to ``file``, found out by one beside it; None if it can.

    Args:
        out: the run directory, which need not exist yet: the trace may be in it.
    """
    path = Path(file)
    if os.path.lexists(path):
        return InputError(f"--trace {file}: already exists; name a new file, or remove this one")
    if out is not None and path.parent == Path(out):
        if path.name in _OWN:
            return InputError(f"--trace {file}: is the run's own {path.name}; name another file")
        return None  # made, or refused, with the run directory
    if not path.parent.is_dir():
        why = f"there is no folder {path.parent}"
        return InputError(f"--trace {file}: {why}; make it, or name a file elsewhere")
    beside = _beside(path)
    try:
        beside.touch(exist_ok=False)
        beside.unlink()
    except OSError as error:
        why = f"cannot be written: {error.strerror}; name another file"
        return InputError(f"--trace {file}: {why}")
    return None


class Trace:
    """The trace of a run; every rank makes one before training and calls ``finish`` after it.

    Args:
        file: what to write, new. comm: the ranks; their clocks keep spans from now on.
        say: prints a line; called on every rank.
    """

    def __init__(self, file: str, comm: Comm, say: Callable[[str], None]) -> None:
        self._file, self._comm, self._say = file, comm, say
        self._start: ClockReading | None = None
        if not comm.clock.on:
            say(f"--trace {file}: the ranks' clocks are off, so that there is no trace to write")
            return
        self._start = comm.read_clock()
        comm.clock.trace()

    def finish(self) -> None:
        """Write the trace and keep no more spans.

        Raises:
            AgreedError: on every rank, where the file cannot be written; nothing is left of it,
                but where the name was taken meanwhile: then the line says where the trace is.
        """
        if self._start is None:
            return
        comm, clock = self._comm, self._comm.clock
        spans, dropped = clock.spans or [], clock.dropped
        clock.spans, clock.dropped = None, 0  # what follows is no part of the run
        alignment = Alignment(self._start, comm.read_clock())
        origin = np.array([self._start.root])
        comm.broadcast(origin)
        error = np.array([alignment.error])
        comm.maximum(error)
        kept, lost = comm.sum_scalars((len(spans), dropped))
        about = {
            "program": f"apts_mpi {__version__}",
            "ranks": comm.size,
            "spans": int(kept),
            "spans_dropped": int(lost),
            "clock_error_us": round(float(error[0]) * 1e6, 3),
        }
        starts = alignment.nanoseconds(_column([s.start for s in spans]), float(origin[0]))
        ends = alignment.nanoseconds(_column([s.end for s in spans]), float(origin[0]))
        pieces = _pieces(comm, spans, starts, ends, dropped)
        failed = None
        if comm.rank == 0:
            writer = _Writer(Path(self._file))
            writer.take(f'{{"otherData":{json.dumps(about)},"traceEvents":[\n'.encode())
            comm.relay(pieces, writer.take)
            writer.take(b'\n],"displayTimeUnit":"ms"}\n')
            failed = writer.close(self._file)
        else:
            comm.relay(pieces)
        comm.agree(failed)
        if lost:
            self._say(f"warning: {int(lost)} spans are not in the trace: it keeps the first only")
        self._say(f"{int(kept)} spans in {self._file}: open it in ui.perfetto.dev")


def _column(values: Sequence[float]) -> np.ndarray:
    return np.array(values, dtype=np.float64)


def _pieces(
    comm: Comm, spans: Sequence[Span], starts: np.ndarray, ends: np.ndarray, dropped: int
) -> Iterator[bytes]:
    """This rank's events as JSON, each but the file's first after a comma; by start, outer first.

    Args:
        starts, ends: of the spans, in nanoseconds.
    """
    rank, name = comm.rank, f"rank {comm.rank} on {comm.host}"
    head = [("process_name", {"name": name}), ("process_sort_index", {"sort_index": rank})]
    if dropped:
        head.append(("process_labels", {"labels": f"{dropped} spans dropped"}))
    events = [
        f'{{"ph":"M","pid":{rank},"tid":0,"name":"{kind}","args":{json.dumps(args)}}}'
        for kind, args in head
    ]
    yield (",\n" * (rank > 0) + ",\n".join(events)).encode()
    # Spans are in the order of their ends: of two with the same times the later is the outer one.
    order = np.lexsort((-np.arange(len(spans)), -ends, starts))
    for first in range(0, len(spans), _PIECE):
        events = []
        for i in order[first : first + _PIECE]:
            span, start, end = spans[i], int(starts[i]), int(ends[i])
            args = f',"args":{{"bytes":{span.nbytes}}}' if span.nbytes else ""
            events.append(
                f'{{"ph":"X","pid":{rank},"tid":0,"name":{json.dumps(span.label)},'
                f'"cat":"{span.phase}",'
                f'"ts":{start / 1e3:.3f},"dur":{(end - start) / 1e3:.3f}{args}}}'
            )
        yield (",\n" + ",\n".join(events)).encode()


class _Writer:
    """Writes beside, flushes, and gives the file its name at the end: what has the name is whole.

    An error is kept until then, as the other ranks have yet to learn of it.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._beside = path, _beside(path)
        self._file: BinaryIO | None = None
        self._error: OSError | None = None
        try:
            self._file = self._beside.open("xb")
        except OSError as error:
            self._error = error

    def take(self, piece: bytes) -> bool:
        """Write a piece; False where one could not be written, so that no more is wanted."""
        if self._file is not None and self._error is None:
            try:
                self._file.write(piece)
            except OSError as error:
                self._error = error
        return self._error is None

    def close(self, file: str) -> InputError | None:
        """Name what was written; returns what went wrong, if anything has."""
        try:
            if self._file is not None and self._error is None:
                self._file.flush()
                os.fsync(self._file.fileno())
                self._file.close()
                _name(self._beside, self._path)
        except FileExistsError:
            why = f"was made by another program meanwhile; the trace is in {self._beside}"
            return InputError(f"--trace {file}: {why}")
        except OSError as error:
            self._error = error
        if self._error is None:
            return None
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()  # what it still holds has no room either
            with contextlib.suppress(OSError):
                self._beside.unlink()
        why = f"cannot be written: {self._error.strerror}; the run itself is complete"
        return InputError(f"--trace {file}: {why}")


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}")


def _name(beside: Path, path: Path) -> None:
    """Rename, but never over something that is there."""
    try:
        os.link(beside, path)  # unlike a rename it refuses what exists
    except FileExistsError:
        raise
    except OSError:  # no hard links on this file system
        if os.path.lexists(path):
            raise FileExistsError(path) from None
        beside.rename(path)
    else:
        beside.unlink()
