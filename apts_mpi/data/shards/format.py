"""The shard format: names, attributes, identity, and the checks made on opening a file.

A sharding is a folder with `index.h5` and, for each split (train, test, and val if there is one),
K files `<split>-<k>-of-<K>.h5`. A shard holds `x` (samples, *sample_shape), uint8 or float32, and
`y`: class indices (samples,), int64, or targets of a regression (samples, outputs), float32. Of a
text it holds `tokens` (samples,), uint8 or int32, a piece of it. All are chunked with fletcher32;
the index holds the table of shards and virtual data sets over them. All metadata are fixed-size and
written with the HDF5 1.10 file format, whose metadata blocks carry checksums: a flipped bit in
anything that is used is noticed.

fletcher32 takes a chunk lost to zeros for a sound one, and black for white. So a shard also holds
`sums` (chunks of its data sets, 32), the SHA-256 of each, and their own as an attribute. Shards
that have none are older: a part of one is only known to be sound when all of it has been read.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from apts_mpi.data.shards.info import DatasetInfo
from apts_mpi.data.shards.spooling import Ordered
from apts_mpi.errors import InputError, fault
from apts_mpi.files.hdf5 import is_inside, opened

INDEX = "index.h5"
REMEDY = "make the shards again with `python -m apts_mpi shard`"
SUMS = "sums"


def shard_fault(path: Path, what: str) -> InputError:
    """The error for a file of a sharding that only making it again mends."""
    return fault(path, what, REMEDY)


def write_attributes(file: h5py.File, values: Mapping[str, Any]) -> None:
    """Write attributes as fixed-size values (variable-length text would escape the checksums)."""
    for name, value in values.items():
        if isinstance(value, str):
            file.attrs[name] = np.bytes_(value.encode())
        elif isinstance(value, tuple) and value and isinstance(value[0], str):
            file.attrs[name] = np.array([text.encode() for text in value], dtype="S")
        else:
            file.attrs[name] = np.asarray(value, dtype=np.int64)


def read_attribute(file: h5py.File, path: Path, name: str, like: Any) -> Any:
    """One attribute of the type of `like` (int, str, or a tuple of either), checked before read."""
    if name not in file.attrs:
        raise shard_fault(path, f"has no attribute {name!r}")
    handle = file.attrs.get_id(name)
    many = isinstance(like, tuple)
    text = isinstance(like[0] if many else like, str)
    kind, shape = handle.dtype.kind, handle.shape
    if kind not in ("S" if text else "iu") or shape is None or len(shape) != many:
        raise shard_fault(
            path, f"attribute {name!r} has the wrong type ({handle.dtype}, shape {shape})"
        )
    if math.prod(shape) * handle.dtype.itemsize > path.stat().st_size:
        raise shard_fault(path, f"attribute {name!r} claims more bytes than the file has")
    values = np.atleast_1d(np.asarray(file.attrs[name])).tolist()
    found = tuple(value.decode() if text else int(value) for value in values)
    if not all(str(value).isprintable() for value in found):
        raise shard_fault(path, f"attribute {name!r} is not printable")
    return found if many else found[0]


def read_array(
    file: h5py.File,
    path: Path,
    name: str,
    dtype: str,
    shape: tuple[int, ...],
    *,
    chunked: bool = False,
) -> h5py.Dataset:
    """The data set `name`, once its type, shape, layout and claimed size have been checked."""
    data = file[name] if is_inside(file, name) else None
    if not isinstance(data, h5py.Dataset):
        raise shard_fault(path, f"has no data set {name!r}")
    if data.dtype != np.dtype(dtype) or data.shape != shape:
        found = f"{data.dtype} of shape {data.shape}"
        raise shard_fault(path, f"{name} is {found}, expected {np.dtype(dtype)} of shape {shape}")
    size = math.prod(shape) * np.dtype(dtype).itemsize
    plist = data.id.get_create_plist()
    layout = h5py.h5d.CHUNKED if chunked else h5py.h5d.CONTIGUOUS
    filters = [plist.get_filter(k)[0] for k in range(plist.get_nfilters())]
    if (
        plist.get_layout() != layout
        or plist.get_external_count()
        or filters != [h5py.h5z.FILTER_FLETCHER32] * chunked
    ):
        raise shard_fault(path, f"{name} has a storage layout that this format does not use")
    # Nothing is compressed, so data and chunks must fit into the file that claims them.
    chunk = math.prod(data.chunks) * np.dtype(dtype).itemsize if chunked else 0
    available = min(path.stat().st_size, data.id.get_storage_size())
    if max(size, chunk) > available:
        raise shard_fault(path, f"{name} claims {max(size, chunk)} bytes but {available} are there")
    return data


@contextmanager
def opened_shard(
    directory: Path, info: DatasetInfo, split: str, shard: int
) -> Iterator[tuple[h5py.File, list[h5py.Dataset]]]:
    """A shard file and its data sets (`info.columns`), once it is known to belong to `info`.

    All damage met inside becomes one InputError.
    """
    path = directory / info.filename(split, shard)
    with opened(path, REMEDY) as file:
        yield file, _checked(file, path, info, split, shard)


def _checked(
    file: h5py.File, path: Path, info: DatasetInfo, split: str, shard: int
) -> list[h5py.Dataset]:
    for name, expected in info.shard_attributes(split, shard).items():
        found = read_attribute(file, path, name, expected)
        if found != expected:
            raise fault(
                path,
                f"does not belong to this {INDEX}: "
                f"{name} is {str(found)[:80]!r}, expected {str(expected)[:80]!r}",
                f"restore the file, or {REMEDY}",
            )
    samples = info.splits[split].sizes[shard]
    for name, value in (("mean", info.mean), ("std", info.std)):
        if not np.array_equal(read_array(file, path, name, "<f8", value.shape)[()], value):
            raise shard_fault(path, f"{name} differs from {INDEX}")
    chunked = samples > 0  # HDF5 has no chunks for an empty data set
    return [
        read_array(file, path, name, dtype, (samples, *shape), chunked=chunked)
        for name, dtype, shape in info.columns
    ]


def chunk_sum(chunk: NDArray[Any]) -> NDArray[np.uint8]:
    """(32,) SHA-256 of the rows of a chunk."""
    return np.frombuffer(hashlib.sha256(chunk.data).digest(), dtype=np.uint8)


def write_sums(file: h5py.File, columns: Mapping[str, Ordered]) -> None:
    """Add the checksums of the chunks of data sets which have been written."""
    rows = ((data, file[name].chunks[0]) for name, data in columns.items())
    sums = np.stack(
        [chunk_sum(data[k : k + step]) for data, step in rows for k in range(0, len(data), step)]
    )
    file[SUMS] = sums
    write_attributes(file, {SUMS: hashlib.sha256(sums.data).hexdigest()})


def read_sums(
    file: h5py.File, path: Path, columns: Sequence[h5py.Dataset]
) -> list[NDArray[np.uint8]] | None:
    """The checksums (chunks, 32) of the chunks of each; None where the shard has none."""
    if SUMS not in file and SUMS not in file.attrs:
        return None
    chunks = [math.ceil(len(data) / data.chunks[0]) for data in columns]
    sums = read_array(file, path, SUMS, "|u1", (sum(chunks), 32))[:]
    if hashlib.sha256(sums.data).hexdigest() != read_attribute(file, path, SUMS, ""):
        raise shard_fault(path, "is damaged (its table of checksums)")
    return np.split(sums, np.cumsum(chunks)[:-1])
