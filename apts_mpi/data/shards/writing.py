"""Writing a sharding: built whole in a folder beside its place, then renamed into it."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import h5py
from tqdm import tqdm

from apts_mpi.data.shards.format import INDEX, write_attributes, write_sums
from apts_mpi.data.shards.identity import identified
from apts_mpi.data.shards.index import write_index
from apts_mpi.data.shards.info import DatasetInfo
from apts_mpi.data.shards.partitioning import shard_indices, skewed_indices
from apts_mpi.data.shards.reading import read_info
from apts_mpi.data.shards.spooling import Ordered, Parts, Rows, Shards, in_order
from apts_mpi.data.sources.moments import NORMALIZE
from apts_mpi.data.sources.source import Source, TextSource
from apts_mpi.data.sources.splits import SPLITS, apportion
from apts_mpi.errors import InputError, either, fault
from apts_mpi.files.hdf5 import LIBVER
from apts_mpi.files.sealed import sync

CHUNK = 512 * 1024  # bytes: large enough to stream, small enough that a slice reads little else
CHUNKS = 16  # that are written together
RETIRED = "retired"  # the replaced folder, until the new one is in its place
OURS = re.compile(rf"index\.h5|({'|'.join(SPLITS)})-\d{{5,}}-of-\d{{5,}}\.h5")


def write_shards(
    source: Source | TextSource,
    directory: Path,
    *,
    shards: int,
    seed: int = 0,
    stratified: bool = False,
    sizes: Sequence[float] | None = None,
    dirichlet: float | None = None,
    normalize: str = "auto",
    overwrite: bool = False,
    exist_ok: bool = False,
) -> DatasetInfo:
    """Cut `source` into K = `shards` files per split, with an index, in the folder `directory`.

    The training data are shuffled by `seed` and cut equally; in proportion to the K numbers
    `sizes`; or with label skew of concentration `dirichlet`. `stratified` gives all shards the
    class frequencies of the whole. Test and validation data are always cut equally. A text is cut
    into pieces in its own order; `stratified` and `dirichlet` are not for it, nor for a regression.
    `normalize` is what has a mean and a deviation of its own (moments.py); a text has none.

    The folder appears whole or not at all. One that exists is refused, unless `overwrite`
    replaces it, or `exist_ok` and it holds the same data already. When another process creates
    the same data at the same time, its folder is kept. A process killed outright leaves a folder
    `<directory>.tmp-*` beside, to be removed by hand; killed between the two renames of an
    `overwrite`, it leaves old and new whole in there. Raises InputError.
    """
    directory = Path(directory).resolve()
    _check_options(source, shards, stratified, sizes, dirichlet)
    if normalize not in NORMALIZE:
        raise InputError(f"--normalize {normalize}: choose {either(NORMALIZE)}")
    if normalize != "auto" and source.task == "language":
        raise InputError(f"--normalize {normalize}: {source.origin} is a text; drop the option")
    if _occupied(directory):
        if overwrite:
            _check_ours(directory)
        elif not exist_ok:
            raise _refusal(directory)
    parts: Parts
    if isinstance(source, TextSource):
        parts = {
            split: _pieces(
                source.columns(split)["tokens"], shards, sizes if split == "train" else None
            )
            for split in source.splits
        }
    else:
        if dirichlet is None:
            train = shard_indices(source.y_train, shards, seed, stratified=stratified, sizes=sizes)
        else:
            train = skewed_indices(source.y_train, shards, seed, dirichlet)
        parts = {"train": [*train]}
        for split in source.splits[1:]:
            y = source.columns(split)["y"]
            parts[split] = [*shard_indices(y, shards, seed, stratified=stratified, least=0)]
    columns = {split: source.columns(split) for split in parts}
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with in_order(columns, parts, directory.parent) as ordered:
            info = identified(source, ordered, normalize=normalize)
            if exist_ok and _occupied(directory) and _same(directory, info, strict=not overwrite):
                return info
            _build(directory, info, ordered, overwrite)
    except (OSError, RuntimeError) as exc:  # h5py raises either when a disk is full
        raise fault(directory, f"cannot be written ({exc})", "choose another folder") from exc
    return info


def _build(directory: Path, info: DatasetInfo, shards: Shards, overwrite: bool) -> None:
    """Write all files in a folder beside its place, and put it there."""
    scratch = Path(
        tempfile.mkdtemp(prefix=f"{directory.name}.tmp-{os.getpid()}-", dir=directory.parent)
    )
    try:
        built = scratch / "new"
        built.mkdir()
        _write_all(built, info, shards)
        _publish(built, directory, info, overwrite)
    finally:
        if (scratch / RETIRED).exists() and not directory.exists():
            os.rename(scratch / RETIRED, directory)
        shutil.rmtree(scratch, ignore_errors=True)


def _pieces(tokens: Any, shards: int, sizes: Sequence[float] | None = None) -> list[Rows]:
    """Contiguous pieces of a text, of two tokens at least."""
    counts = apportion(len(tokens), [1.0] * shards if sizes is None else sizes, least=2)
    return [slice(start, stop) for start, stop in pairwise(accumulate(counts, initial=0))]


def _check_options(
    source: Source | TextSource,
    shards: int,
    stratified: bool,
    sizes: Sequence[float] | None,
    dirichlet: float | None,
) -> None:
    if isinstance(source, TextSource):
        kind = "tokens"
        samples = min(len(source.columns(split)["tokens"]) for split in source.splits)
        most = samples // 2
    else:
        kind = "training samples"
        samples = most = len(source.y_train)
    if not 1 <= shards <= most:
        raise InputError(
            f"{source.origin}: cannot cut {samples} {kind} into {shards} shards; "
            f"give --shards between 1 and {most}"
        )
    if source.task != "classification" and (stratified or dirichlet is not None):
        name = "--stratified" if stratified else "--dirichlet"
        raise InputError(f"{name}: {source.origin} has no classes to go by; drop the option")
    if dirichlet is not None and (stratified or sizes is not None):
        raise InputError("--dirichlet sets classes and sizes itself; drop --stratified and --sizes")
    if dirichlet is not None and not 0 < dirichlet <= 1e9:
        raise InputError(f"--dirichlet {dirichlet}: give a concentration above 0, at most 1e9")
    if sizes is not None and (
        len(sizes) != shards or not all(math.isfinite(size) and size > 0 for size in sizes)
    ):
        raise InputError(f"--sizes {list(sizes)}: give {shards} positive numbers, one per shard")


def _occupied(directory: Path) -> bool:
    if not os.path.lexists(directory):
        return False
    if not directory.is_dir():
        raise fault(directory, "is in the way and not a folder", "choose another --out")
    return any(directory.iterdir())


def _refusal(directory: Path) -> InputError:
    return fault(
        directory, "exists and is not empty", "choose another --out, or replace it with --overwrite"
    )


def _same(directory: Path, info: DatasetInfo, *, strict: bool) -> bool:
    """Whether the folder holds this very sharding; with `strict`, anything else is refused."""
    try:
        same = read_info(directory).digest == info.digest
    except InputError:
        if strict:
            raise
        return False
    if strict and not same:
        raise _refusal(directory)
    return same


def _write_all(folder: Path, info: DatasetInfo, shards: Shards) -> None:
    for split, shard in tqdm(
        info.files, desc="writing shards", unit="file", disable=None, leave=False
    ):
        own = shards[split][shard]
        path = folder / info.filename(split, shard)
        with h5py.File(path, "w", libver=LIBVER) as file:
            write_attributes(file, info.shard_attributes(split, shard))
            file["mean"], file["std"] = info.mean, info.std
            for name, data in own.items():
                _write_chunked(file, name, data)
            if info.splits[split].sizes[shard]:
                write_sums(file, own)
        sync(path)
    write_index(folder / INDEX, info)
    sync(folder / INDEX)
    sync(folder)


def _write_chunked(file: h5py.File, name: str, data: Ordered) -> None:
    if not len(data):
        file.create_dataset(name, data=data[:0])
        return
    row = math.prod(data.row_shape) * data.dtype.itemsize
    rows = min(len(data), max(1, CHUNK // row))
    shape = (len(data), *data.row_shape)
    chunks = (rows, *data.row_shape)
    written = file.create_dataset(name, shape, data.dtype, chunks=chunks, fletcher32=True)
    step = CHUNKS * rows
    for start in range(0, len(data), step):
        written[start : start + step] = data[start : start + step]


def _publish(built: Path, directory: Path, info: DatasetInfo, overwrite: bool) -> None:
    """Rename the finished folder into its place, which other processes may be filling too."""
    for _ in range(8):
        try:
            os.rename(built, directory)  # replaces an empty folder, never one with files
        except OSError as exc:
            if exc.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        else:
            sync(directory.parent)
            return
        if not overwrite:
            _same(directory, info, strict=True)
            return
        _check_ours(directory)
        retired = built.with_name(RETIRED)
        shutil.rmtree(retired, ignore_errors=True)
        with contextlib.suppress(FileNotFoundError):  # another process took it away
            os.rename(directory, retired)
    raise fault(directory, "is being replaced by other processes", "try again")


def _check_ours(directory: Path) -> None:
    """Refuse to replace a folder with anything in it that `shard` does not make."""
    strangers = sorted(p.name for p in directory.iterdir() if not OURS.fullmatch(p.name))
    if strangers:
        raise fault(
            directory,
            f"holds {strangers[0]!r}, which is no shard, and is not replaced",
            "choose another --out or remove the folder by hand",
        )
