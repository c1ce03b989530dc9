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

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from apts_mpi.data.shards.info import (
    LATEST,
    SPLITS,
    TASKS,
    DatasetInfo,
    Split,
    all_moments,
    attributes_of,
    plain_moments,
)
from apts_mpi.errors import REMEDY, fault
from apts_mpi.files import sealed
from apts_mpi.files.hdf5 import is_inside, opened

INDEX = "index.h5"
INDEX_KIND = "apts-mpi-index"
X_DTYPES = ("|u1", "<f4")
TOKEN_DTYPES = ("|u1", "<i4")


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
        raise fault(path, f"has no attribute {name!r}")
    handle = file.attrs.get_id(name)
    many = isinstance(like, tuple)
    text = isinstance(like[0] if many else like, str)
    kind, shape = handle.dtype.kind, handle.shape
    if kind not in ("S" if text else "iu") or shape is None or len(shape) != many:
        raise fault(path, f"attribute {name!r} has the wrong type ({handle.dtype}, shape {shape})")
    if math.prod(shape) * handle.dtype.itemsize > path.stat().st_size:
        raise fault(path, f"attribute {name!r} claims more bytes than the file has")
    values = np.atleast_1d(np.asarray(file.attrs[name])).tolist()
    found = tuple(value.decode() if text else int(value) for value in values)
    if not all(str(value).isprintable() for value in found):
        raise fault(path, f"attribute {name!r} is not printable")
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
        raise fault(path, f"has no data set {name!r}")
    if data.dtype != np.dtype(dtype) or data.shape != shape:
        found = f"{data.dtype} of shape {data.shape}"
        raise fault(path, f"{name} is {found}, expected {np.dtype(dtype)} of shape {shape}")
    size = math.prod(shape) * np.dtype(dtype).itemsize
    plist = data.id.get_create_plist()
    layout = h5py.h5d.CHUNKED if chunked else h5py.h5d.CONTIGUOUS
    filters = [plist.get_filter(k)[0] for k in range(plist.get_nfilters())]
    if (
        plist.get_layout() != layout
        or plist.get_external_count()
        or filters != [h5py.h5z.FILTER_FLETCHER32] * chunked
    ):
        raise fault(path, f"{name} has a storage layout that this format does not use")
    # Nothing is compressed, so data and chunks must fit into the file that claims them.
    chunk = math.prod(data.chunks) * np.dtype(dtype).itemsize if chunked else 0
    available = min(path.stat().st_size, data.id.get_storage_size())
    if max(size, chunk) > available:
        raise fault(path, f"{name} claims {max(size, chunk)} bytes but {available} are there")
    return data


def read_index(directory: Path) -> DatasetInfo:
    """Read and verify the index alone; the shard files are not touched."""
    path = directory / INDEX
    if not os.path.isdir(directory):  # False, not an error, where the user may not look
        raise fault(directory, "is not a directory", "name a folder made by `shard`")
    if not os.path.lexists(path):
        raise fault(path, "is missing", "name a folder made by `shard`")
    with opened(path) as file:
        likes = dict(format="", format_version=0)
        head = {name: read_attribute(file, path, name, like) for name, like in likes.items()}
        if head["format"] != INDEX_KIND:
            raise fault(path, f"format is {head['format']!r}, not {INDEX_KIND!r}")
        version = head["format_version"]
        if version not in (*TASKS.values(), LATEST):
            what = f"format version {version} is not one of {sorted({*TASKS.values(), LATEST})}"
            raise fault(path, what, f"{REMEDY} of this version")
        task = read_attribute(file, path, "task", "")
        if task not in TASKS:
            raise fault(path, f"task {task!r} is not known")
        if version not in (TASKS[task], LATEST):
            raise fault(path, f"format version {version} is not {TASKS[task]}, that of {task}")
        likes = {"dataset": "", "shards": 0, **attributes_of(task)}
        meta = {name: read_attribute(file, path, name, like) for name, like in likes.items()}
        digest = read_attribute(file, path, "digest", "")
        _check_kind(path, task, meta)
        shape, shards = meta.get("sample_shape", ()), meta["shards"]
        scale = plain_moments(task, meta["dtype"], shape)
        if version == LATEST:
            scale = _moments_shape(file, path, shape)
        mean = read_array(file, path, "mean", "<f8", scale)[()]
        std = read_array(file, path, "std", "<f8", scale)[()]
        targets = {
            name: np.asarray(read_array(file, path, name, "<f8", meta["target_shape"])[()])
            for name in ("target_mean", "target_std")
            if task == "regression"
        }
        splits = {}
        named = [s for s in SPLITS if s != "val" or (version == LATEST and is_inside(file, s))]
        for split in named:
            sizes = read_array(file, path, f"{split}/sizes", "<i8", (shards,))[:]
            contents = read_array(file, path, f"{split}/contents", "S64", (shards,))[:]
            if sizes.min() < (1 if split == "train" else 0):
                raise fault(path, f"{split}/sizes holds {sizes.min()}")
            splits[split] = Split(
                tuple(sizes.tolist()), tuple(text.decode() for text in contents.tolist())
            )
        if not (np.isfinite(mean).all() and np.isfinite(std).all() and np.all(std > 0)):
            raise fault(path, "mean or std is not finite and positive")
        positive = np.all(targets.get("target_std", std) > 0)
        if not (positive and all(np.isfinite(value).all() for value in targets.values())):
            raise fault(path, "target_mean or target_std is not finite, or no deviation")
        info = DatasetInfo(
            name=meta["dataset"],
            classes=meta.get("classes", ()),
            sample_shape=shape,
            dtype=meta["dtype"],
            mean=np.asarray(mean),
            std=np.asarray(std),
            splits=splits,
            task=task,
            target_shape=meta.get("target_shape", ()),
            **targets,
        )
        if (info.digest, info.format_version) != (digest, version):
            raise fault(path, f"digest {digest[:12]} does not match its contents")
    return info


def _moments_shape(file: h5py.File, path: Path, sample_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Of the mean as it is stored, one that samples of that shape can have."""
    data = file["mean"] if is_inside(file, "mean") else None
    found = data.shape if isinstance(data, h5py.Dataset) else None
    if found not in all_moments(sample_shape):
        raise fault(path, f"mean of shape {found} is none of samples {sample_shape}")
    return found


def _check_kind(path: Path, task: str, meta: Mapping[str, Any]) -> None:
    """Refuse what no index says of its samples."""
    dtypes = TOKEN_DTYPES if task == "language" else X_DTYPES
    if meta["dtype"] not in dtypes:
        raise fault(path, f"dtype {meta['dtype']!r} is not one of {dtypes}")
    if not meta.get("classes", True):
        raise fault(path, "the class list is empty")
    shards = meta["shards"]
    shapes = {name: meta[name] for name in ("sample_shape", "target_shape") if name in meta}
    for name, shape in shapes.items():
        if shards < 1 or not shape or min(shape) < 1:
            raise fault(path, f"shards {shards} and {name} {shape} must be positive")
    if shards < 1:
        raise fault(path, f"shards {shards} must be positive")
    if len(meta.get("target_shape", (1,))) != 1:
        raise fault(path, f"target_shape {meta['target_shape']} is not of one dimension")


def check_shard(
    file: h5py.File, path: Path, info: DatasetInfo, split: str, shard: int
) -> list[h5py.Dataset]:
    """The data sets of a shard file (`info.columns`), once it is known to belong to `info`."""
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
            raise fault(path, f"{name} differs from {INDEX}")
    chunked = samples > 0  # HDF5 has no chunks for an empty data set
    return [
        read_array(file, path, name, dtype, (samples, *shape), chunked=chunked)
        for name, dtype, shape in info.columns
    ]


def seal(path: Path) -> None:
    """Put the checksum of a finished index into its user block.

    HDF5 keeps the maps of virtual data sets in a heap without checksums: they are only looked at
    under an unbroken seal.
    """
    sealed.seal(path, INDEX_KIND)


def check_seal(path: Path) -> None:
    """Compare an index with its checksum."""
    try:
        whole = sealed.unbroken(path, INDEX_KIND)
    except OSError as exc:
        raise fault(path, f"cannot be read ({exc.strerror})") from exc
    if not whole:
        raise fault(path, "is damaged (it does not match its checksum)")
