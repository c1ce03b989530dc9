"""Minibatches of a part that is larger than memory, read from the shards ahead of need.

A thread knows the order that `Batches` draws in, has the coming minibatches ready, and meanwhile
reads the windows of the next group. Memory is bounded by the size of windows and minibatches.
"""

from __future__ import annotations

import math
import os
import weakref
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apts_mpi.data.minibatches.ahead import Ahead, Pair, Rows, gather
from apts_mpi.data.minibatches.batches import Batches
from apts_mpi.data.minibatches.chunks import Chunks, locate
from apts_mpi.data.minibatches.grouped import GROUP, Indices
from apts_mpi.data.shards.format import shard_fault
from apts_mpi.data.shards.index import read_index
from apts_mpi.data.shards.info import DatasetInfo
from apts_mpi.data.shards.partitioning import cut, located, samples_of
from apts_mpi.data.shards.writing import CHUNK
from apts_mpi.errors import fault

WINDOW = 4  # chunks
READY = 8 * 1024 * 1024  # bytes of minibatches that are kept ready, 2 at least and 16 at most
_BLOCK = 256 * 1024  # bytes that are normalised at a time


class Stored:
    """Where the samples of a rank's part lie, and how they are read; for any number of threads."""

    def __init__(
        self,
        directory: Path,
        split: str,
        rank: int,
        ranks: int,
        context: int | None,
        info: DatasetInfo | None,
    ) -> None:
        self._directory, self._stored = directory, info or read_index(directory)
        self.info = samples_of(directory, self._stored, context)
        start, stop, touched = located(directory, self.info, split, rank, ranks)
        self.start, self.samples = start, stop - start
        self.total, self._context = self.info.splits[split].total, context
        # First sample in the part, samples, first sample in the shard, the chunks of each data set.
        self._pieces: list[tuple[int, int, int, list[Chunks]]] = []
        for shard, lo, hi in touched:
            rows = (lo, hi) if context is None else (lo * context, hi * context + 1)
            chunks = locate(directory, self._stored, split, shard, *rows)
            base = self.info.splits[split].starts[shard] + lo - start
            self._pieces.append((base, hi - lo, lo, chunks))
        self._bytes = self.info.dtype == "|u1"
        if self._bytes and context is None:  # then no sample can be at fault
            ends = np.zeros((2, *self.info.sample_shape), dtype=np.uint8)
            ends[1] = 255
            self._check(self._normalised(ends))

    @property
    def held(self) -> int:
        """Bytes that the tables of the chunks take: 40 per chunk."""
        return sum(chunks.held for *_, each in self._pieces for chunks in each)

    @property
    def largest(self) -> int:
        """Bytes of the largest chunk."""
        return max((chunks.bytes for *_, each in self._pieces for chunks in each), default=0)

    @property
    def raw(self) -> int:
        """Bytes of a sample as it is stored."""
        features = math.prod(self.info.sample_shape) * np.dtype(self.info.dtype).itemsize
        if self._context is not None:
            return features + np.dtype(self.info.dtype).itemsize
        return features + self._targets.itemsize * math.prod(self.info.target_shape)

    @property
    def made(self) -> int:
        """Bytes of a sample as training takes it."""
        if self._context is not None:
            return self.raw
        features = math.prod(self.info.sample_shape)
        return 4 * features + self._targets.itemsize * math.prod(self.info.target_shape)

    @property
    def _targets(self) -> np.dtype:
        return np.dtype(self.info.columns[-1].dtype)

    def window(self, lo: int, hi: int) -> Rows:
        """The samples `lo` to `hi` - 1 of the part as stored: (x, y), or (windows,) of a text.

        Raises:
            InputError: the file is gone, or damaged.
        """
        if self._context is not None:
            shape, dtype = (hi - lo, self._context + 1), self.info.dtype
            found: Rows = (np.empty(shape, dtype),)
        else:
            found = tuple(np.empty((hi - lo, *c.shape), c.dtype) for c in self.info.columns)
        for base, samples, first, columns in self._pieces:
            start, stop = max(lo, base), min(hi, base + samples)
            if start < stop:
                outs = [out[start - lo : stop - lo] for out in found]
                self._read(columns, first + start - base, outs)
        return found

    def window_by_number(self, size: int, number: int) -> Rows:
        """The samples of a window of so many samples, by its number."""
        return self.window(number * size, min((number + 1) * size, self.samples))

    def _read(self, columns: list[Chunks], lo: int, outs: list[NDArray[Any]]) -> None:
        path = columns[0].path
        try:
            handle = os.open(path, os.O_RDONLY)
            try:
                for chunks, out in zip(columns, outs, strict=True):
                    if self._context is None:
                        chunks.read(handle, lo, out)
                        continue
                    tokens = np.empty(len(out) * self._context + 1, dtype=self.info.dtype)
                    chunks.read(handle, lo * self._context, tokens)
                    out[...] = cut(tokens, self._context)
            finally:
                os.close(handle)
        except OSError as exc:
            raise shard_fault(path, f"is missing or out of reach ({exc.strerror})") from exc

    def pair(self, found: Rows) -> Pair:
        """(x, y) of samples as stored, as `Partition` has them. Raises InputError."""
        if self._context is not None:
            return found[0][:, :-1], found[0][:, 1:]
        raw, y = found
        x = self._normalised(raw)
        if not self._bytes:
            self._check(x)
        return x, y

    def _normalised(self, raw: NDArray[Any]) -> NDArray[np.float32]:
        x = np.empty(raw.shape, dtype=np.float32)
        step = max(1, _BLOCK // (raw[:1].nbytes or 1))
        for k in range(0, len(raw), step):
            block = raw[k : k + step].astype(np.float64)
            block -= self.info.mean
            block /= self.info.std
            with np.errstate(over="ignore"):
                x[k : k + step] = block
        return x

    def _check(self, x: NDArray[np.float32]) -> None:
        if not np.isfinite(x).all():
            what = "normalised features overflow float32"
            raise fault(self._directory, what, "rescale the source data")


class Stream:
    """A rank's part of a split in minibatches, without ever holding the part.

    `take` gives what `read_partition` gives of the same samples, bit for bit. For training, make
    `Batches` with this `window`, and call `follow` once they are where the run starts or resumes.

    Args:
        directory, split, rank, ranks, context, info: as `read_partition` has them.
        window: samples of a window; by default what 4 chunks hold. The order depends on it.

    Attributes:
        info: of the samples; of a text, windowed. samples: of the part. start, total: as
            `Partition` has them.
        missed: minibatches that were not those expected, and were read as they were asked for.

    Raises:
        InputError: what is wrong with the files; shards without checksums of chunks, of an earlier
            version, are refused.
    """

    def __init__(
        self,
        directory: Path,
        split: str,
        rank: int,
        ranks: int,
        *,
        context: int | None = None,
        window: int | None = None,
        info: DatasetInfo | None = None,
    ) -> None:
        self._part = Stored(Path(directory), split, rank, ranks, context, info)
        self.info, self.samples = self._part.info, self._part.samples
        self.start, self.total = self._part.start, self._part.total
        features = math.prod(self.info.sample_shape) * np.dtype(self.info.dtype).itemsize
        self.window = window or WINDOW * max(1, CHUNK // features)
        # Of the part alone: the thread must not keep this object.
        self._window_of = partial(self._part.window_by_number, self.window)
        self.missed = 0
        self._ahead: Ahead | None = None
        self._stop: Any = None

    def memory(self, widest: int) -> int:
        """Bytes that this takes at most, with the arrays of the last minibatch, while it serves.

        Args:
            widest: samples of the largest minibatch (`Batches.widest`) or block.
        """
        part, windows = self._part, self._windows(widest) + 1
        groups = 4 * GROUP * self.window  # in the order of the run, and in the thread's
        indices = 8 * (groups + 2 * self._looked(widest) + 4 * self.samples // self.window)
        minibatches = (self._depth(widest) + 2) * widest * part.made
        passing = widest * part.raw + 8 * max(_BLOCK, part.raw) + 3 * part.largest
        return windows * self.window * part.raw + indices + minibatches + passing + part.held

    def _windows(self, widest: int) -> int:
        """Windows held: this group and the next, and more only where a minibatch is larger."""
        return GROUP * (math.ceil(widest / (GROUP * self.window)) + 2)

    def _looked(self, widest: int) -> int:
        """Samples that are looked ahead."""
        return 2 * GROUP * self.window + widest

    def _depth(self, widest: int) -> int:
        return min(max(READY // max(widest * self._part.made, 1), 2), 16)

    def follow(self, batches: Batches) -> None:
        """Have ready what `batches` will draw from where they are now, in that order."""
        self.close()
        self._ahead = self._started(batches.ahead(), batches.widest)
        # The thread ends with this object, and with the program.
        self._stop = weakref.finalize(self, self._ahead.stop)

    def _started(self, plan: Iterator[Indices], widest: int) -> Ahead:
        return Ahead(
            self._window_of,
            self._part.pair,
            plan,
            empty=self._part.window(0, 0),
            window=self.window,
            windows=self._windows(widest),
            looked=self._looked(widest),
            depth=self._depth(widest),
        )

    def take(self, index: Indices) -> Pair:
        """The samples of an index (b,) into the part: x and y as of `Partition`, for it to keep.

        At once if they are what the followed batches draw next, and are ready; anything else is
        read on the spot.

        Raises:
            InputError: a file is damaged, or gone.
        """
        found = None if self._ahead is None else self._ahead.take(index)
        if found is not None:
            return found
        self.missed += 1
        index = np.asarray(index, dtype=np.int64)
        if len(index) and not 0 <= index.min() <= index.max() < self.samples:
            raise IndexError(f"samples {index.min()} to {index.max()} of {self.samples}")
        empty = self._part.window(0, 0)
        return self._part.pair(gather(index, self.window, empty, self._window_of))

    def blocks(self, rows: int) -> Iterator[Pair]:
        """The whole part in its order, in blocks of so many samples, the last one smaller.

        Raises:
            InputError: a file is damaged, or gone.
        """
        plan = (np.arange(lo, min(lo + rows, self.samples)) for lo in range(0, self.samples, rows))
        ahead = self._started(plan, min(rows, self.samples))
        try:
            while (found := ahead.take(None)) is not None:
                yield found
        finally:
            ahead.stop()

    def close(self) -> None:
        """End the thread and let its memory go; `take` then reads on the spot."""
        if self._stop is not None:
            self._stop()
        self._ahead = self._stop = None

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
