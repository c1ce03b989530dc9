"""The chunks of shard files, read one by one from where they lie.

HDF5 is asked once where the chunks are. From then on they are read by the system alone, and each is
compared with its SHA-256: so a thread can read while others compute or write files with HDF5, which
lets in one at a time.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from apts_mpi.data.shards.format import chunk_sum, opened_shard, read_sums, shard_fault
from apts_mpi.data.shards.info import DatasetInfo
from apts_mpi.data.shards.reading import check_block, damaged

LARGEST = 32 * 1024 * 1024  # bytes of a chunk; `shard` makes them of 512 KiB or of one sample


@dataclass(frozen=True)
class Chunks:
    """The chunks of a data set that hold some of its rows.

    Attributes:
        number: of the first. offsets: (chunks,) where each lies in the file. sums: (chunks, 32)
            their SHA-256. length: rows of the data set. rows: rows of a chunk.
    """

    path: Path
    info: DatasetInfo = field(repr=False)
    name: str
    dtype: str
    shape: tuple[int, ...]
    length: int
    rows: int
    number: int
    offsets: NDArray[np.int64] = field(repr=False)
    sums: NDArray[np.uint8] = field(repr=False)

    @property
    def bytes(self) -> int:
        """Of a chunk."""
        return self.rows * math.prod(self.shape) * np.dtype(self.dtype).itemsize

    @property
    def held(self) -> int:
        """Bytes that the tables take."""
        return self.offsets.nbytes + self.sums.nbytes

    def read(self, handle: int, lo: int, out: NDArray[Any]) -> None:
        """Fill `out` (n, *shape) with the rows `lo` to lo + n - 1, from the open file.

        Raises:
            InputError: a chunk is damaged, or holds what no sample can have.
            OSError: the file cannot be read.
        """
        hi = lo + len(out)
        for number in range(lo // self.rows, math.ceil(hi / self.rows)):
            first = number * self.rows
            count = min(self.rows, self.length - first)
            size = count * math.prod(self.shape) * np.dtype(self.dtype).itemsize
            raw = os.pread(handle, size, int(self.offsets[number - self.number]))
            if len(raw) < size:
                raise shard_fault(self.path, f"ends within {self.name}[{first + count - 1}]")
            chunk = np.frombuffer(raw, dtype=self.dtype).reshape(count, *self.shape)
            if not np.array_equal(chunk_sum(chunk), self.sums[number - self.number]):
                raise damaged(self.path, self.name, first, count)
            start, stop = max(first, lo), min(first + count, hi)
            rows = chunk[start - first : stop - first]
            check_block(self.path, self.info, self.name, start, rows)
            out[start - lo : stop - lo] = rows


def locate(
    directory: Path, info: DatasetInfo, split: str, shard: int, lo: int, hi: int
) -> list[Chunks]:
    """Where the rows `lo` to `hi` - 1 of the data sets of a shard are. Raises InputError."""
    path = directory / info.filename(split, shard)
    with opened_shard(directory, info, split, shard) as (file, columns):
        tables = read_sums(file, path, columns)
        if tables is None:
            raise shard_fault(path, "has no checksums of its chunks, so that it cannot be streamed")
        return [
            _located(path, info, data, column.shape, sums, lo, hi)
            for data, column, sums in zip(columns, info.columns, tables, strict=True)
        ]


def _located(
    path: Path,
    info: DatasetInfo,
    data: h5py.Dataset,
    shape: tuple[int, ...],
    sums: NDArray[np.uint8],
    lo: int,
    hi: int,
) -> Chunks:
    name, (rows, *whole) = data.name.strip("/"), data.chunks
    size = math.prod(data.chunks) * data.dtype.itemsize
    sample = math.prod(shape) * data.dtype.itemsize
    if tuple(whole) != shape or size > max(LARGEST, sample):
        raise shard_fault(
            path, f"{name} has chunks of shape {data.chunks}, too large to be streamed"
        )
    first, last = lo // rows, math.ceil(hi / rows)
    offsets = np.empty(last - first, dtype=np.int64)
    for number in range(first, last):
        found = data.id.get_chunk_info_by_coord((number * rows,) + (0,) * len(shape))
        if found.byte_offset is None or found.size < size:
            raise shard_fault(path, f"has no chunk for {name}[{number * rows}]")
        offsets[number - first] = found.byte_offset
    return Chunks(
        path=path,
        info=info,
        name=name,
        dtype=data.dtype.str,
        shape=shape,
        length=len(data),
        rows=rows,
        number=first,
        offsets=offsets,
        sums=sums[first:last].copy(),
    )
