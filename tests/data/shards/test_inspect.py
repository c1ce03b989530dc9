"""What `inspect` prints, and what it verifies beyond the reading of parts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from apts_mpi.data import DatasetInfo, Source, describe, load_source, read_info, write_shards
from apts_mpi.data.shards import index as layout
from apts_mpi.data.sources.moments import Moments
from apts_mpi.errors import InputError


def test_text(tmp_path: Path) -> None:
    source = load_source("digits")
    info = write_shards(source, tmp_path / "d", shards=3, dirichlet=0.2)
    text = describe(tmp_path / "d")
    for word in ("digits", "1437 train, 360 test", "3 shards", "uint8 (1, 8, 8)", info.digest):
        assert word in text
    assert f"mean {source.x_train.mean():.6g}, std {source.x_train.std():.6g}" in text
    rows = {
        line.split()[0]: [float(cell) for cell in line.split()[1:]]
        for line in text.splitlines()
        if "-of-00003.h5" in line
    }
    assert len(rows) == 6
    for name, (start, samples, skew, *counts) in rows.items():
        with h5py.File(tmp_path / "d" / name) as file:
            y = file["y"][:]
        assert np.bincount(y, minlength=10).tolist() == counts
        assert (start, samples) == (float(_start(info, name)), len(y))
        assert 0 <= skew < 1
    total = np.sum([row[3:] for name, row in rows.items() if name.startswith("train")], axis=0)
    assert total.tolist() == np.bincount(source.y_train).tolist()


def _start(info: DatasetInfo, name: str) -> int:
    split, shard = name.split("-")[:2]
    return info.splits[split].starts[int(shard)]


def test_many_classes_are_summed_up(tmp_path: Path) -> None:
    y = np.arange(120) % 40
    x = np.random.default_rng(0).normal(size=(120, 2))
    write_shards(Source("many", x, y, x, y, tuple(map(str, range(40)))), tmp_path / "d", shards=2)
    lines = describe(tmp_path / "d").splitlines()
    assert max(map(len, lines)) < 150
    assert "40: 0, 1," in lines[3]


def forge_index(directory: Path, change: Callable[[h5py.File], None]) -> None:
    with h5py.File(directory / "index.h5", "r+") as file:
        change(file)
    layout.seal(directory / "index.h5")


def test_virtual_data_sets_are_verified(tmp_path: Path) -> None:
    write_shards(load_source("digits"), tmp_path / "d", shards=2)

    def swap(file: h5py.File) -> None:
        maps = h5py.VirtualLayout(file["train/y"].shape, dtype="<i8")
        maps[:719] = h5py.VirtualSource("train-00001-of-00002.h5", "y", (719,), dtype="<i8")
        maps[719:] = h5py.VirtualSource("train-00000-of-00002.h5", "y", (718,), dtype="<i8")
        del file["train/y"]
        file.create_virtual_dataset("train/y", maps)

    forge_index(tmp_path / "d", swap)
    with pytest.raises(InputError, match=r"index\.h5: virtual data set train/y does not map"):
        describe(tmp_path / "d")

    def drop(file: h5py.File) -> None:
        del file["train/y"]

    forge_index(tmp_path / "d", drop)
    with pytest.raises(InputError, match=r"index\.h5: has no virtual data set train/y"):
        describe(tmp_path / "d")


def test_a_damaged_index_is_noticed(tmp_path: Path) -> None:
    write_shards(load_source("digits"), tmp_path / "d", shards=2)
    path = tmp_path / "d" / "index.h5"
    content = bytearray(path.read_bytes())
    heap = content.index(b"GCOL")  # the maps of the virtual data sets, not checked by HDF5
    content[heap + 40 : heap + 80] = bytes(range(40))
    path.write_bytes(content)
    read_info(tmp_path / "d")  # does not use them
    with pytest.raises(InputError, match=r"index\.h5: is damaged"):
        describe(tmp_path / "d")


@pytest.mark.parametrize("name", ["mean", "std"])
def test_normalisation_is_verified(tmp_path: Path, name: str) -> None:
    """A sharding that agrees with itself, normalised by wrong values."""
    write_shards(load_source("digits"), tmp_path / "d", shards=1)
    info = read_info(tmp_path / "d")
    values = {"mean": info.mean, "std": info.std}
    values[name] = values[name] * 1.001
    forged = dataclasses.replace(info, mean=values["mean"], std=values["std"])
    for file_name in ("index.h5", info.filename("train", 0), info.filename("test", 0)):
        with h5py.File(tmp_path / "d" / file_name, "r+") as file:
            file[name][()] = values[name]
            file.attrs["digest"] = np.bytes_(forged.digest.encode())
    layout.seal(tmp_path / "d" / "index.h5")
    with pytest.raises(InputError, match=rf"index\.h5: the {name} is not that of the training"):
        describe(tmp_path / "d")


def test_moments_of_hard_data() -> None:
    rng = np.random.default_rng(0)
    x = np.stack(
        [
            np.full(1000, 0.1, np.float32),
            rng.normal(1e6, 1, 1000).astype(np.float32),
            np.where(np.arange(1000) == 0, 1e8, rng.normal(0, 1e-3, 1000)).astype(np.float32),
        ],
        axis=1,
    )
    moments = Moments((3,))
    for block in np.array_split(x, 7):
        moments.add(block)
    mean, std = moments.result()
    exact = x.astype(np.longdouble)
    assert std[0] == 0
    assert np.allclose(mean, exact.mean(axis=0).astype(float), rtol=1e-12)
    assert np.allclose(std[1:], exact.std(axis=0)[1:].astype(float), rtol=1e-9)
