"""Rows in the order of the shards, wherever they are stored, in bounded memory.

Files are read in their own order, once. Their rows are dealt out to buckets, pieces of the shards'
order that fit into memory, each of which has its place in a temporary file; within a bucket they
lie as they came. So the disk is read and written in long pieces, however random the order is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import accumulate, pairwise
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from apts_mpi.data.sources.stored import Stored

BUCKET = 64 * 2**20  # bytes

Array = NDArray[Any]
Rows = NDArray[np.int64] | slice  # of a split that make a shard; a text is not shuffled
Parts = dict[str, list[Rows]]


class Ordered:
    """Rows in the order of the shards; ``x[a:b]`` reads some, and `part` is a part, not read."""

    def __init__(
        self,
        read: Callable[[int, int], Array],
        start: int,
        stop: int,
        dtype: np.dtype[Any],
        shape: tuple[int, ...],
    ) -> None:
        """`read` gives the rows between two numbers; `shape` is that of a row."""
        self._read, self._start, self._stop = read, start, stop
        self.dtype, self.row_shape = dtype, shape

    def __len__(self) -> int:
        return self._stop - self._start

    def __getitem__(self, rows: slice) -> Array:
        start, stop, _ = rows.indices(len(self))
        return self._read(self._start + start, self._start + stop)

    def part(self, start: int, stop: int) -> Ordered:
        """The rows from `start` to before `stop`."""
        first = self._start
        return Ordered(self._read, first + start, first + stop, self.dtype, self.row_shape)


Shards = dict[str, list[dict[str, Ordered]]]  # of each split, its shards: their data sets by name


@contextmanager
def in_order(
    columns: Mapping[str, Mapping[str, Any]], parts: Parts, folder: Path
) -> Iterator[Shards]:
    """The shards of every split, whose `columns` are arrays or `Stored`, with these `parts`.

    What is stored in files is copied to a temporary one in `folder`, of the size of the data, which
    has no name and is gone in the end. Raises InputError for what is wrong with the data, and
    OSError where `folder` cannot be written.
    """
    ordered: dict[str, dict[str, Ordered]] = {split: {} for split in columns}
    waiting: dict[Any, list[tuple[str, str]]] = {}
    for split, names in columns.items():
        for name, data in names.items():
            if isinstance(data, Stored):
                waiting.setdefault(data.read, []).append((split, name))
            else:
                ordered[split][name] = _held(data, parts[split])
    with ExitStack() as stack:
        for wanted in waiting.values():
            file = stack.enter_context(TemporaryFile(prefix=".apts_mpi-", dir=folder))
            data = [columns[split][name] for split, name in wanted]
            spooled = _spooled(data, [parts[split] for split, _ in wanted], file)
            for (split, name), found in zip(wanted, spooled, strict=True):
                ordered[split][name] = found
        yield {
            split: [
                {name: ordered[split][name].part(*ends) for name in columns[split]}
                for ends in _ends(parts[split], len(next(iter(columns[split].values()))))
            ]
            for split in columns
        }


def _ends(parts: Sequence[Rows], rows: int) -> Iterator[tuple[int, int]]:
    """Where each shard starts and stops in the order of all."""
    sizes = [
        len(range(*chosen.indices(rows))) if isinstance(chosen, slice) else len(chosen)
        for chosen in parts
    ]
    return pairwise(accumulate(sizes, initial=0))


def _held(data: Any, parts: Sequence[Any]) -> Ordered:
    """Of an array in memory, or of tokens, which are in their order already."""
    if isinstance(parts[0], slice):
        return Ordered(lambda a, b: np.asarray(data[a:b]), 0, len(data), data.dtype, ())
    order = np.concatenate(parts)
    return Ordered(lambda a, b: data[order[a:b]], 0, len(order), data.dtype, data.shape[1:])


def _spooled(
    columns: Sequence[Stored], parts: Sequence[list[Any]], file: IO[bytes]
) -> list[Ordered]:
    """Of parts of the same files, which are read together."""
    orders = [np.concatenate(each) for each in parts]
    starts = list(accumulate(map(len, orders), initial=0))
    last = max(
        len(data) if data.rows is None else int(data.rows.max(initial=-1)) + 1 for data in columns
    )
    position = np.full(last, -1, dtype=np.int64)
    for data, order, start in zip(columns, orders, starts[:-1], strict=True):
        rows = order if data.rows is None else data.rows[order]
        position[rows] = np.arange(start, start + len(order))
    row, dtype = columns[0].shape[1:], columns[0].dtype
    spool = _Spool(file, starts[-1], row, dtype)
    spool.fill(columns[0].read(), position)
    return [Ordered(spool.read, start, stop, dtype, row) for start, stop in pairwise(starts)]


class _Spool:
    """Rows in a file: the buckets in their order, the rows of a bucket as they came."""

    def __init__(
        self, file: IO[bytes], rows: int, shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> None:
        self._file, self._rows, self._shape, self._dtype = file, rows, shape, dtype
        self._row = math.prod(shape) * dtype.itemsize
        self._bucket = max(1, BUCKET // self._row)  # rows
        self._place = np.zeros(rows, dtype=np.int32)  # of each row in its bucket
        self._held: tuple[int, Array] = (-1, np.empty(0))

    def fill(self, blocks: Iterator[Array], position: NDArray[np.int64]) -> None:
        """Take in rows as they come; `position` is that of each in the order, or -1."""
        filled = np.zeros(-(-self._rows // self._bucket), dtype=np.int64)
        start = 0
        with tqdm(
            total=len(position), desc="reading", unit="sample", disable=None, leave=False
        ) as bar:
            for block in blocks:
                places = position[start : start + len(block)]
                start += len(block)
                chosen = np.flatnonzero(places >= 0)
                chosen = chosen[np.argsort(places[chosen], kind="stable")]
                buckets = places[chosen] // self._bucket
                cuts = [0, *np.flatnonzero(np.diff(buckets)) + 1, len(chosen)]
                for a, b in pairwise(cuts) if len(chosen) else ():
                    bucket = buckets[a]
                    mine = chosen[a:b]
                    self._place[places[mine]] = filled[bucket] + np.arange(b - a)
                    self._file.seek(int(bucket * self._bucket + filled[bucket]) * self._row)
                    self._file.write(np.ascontiguousarray(block[mine], self._dtype).data)
                    filled[bucket] += b - a
                bar.update(len(block))
        assert filled.sum() == self._rows, "every row came"
        self._file.flush()

    def read(self, start: int, stop: int) -> Array:
        """The rows from `start` to before `stop` in the order."""
        pieces = [np.empty((0, *self._shape), dtype=self._dtype)]
        while start < stop:
            bucket = start // self._bucket
            end = min(stop, (bucket + 1) * self._bucket)
            pieces.append(self._load(bucket)[self._place[start:end]])
            start = end
        return pieces[1] if len(pieces) == 2 else np.concatenate(pieces)

    def _load(self, bucket: int) -> Array:
        if self._held[0] != bucket:
            self._held = (-1, np.empty(0))  # let go of it first
            first = bucket * self._bucket
            rows = min(self._bucket, self._rows - first)
            content = np.empty((rows, *self._shape), dtype=self._dtype)
            self._file.seek(first * self._row)
            got = self._file.readinto(content.data.cast("B"))  # type: ignore[attr-defined]
            if got != content.nbytes:
                raise OSError(f"a temporary file has {got} of {content.nbytes} bytes")
            self._held = (bucket, content)
        return self._held[1]
