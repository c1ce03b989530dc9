"""Reading a sharding: a rank's part of the global order, or everything to verify it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from apts_mpi.data.format import (
    SPLITS,
    check_shard,
    chunk_sum,
    fault,
    opened,
    read_index,
    read_sums,
)
from apts_mpi.data.info import DatasetInfo
from apts_mpi.data.partitioning import part
from apts_mpi.errors import InputError

BLOCK = 1024 * 1024  # bytes of raw data held besides the result


@dataclass(frozen=True)
class Partition:
    """A rank's contiguous part of a split.

    `x` is float32, C-contiguous, of shape (m, *sample_shape), normalised; `y` is int64 of shape
    (m,); the part is the global samples `start` to `start + m - 1` of `total`.
    """

    x: NDArray[np.float32]
    y: NDArray[np.int64]
    start: int
    total: int


def read_info(directory: Path) -> DatasetInfo:
    """Read the index and check that every shard is there and belongs to it, reading no samples.

    Raises InputError.
    """
    directory = Path(directory)
    info = read_index(directory)
    for split in SPLITS:
        for shard in range(info.shards):
            path = directory / info.filename(split, shard)
            with opened(path) as file:
                check_shard(file, path, info, split, shard)
    return info


def scan_shard(
    directory: Path,
    info: DatasetInfo,
    split: str,
    shard: int,
    lo: int,
    hi: int,
    use: Callable[[int, NDArray[Any]], None],
) -> NDArray[np.int64]:
    """Verify rows `lo` to `hi` - 1 of a shard, hand them to `use` block by block, return labels.

    `use(offset, block)` gets raw rows (r, *sample_shape), the first being row lo + offset. A
    shard read whole is compared with its content digest; of a part, every chunk with its own.
    """
    path = directory / info.filename(split, shard)
    with opened(path) as file:
        x, y = check_shard(file, path, info, split, shard)
        sums = None if hi - lo == len(y) else read_sums(file, path, x, y)
        digest = hashlib.sha256()
        # Without checksums of its chunks only the whole can be known to be sound.
        blocks = _blocks(x, 0, len(y)) if sums is None else _checked(path, x, sums[0], lo, hi)
        for first, block in blocks:
            if block.dtype.kind == "f" and not np.isfinite(block).all():
                row = first + int(np.argwhere(~np.isfinite(block))[0][0])
                raise fault(path, f"x[{row}] holds NaN or infinity", "mend the source data")
            if sums is None:
                digest.update(block.data)
            start, stop = max(first, lo), min(first + len(block), hi)
            if start < stop:
                use(start - lo, block[start - first : stop - first])
        if sums is None:
            everyone: NDArray[np.int64] = y[:]
            digest.update(everyone.data)
            labels = everyone[lo:hi]
        else:
            found = [block for _, block in _checked(path, y, sums[1], lo, hi)]
            labels = np.concatenate(found)[lo % y.chunks[0] :][: hi - lo]
        if len(labels) and not 0 <= labels.min() <= labels.max() < len(info.classes):
            bad = labels[(labels < 0) | (labels >= len(info.classes))][0]
            raise fault(path, f"label {bad} is not in 0..{len(info.classes) - 1}")
        content = info.splits[split].contents[shard]
        if sums is None and digest.hexdigest() != content:
            raise fault(path, f"the data do not match their digest {content[:12]}")
    return labels


def _blocks(data: h5py.Dataset, lo: int, hi: int) -> Iterator[tuple[int, NDArray[Any]]]:
    """Rows `lo` to `hi` - 1 in blocks of whole chunks, each with the number of its first row."""
    rows = data.chunks[0] if data.chunks else 1
    step = rows * max(1, BLOCK // max(1, rows * data.dtype.itemsize * math.prod(data.shape[1:])))
    for first in range(lo, hi, step):
        yield first, data[first : min(first + step, hi)]


def _checked(
    path: Path, data: h5py.Dataset, sums: NDArray[np.uint8], lo: int, hi: int
) -> Iterator[tuple[int, NDArray[Any]]]:
    """The chunks that hold rows `lo` to `hi` - 1, each compared with its checksum."""
    rows = data.chunks[0]
    for number in range(lo // rows, math.ceil(hi / rows)):
        first = number * rows
        chunk = data[first : first + rows]
        if not np.array_equal(chunk_sum(chunk), sums[number]):
            name = data.name.strip("/")
            raise fault(path, f"is damaged ({name}[{first}] to {name}[{first + len(chunk) - 1}])")
        yield first, chunk


def _check_room(directory: Path, info: DatasetInfo, split: str, shard: int) -> None:
    """See that a file can hold what the index claims, before room is made for it."""
    path = directory / info.filename(split, shard)
    samples = info.splits[split].sizes[shard]
    claimed = samples * math.prod(info.sample_shape) * np.dtype(info.dtype).itemsize
    try:
        size = path.stat().st_size
    except OSError as exc:
        raise fault(path, f"is missing or out of reach ({exc.strerror})") from exc
    if claimed > size:
        raise fault(path, f"has {size} bytes, too few for {samples} samples")


def read_partition(directory: Path, split: str, rank: int, ranks: int) -> Partition:
    """Read one rank's part of `split` ("train" or "test") and nothing else.

    With as many ranks as shards, part r is shard r; otherwise the parts are equal to within one
    sample. A part of the test data may be empty; more ranks than training samples is an
    InputError, as is everything wrong with the files.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is not one of {SPLITS}")
    directory = Path(directory)
    info = read_index(directory)
    table = info.splits[split]
    if split == "train" and ranks > table.total:
        raise InputError(
            f"{directory}: {ranks} ranks for {table.total} training samples; "
            f"use {table.total} ranks at most"
        )
    start, stop = part(table.sizes, rank, ranks)
    touched = [
        (shard, max(start, first) - first, min(stop, last) - first)
        for shard, (first, last) in enumerate(pairwise(table.starts))
        if max(start, first) < min(stop, last)
    ]
    for shard, _, _ in touched:
        _check_room(directory, info, split, shard)
    x = np.empty((stop - start, *info.sample_shape), dtype=np.float32)
    y = np.empty(stop - start, dtype=np.int64)
    for shard, lo, hi in touched:
        base = table.starts[shard] + lo - start
        path = directory / info.filename(split, shard)

        def normalise(offset: int, block: NDArray[Any], base: int = base) -> None:
            out = x[base + offset : base + offset + len(block)]
            with np.errstate(over="ignore"):
                out[...] = (block - info.mean) / info.std

        y[base : base + hi - lo] = scan_shard(directory, info, split, shard, lo, hi, normalise)
        if not np.isfinite(x[base : base + hi - lo]).all():
            raise fault(path, "normalised features overflow float32", "rescale the source data")
    return Partition(x=x, y=y, start=start, total=table.total)
