"""The index of a sharding: written, sealed, read and verified."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from apts_mpi.data.shards.format import (
    INDEX,
    REMEDY,
    read_array,
    read_attribute,
    shard_fault,
    write_attributes,
)
from apts_mpi.data.shards.info import (
    LATEST,
    TASKS,
    DatasetInfo,
    Split,
    all_moments,
    attributes_of,
    plain_moments,
)
from apts_mpi.data.sources.splits import SPLITS
from apts_mpi.errors import fault
from apts_mpi.files import sealed
from apts_mpi.files.hdf5 import LIBVER, is_inside, opened

KIND = "apts-mpi-index"
X_DTYPES = ("|u1", "<f4")
TOKEN_DTYPES = ("|u1", "<i4")


def write_index(path: Path, info: DatasetInfo) -> None:
    """Write the index, with virtual data sets over the shards, and seal it."""
    with h5py.File(path, "w", libver=LIBVER, userblock_size=sealed.SIZE) as file:
        write_attributes(file, info.index_attributes())
        file["mean"], file["std"] = info.mean, info.std
        for name, value in info.target_moments().items():
            file[name] = value
        for split, table in info.splits.items():
            file[f"{split}/sizes"] = np.array(table.sizes, dtype="<i8")
            file[f"{split}/contents"] = np.array(table.contents, dtype="S64")
            for name, dtype, shape in info.columns:
                layout = h5py.VirtualLayout((table.total, *shape), dtype=dtype)
                for shard, start, stop in table.spans:
                    layout[start:stop] = h5py.VirtualSource(
                        info.filename(split, shard), name, (stop - start, *shape), dtype=dtype
                    )
                file.create_virtual_dataset(f"{split}/{name}", layout)
    seal(path)


def read_index(directory: Path) -> DatasetInfo:
    """Read and verify the index alone; the shard files are not touched."""
    path = directory / INDEX
    if not os.path.isdir(directory):  # False, not an error, where the user may not look
        raise fault(directory, "is not a directory", "name a folder made by `shard`")
    if not os.path.lexists(path):
        raise fault(path, "is missing", "name a folder made by `shard`")
    with opened(path, REMEDY) as file:
        task, version = _read_head(file, path)
        likes = {"dataset": "", "shards": 0, **attributes_of(task)}
        meta = {name: read_attribute(file, path, name, like) for name, like in likes.items()}
        digest = read_attribute(file, path, "digest", "")
        _check_kind(path, task, meta)
        shape = meta.get("sample_shape", ())
        scale = plain_moments(task, meta["dtype"], shape)
        if version == LATEST:
            scale = _moments_shape(file, path, shape)
        shapes = {"mean": scale, "std": scale}
        if task == "regression":
            shapes |= dict.fromkeys(("target_mean", "target_std"), meta["target_shape"])
        moments = {
            name: np.asarray(read_array(file, path, name, "<f8", like)[()])
            for name, like in shapes.items()
        }
        for name in ("", "target_")[: len(shapes) // 2]:
            mean, std = moments[f"{name}mean"], moments[f"{name}std"]
            if not (np.isfinite(mean).all() and np.isfinite(std).all() and np.all(std > 0)):
                raise shard_fault(path, f"{name}mean or {name}std is not finite and positive")
        info = DatasetInfo(
            name=meta["dataset"],
            classes=meta.get("classes", ()),
            sample_shape=shape,
            dtype=meta["dtype"],
            splits=_read_splits(file, path, version, meta["shards"]),
            task=task,
            target_shape=meta.get("target_shape", ()),
            **moments,
        )
        if (info.digest, info.format_version) != (digest, version):
            raise shard_fault(path, f"digest {digest[:12]} does not match its contents")
    return info


def _read_head(file: h5py.File, path: Path) -> tuple[str, int]:
    """The task and the format version, which fit each other."""
    found = read_attribute(file, path, "format", "")
    version = read_attribute(file, path, "format_version", 0)
    if found != KIND:
        raise shard_fault(path, f"format is {found!r}, not {KIND!r}")
    if version not in (*TASKS.values(), LATEST):
        what = f"format version {version} is not one of {sorted({*TASKS.values(), LATEST})}"
        raise fault(path, what, f"{REMEDY} of this version")
    task = read_attribute(file, path, "task", "")
    if task not in TASKS:
        raise shard_fault(path, f"task {task!r} is not known")
    if version not in (TASKS[task], LATEST):
        what = f"format version {version} is not {TASKS[task]}, that of {task}"
        raise shard_fault(path, what)
    return task, version


def _read_splits(file: h5py.File, path: Path, version: int, shards: int) -> dict[str, Split]:
    splits = {}
    for split in SPLITS:
        if split == "val" and not (version == LATEST and is_inside(file, split)):
            continue
        sizes = read_array(file, path, f"{split}/sizes", "<i8", (shards,))[:]
        contents = read_array(file, path, f"{split}/contents", "S64", (shards,))[:]
        if sizes.min() < (1 if split == "train" else 0):
            raise shard_fault(path, f"{split}/sizes holds {sizes.min()}")
        names = tuple(text.decode() for text in contents.tolist())
        splits[split] = Split(tuple(sizes.tolist()), names)
    return splits


def _moments_shape(file: h5py.File, path: Path, sample_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Of the mean as it is stored, one that samples of that shape can have."""
    data = file["mean"] if is_inside(file, "mean") else None
    found = data.shape if isinstance(data, h5py.Dataset) else None
    if found not in all_moments(sample_shape):
        raise shard_fault(path, f"mean of shape {found} is none of samples {sample_shape}")
    return found


def _check_kind(path: Path, task: str, meta: Mapping[str, Any]) -> None:
    """Refuse what no index says of its samples."""
    dtypes = TOKEN_DTYPES if task == "language" else X_DTYPES
    if meta["dtype"] not in dtypes:
        raise shard_fault(path, f"dtype {meta['dtype']!r} is not one of {dtypes}")
    if not meta.get("classes", True):
        raise shard_fault(path, "the class list is empty")
    shards = meta["shards"]
    shapes = {name: meta[name] for name in ("sample_shape", "target_shape") if name in meta}
    if shards < 1:
        raise shard_fault(path, f"shards {shards} must be positive")
    for name, shape in shapes.items():
        if not shape or min(shape) < 1:
            raise shard_fault(path, f"{name} {shape} must be positive")
    if len(meta.get("target_shape", (1,))) != 1:
        raise shard_fault(path, f"target_shape {meta['target_shape']} is not of one dimension")


def seal(path: Path) -> None:
    """Put the checksum of a finished index into its user block.

    HDF5 keeps the maps of virtual data sets in a heap without checksums: they are only looked at
    under an unbroken seal.
    """
    sealed.seal(path, KIND)


def check_seal(path: Path) -> None:
    """Compare an index with its checksum."""
    try:
        whole = sealed.unbroken(path, KIND)
    except OSError as exc:
        raise shard_fault(path, f"cannot be read ({exc.strerror})") from exc
    if not whole:
        raise shard_fault(path, "is damaged (it does not match its checksum)")


def check_virtual(directory: Path, info: DatasetInfo) -> None:
    """See that the virtual data sets of the index map every shard to its place."""
    path = directory / INDEX
    check_seal(path)
    with opened(path, REMEDY) as file:
        for split, table in info.splits.items():
            expected = [
                (start, stop - 1, info.filename(split, shard)) for shard, start, stop in table.spans
            ]
            for name, _, shape in info.columns:
                data = file.get(f"{split}/{name}")
                if not (
                    isinstance(data, h5py.Dataset)
                    and data.is_virtual
                    and data.shape == (table.total, *shape)
                ):
                    what = f"has no virtual data set {split}/{name} of the right shape"
                    raise shard_fault(path, what)
                mapped = []
                for source in data.virtual_sources():
                    first, last = source.vspace.get_select_bounds()
                    if source.dset_name == name:
                        mapped.append((first[0], last[0], source.file_name))
                if sorted(mapped) != expected:
                    what = f"virtual data set {split}/{name} does not map the shards"
                    raise shard_fault(path, what)
