"""Reading a sharding: a rank's part of the global order, or everything to verify it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from apts_mpi.data.shards.format import chunk_sum, opened_shard, read_sums, shard_fault
from apts_mpi.data.shards.index import read_index
from apts_mpi.data.shards.info import DatasetInfo
from apts_mpi.data.shards.partitioning import cut, located, samples_of
from apts_mpi.errors import InputError, fault

BLOCK = 1024 * 1024  # bytes of raw data held besides the result


@dataclass(frozen=True)
class Partition:
    """A rank's contiguous part of a split.

    `x` is float32, C-contiguous, of shape (m, *sample_shape), normalised; `y` is int64 of shape
    (m,), or float32 of shape (m, outputs) where the task is a regression. Of a text both are
    windows (m, context) of its tokens, uint8 or int32, `y` one token further than `x`: two views
    of one array. The part is the global samples `start` to `start + m - 1` of `total`.
    """

    x: NDArray[Any]
    y: NDArray[Any]
    start: int
    total: int


def read_info(directory: Path) -> DatasetInfo:
    """Read the index and check that every shard is there and belongs to it, reading no samples.

    Raises InputError.
    """
    directory = Path(directory)
    info = read_index(directory)
    check_files(directory, info, info.files)
    return info


def check_files(directory: Path, info: DatasetInfo, files: Iterable[tuple[str, int]]) -> None:
    """Check that shards (split, number) are there and belong to `info`. Raises InputError."""
    for split, shard in files:
        with opened_shard(directory, info, split, shard):
            pass


def unread(shown: DatasetInfo, splits: Collection[str]) -> list[tuple[str, int]]:
    """The shards (split, number) that none of the ranks opens that together read `splits`.

    Args:
        shown: what is read; of a text, its windows.
    """
    return [
        (split, shard)
        for split, shard in shown.files
        if split not in splits or not shown.splits[split].sizes[shard]
    ]


def scan_shard(
    directory: Path,
    info: DatasetInfo,
    split: str,
    shard: int,
    lo: int,
    hi: int,
    use: Callable[[int, NDArray[Any]], None],
) -> NDArray[Any]:
    """Verify rows `lo` to `hi` - 1 of a shard, hand them to `use` block by block, return `y`.

    `use(offset, block)` gets raw rows (r, *sample_shape), or tokens (r,) of a text, the first being
    row lo + offset. A shard read whole is compared with its content digest; of a part, every chunk
    with its own. What is returned is labels (hi - lo,), int64, or targets (hi - lo, outputs),
    float32; nothing, of shape (0,), of a text.
    """
    path = directory / info.filename(split, shard)
    with opened_shard(directory, info, split, shard) as (file, columns):
        x, *rest = columns
        sums = None if hi - lo == len(x) else read_sums(file, path, columns)
        digest = hashlib.sha256()
        # Without checksums of its chunks only the whole can be known to be sound.
        blocks = _blocks(x, 0, len(x)) if sums is None else checked(path, x, sums[0], lo, hi)
        for first, block in blocks:
            check_block(path, info, info.columns[0].name, first, block)
            if sums is None:
                digest.update(block.data)
            start, stop = max(first, lo), min(first + len(block), hi)
            if start < stop:
                use(start - lo, block[start - first : stop - first])
        targets: NDArray[Any] = np.empty(0, dtype=np.int64)
        for y in rest:  # one or none
            if sums is None:
                everyone = y[:]
                digest.update(everyone.data)
                targets = everyone[lo:hi]
            else:
                found = [block for _, block in checked(path, y, sums[1], lo, hi)]
                targets = np.concatenate(found)[lo % y.chunks[0] :][: hi - lo]
            check_block(path, info, "y", lo, targets)
        content = info.splits[split].contents[shard]
        if sums is None and digest.hexdigest() != content:
            raise shard_fault(path, f"the data do not match their digest {content[:12]}")
    return targets


def check_block(path: Path, info: DatasetInfo, name: str, first: int, block: NDArray[Any]) -> None:
    """Refuse rows of a data set, from row `first` on, with values that no sample can have."""
    if block.dtype.kind == "f" and not np.isfinite(block).all():
        row = first + int(np.argwhere(~np.isfinite(block))[0][0])
        raise fault(path, f"{name}[{row}] holds NaN or infinity", "mend the source data")
    if name == "x" or block.dtype.kind == "f" or not len(block):
        return
    top = len(info.classes) - 1
    if not 0 <= block.min() <= block.max() <= top:
        bad = block[(block < 0) | (block > top)][0]
        raise shard_fault(path, f"{'label' if name == 'y' else 'token'} {bad} is not in 0..{top}")


def _blocks(data: h5py.Dataset, lo: int, hi: int) -> Iterator[tuple[int, NDArray[Any]]]:
    """Rows `lo` to `hi` - 1 in blocks of whole chunks, each with the number of its first row."""
    rows = data.chunks[0] if data.chunks else 1
    step = rows * max(1, BLOCK // max(1, rows * data.dtype.itemsize * math.prod(data.shape[1:])))
    for first in range(lo, hi, step):
        yield first, data[first : min(first + step, hi)]


def checked(
    path: Path, data: h5py.Dataset, sums: NDArray[np.uint8], lo: int, hi: int
) -> Iterator[tuple[int, NDArray[Any]]]:
    """The chunks that hold rows `lo` to `hi` - 1, each compared with its checksum."""
    rows = data.chunks[0]
    for number in range(lo // rows, math.ceil(hi / rows)):
        first = number * rows
        chunk = data[first : first + rows]
        if not np.array_equal(chunk_sum(chunk), sums[number]):
            raise damaged(path, data.name.strip("/"), first, len(chunk))
        yield first, chunk


def damaged(path: Path, name: str, first: int, count: int) -> InputError:
    """A chunk of so many rows that is not what was written."""
    return shard_fault(path, f"is damaged ({name}[{first}] to {name}[{first + count - 1}])")


def _check_room(directory: Path, info: DatasetInfo, split: str, shard: int) -> None:
    """See that a file can hold what the index claims, before room is made for it."""
    path = directory / info.filename(split, shard)
    samples = info.splits[split].sizes[shard]
    claimed = samples * math.prod(info.sample_shape) * np.dtype(info.dtype).itemsize
    try:
        size = path.stat().st_size
    except OSError as exc:
        raise shard_fault(path, f"is missing or out of reach ({exc.strerror})") from exc
    if claimed > size:
        raise shard_fault(path, f"has {size} bytes, too few for {samples} samples")


def read_partition(
    directory: Path,
    split: str,
    rank: int,
    ranks: int,
    context: int | None = None,
    *,
    info: DatasetInfo | None = None,
) -> Partition:
    """Read one rank's part of `split` ("train", "val" or "test") and nothing else.

    With as many ranks as shards, part r is shard r; otherwise the parts are equal to within one
    sample. A part of the validation or test data may be empty; more ranks than training samples is
    an InputError, as is everything wrong with the files. A text is read as windows of `context`
    tokens (`windowed`), and only a text (else ValueError). `info` is what the index says; it is
    read where that is not given.
    """
    directory = Path(directory)
    info = info or read_index(directory)
    shown = samples_of(directory, info, context)
    start, stop, touched = located(directory, shown, split, rank, ranks)
    for shard, _, _ in touched:
        _check_room(directory, info, split, shard)
    if context is not None:
        return _read_windows(directory, info, shown, split, start, stop, touched)
    table = info.splits[split]
    x = np.empty((stop - start, *info.sample_shape), dtype=np.float32)
    _, targets = info.columns
    y = np.empty((stop - start, *targets.shape), dtype=targets.dtype)
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


def _read_windows(
    directory: Path,
    info: DatasetInfo,
    shown: DatasetInfo,
    split: str,
    start: int,
    stop: int,
    touched: list[tuple[int, int, int]],
) -> Partition:
    """The part of a text that is the windows `start` to `stop` - 1 of `shown`."""
    (context,), table = shown.sample_shape, shown.splits[split]
    windows = np.empty((stop - start, context + 1), dtype=info.dtype)
    for shard, lo, hi in touched:
        base = table.starts[shard] + lo - start
        tokens = np.empty((hi - lo) * context + 1, dtype=info.dtype)

        def keep(offset: int, block: NDArray[Any], tokens: NDArray[Any] = tokens) -> None:
            tokens[offset : offset + len(block)] = block

        scan_shard(directory, info, split, shard, lo * context, hi * context + 1, keep)
        windows[base : base + hi - lo] = cut(tokens, context)
    return Partition(windows[:, :-1], windows[:, 1:], start, table.total)
