"""Arrays as numpy and HDF5 store them, read a block at a time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from apts_mpi.data import load_source, read_info, write_shards
from apts_mpi.data.sources import npy, stored
from apts_mpi.data.sources.stored import Stored
from tests.data.sources.toys import RNG, K


@pytest.mark.parametrize("kind", ["npy", "npz", "packed", "contiguous", "chunked", "lzf", "odd"])
@pytest.mark.parametrize(
    ("order", "dtype"),
    [("C", "f2"), ("F", ">f8"), ("C", "u1"), ("F", "u1"), ("C", "?"), ("F", "<i4")],
)
def test_storage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, order: Any, dtype: str
) -> None:
    for module in (stored, npy):
        monkeypatch.setattr(module, "BLOCK", 700)
    x = np.array(RNG.integers(0, 100, size=(40, 3, 5, 2)), dtype=dtype, order=order)
    path = tmp_path / ("own.npz" if kind in ("npz", "packed") else "own.h5")
    options: dict[str, Any] = {"path": path}
    if kind == "npy":
        np.save(tmp_path / "x.npy", x)
        np.save(tmp_path / "y.npy", K)
        options = {"named": {name: str(tmp_path / f"{name}.npy") for name in "xy"}}
    elif kind == "npz":
        np.savez(path, x=x, y=K)
    elif kind == "packed":
        np.savez_compressed(path, x=x, y=K)
    else:
        layouts: dict[str, dict[str, Any]] = {
            "contiguous": {},
            "chunked": dict(chunks=(7, 3, 2, 1), compression="gzip", shuffle=True),
            "lzf": dict(chunks=(40, 3, 5, 2), compression="lzf", fletcher32=True),
            "odd": dict(chunks=(9, 1, 5, 2), maxshape=(None, 3, 5, 2)),
        }
        with h5py.File(path, "w") as file:
            file.create_dataset("x", data=x, **layouts[kind])
            file["y"] = K
    source = load_source("arrays", **options)
    assert isinstance(source.x_train, Stored)
    assert max(len(block) for block in source.x_train.blocks()) < 40 or kind == "lzf"
    found = np.concatenate([source.x_train, source.x_test])
    assert found.dtype == ("u1" if dtype == "u1" else "f4")
    expected = x.astype(found.dtype)
    assert sorted(map(bytes, found)) == sorted(map(bytes, np.ascontiguousarray(expected)))
    write_shards(source, tmp_path / "d", shards=2)
    again = replace(source, x_train=np.asarray(source.x_train), x_test=np.asarray(source.x_test))
    info = write_shards(again, tmp_path / "e", shards=2)
    assert read_info(tmp_path / "d").splits == info.splits
