"""Forged shards and indices are refused in one line."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from apts_mpi.data import (
    DatasetInfo,
    describe,
    read_info,
    read_partition,
)
from apts_mpi.data.shards import format as layout
from apts_mpi.data.shards.info import Split
from tests.data.helpers import refused


def edit(path: Path, change: Callable[[h5py.File], None]) -> None:
    """Change a file through HDF5, which gives the result valid checksums."""
    with h5py.File(path, "r+") as file:
        change(file)


def replace(name: str, **data: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[name]
        file.create_dataset(name, **data)

    return change


def attribute(name: str, value: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file.attrs[name]
        if value is not None:
            file.attrs[name] = value

    return change


PETA = (10**15, 4)
CHUNKED = {"chunks": (10, 4), "fletcher32": True}
FORGERIES: dict[str, tuple[Callable[[h5py.File], None], str]] = {
    "version": (attribute("format_version", 2), "format_version is '2'"),
    "no attribute": (attribute("content", None), "no attribute 'content'"),
    "attribute of text": (attribute("start", "ten"), "'start' has the wrong type"),
    "attribute of many": (attribute("samples", [10, 10]), "'samples' has the wrong type"),
    "attribute of none": (attribute("classes", h5py.Empty("S1")), "'classes' has the wrong type"),
    "attribute of floats": (attribute("total", 40.0), "'total' has the wrong type"),
    "class list empty": (attribute("classes", np.empty(0, "S1")), "classes"),
    "huge shape": (replace("x", shape=PETA, dtype="<f4", **CHUNKED), "x is float32 of shape (1000"),
    "not stored": (replace("x", shape=(10, 4), dtype="<f4", **CHUNKED), "claims 160 bytes but 0"),
    "other shape": (replace("x", data=np.ones((10, 5), "f4")), "expected float32 of shape (10, 4)"),
    "other length": (replace("y", data=np.ones(9, "i8")), "expected int64 of shape (10,)"),
    "other type": (replace("y", data=np.ones(10, "f8")), "y is float64"),
    "text": (replace("x", data="hello"), "x is object"),
    "group": (lambda f: (f.pop("x"), f.create_group("x"))[1], "no data set 'x'"),
    "gone": (lambda f: f.pop("y"), "no data set 'y'"),
    "compressed": (
        replace("x", data=np.ones((10, 4), "f4"), compression="gzip"),
        "storage layout",
    ),
    "no checksums": (replace("x", data=np.ones((10, 4), "f4"), chunks=(10, 4)), "storage layout"),
    "link": (
        lambda f: (
            f.pop("x"),
            f.__setitem__("x", h5py.ExternalLink("test-00000-of-00004.h5", "x")),
        )[1],
        "no data set 'x'",
    ),
    "mean": (lambda f: f["mean"].write_direct(np.zeros(4)), "mean differs"),
    "values": (lambda f: f["x"].write_direct(np.ones((10, 4), "f4")), "do not match their digest"),
    "nan": (lambda f: f["x"].__setitem__((3, 2), np.nan), "x[3] holds NaN"),
    "infinity": (lambda f: f["x"].__setitem__((3, 2), -np.inf), "x[3] holds NaN or infinity"),
    "label high": (lambda f: f["y"].__setitem__(3, 3), "label 3 is not in 0..2"),
    "label low": (lambda f: f["y"].__setitem__(3, -1), "label -1 is not in 0..2"),
}


@pytest.mark.parametrize("kind", FORGERIES)
def test_forged_shards(sharded: Path, kind: str) -> None:
    change, word = FORGERIES[kind]
    path = sharded / "train-00001-of-00004.h5"
    edit(path, change)
    with refused(str(path), word):
        read_partition(sharded, "train", 1, 4)
    with refused(str(path), word):
        describe(sharded)


INDEX_FORGERIES: dict[str, tuple[Callable[[h5py.File], None], str]] = {
    "format": (attribute("format", np.bytes_(b"other")), "'other'"),
    "version": (attribute("format_version", 2), "format version 2 is not 1"),
    "version text": (attribute("format_version", "1"), "wrong type"),
    "task": (attribute("task", np.bytes_(b"ranking")), "'ranking'"),
    "dtype": (attribute("dtype", np.bytes_(b"<f8")), "'<f8'"),
    "classes": (attribute("classes", np.empty(0, "S1")), "class list is empty"),
    "class names": (attribute("classes", np.array([b"a", b"\xff"])), "damaged"),
    "shards": (attribute("shards", 2**62), "expected int64 of shape (4611686018427387904,)"),
    "no shards": (attribute("shards", 0), "shards 0"),
    "shape": (attribute("sample_shape", [2**62, 2**62]), "expected float64 of shape"),
    "no shape": (attribute("sample_shape", np.empty(0, "i8")), "sample_shape ()"),
    "name": (attribute("dataset", np.bytes_(b"other")), "does not match its contents"),
    "sizes": (lambda f: f["train/sizes"].__setitem__(0, 11), "does not match its contents"),
    "negative": (lambda f: f["train/sizes"].__setitem__(0, -1), "train/sizes holds -1"),
    "std zero": (lambda f: f["std"].__setitem__(0, 0), "not finite and positive"),
    "mean nan": (lambda f: f["mean"].__setitem__(0, np.nan), "not finite and positive"),
}


@pytest.mark.parametrize("kind", INDEX_FORGERIES)
def test_forged_indices(sharded: Path, kind: str) -> None:
    change, word = INDEX_FORGERIES[kind]
    edit(sharded / "index.h5", change)
    for read in (read_info, lambda d: read_partition(d, "train", 0, 3)):
        with refused("index.h5", word):
            read(sharded)


def test_a_consistent_forgery_of_size_allocates_nothing(sharded: Path) -> None:
    """An index with a valid digest that claims 10**15 samples, and a shard that agrees."""
    info = read_info(sharded)
    sizes = (10**15, *info.splits["train"].sizes[1:])
    splits = {
        "train": Split(sizes, info.splits["train"].contents),
        "test": info.splits["test"],
    }
    forged = DatasetInfo(
        info.name, info.classes, info.sample_shape, info.dtype, info.mean, info.std, splits
    )

    def forge(file: h5py.File, values: dict[str, Any]) -> None:
        for name in list(file.attrs):
            del file.attrs[name]
        layout.write_attributes(file, values)

    with h5py.File(sharded / "index.h5", "r+") as file:
        forge(file, forged.index_attributes())
        file["train/sizes"][0] = 10**15
    with h5py.File(sharded / "train-00000-of-00004.h5", "r+") as file:
        forge(file, forged.shard_attributes("train", 0))
        for name in ("x", "y"):
            dtype, tail = file[name].dtype, file[name].shape[1:]
            del file[name]
            file.create_dataset(
                name, shape=(10**15, *tail), dtype=dtype, chunks=(10, *tail), fletcher32=True
            )
    tracemalloc.start()
    for read in (
        read_info,
        lambda d: read_partition(d, "train", 0, 4),
        lambda d: read_partition(d, "train", 0, 10**15),
    ):
        with refused("train-00000-of-00004.h5"):
            read(sharded)
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()
