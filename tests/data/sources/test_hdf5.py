"""Arrays in HDF5 files: links, damage, chunks, MATLAB."""

from __future__ import annotations

import os
import struct
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from apts_mpi.data import load_source
from apts_mpi.data.sources import hdf5, stored
from tests.data.helpers import X, Y, read_whole, refused, saved
from tests.data.sources import toys
from tests.data.sources.test_npy import LABELS, archive_of, content_of


def test_class_names_that_are_damaged_are_not_left_out(tmp_path: Path) -> None:
    path = saved(tmp_path / "own.h5", x=X, y=Y, classes=np.array([b"ant", b"bee", b"cat"]))
    with h5py.File(path) as file:
        place = h5py.h5o.get_info(file["classes"].id).addr
    content = bytearray(path.read_bytes())
    content[place] ^= 0xFF
    path.write_bytes(content)
    with refused(str(path)):
        load_source("arrays", path=path)


def test_names_of_no_length_that_are_a_million_millions(tmp_path: Path) -> None:
    header = "{'descr': '|S0', 'fortran_order': False, 'shape': (1000000000000,), }"
    names = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode()
    path = archive_of(
        tmp_path / "own.npz", zipfile.ZIP_STORED, classes=names, x=content_of(X), y=LABELS
    )
    with refused(str(path), "classes claims shape (1000000000000,)"):
        load_source("arrays", path=path)


def test_links_are_followed_to_files_beside(tmp_path: Path) -> None:
    """As PCam's users join its files; but not further away."""
    saved(tmp_path / "other.h5", x=X, deep=X[:2])
    (tmp_path / "inner").mkdir()
    saved(tmp_path / "inner" / "far.h5", x=X)
    os.mkfifo(tmp_path / "pipe.h5")  # to open it would wait for ever
    path = tmp_path / "own.h5"

    def linked(link: Any) -> Path:
        saved(path, y=Y, real=X)
        with h5py.File(path, "r+") as file:
            file["x"] = link
        return path

    for link in (
        h5py.ExternalLink("other.h5", "x"),
        h5py.ExternalLink(str(tmp_path / "other.h5"), "/x"),
        h5py.SoftLink("/real"),
        h5py.SoftLink("real"),
    ):
        source = read_whole(linked(link))
        found = np.concatenate([source.x_train, source.x_test])
        assert np.array_equal(np.sort(found, axis=0), np.sort(X.astype("f4"), axis=0))
    for link, words in (
        (h5py.ExternalLink("inner/far.h5", "x"), ["another folder", "--x inner/far.h5:x"]),
        (h5py.ExternalLink("../own.h5", "x"), ["another folder"]),
        (h5py.ExternalLink("pipe.h5", "x"), ["which is no file"]),
        (h5py.ExternalLink("nowhere.h5", "x"), ["which is no file"]),
        (h5py.ExternalLink("other.h5", "z"), ["x is a link to /z in other.h5, which is not there"]),
        (h5py.SoftLink("/x"), ["on and on"]),
        (h5py.ExternalLink("own.h5", "x"), ["on and on"]),
        (h5py.SoftLink("/nowhere"), ["x is a link to /nowhere, which is not there"]),
    ):
        with refused(str(tmp_path), *words):
            load_source("arrays", path=linked(link))


def test_named_arrays_behind_a_link_to_a_group(tmp_path: Path) -> None:
    saved(tmp_path / "other.h5", **{"group/x": X, "group/y": Y})
    path = saved(tmp_path / "own.h5", **{"deep/in/inner/most/x": X, "deep/y": Y})
    with h5py.File(path, "r+") as file:
        file["train"] = h5py.ExternalLink("other.h5", "group")
        file["soft"] = h5py.SoftLink("/deep/in")
    for x in ("train/x", "soft/inner/most/x", "deep/in/inner/most/x"):
        for y in ("train/y", "deep/y"):
            source = load_source("arrays", named={"x": f"{path}:{x}", "y": f"{path}:{y}"})
            assert source.x_train.shape == (16, 3)
    for name, words in (
        ("train/z", ["train/z is a link to /group/z in other.h5, which is not there"]),
        ("soft/z", ["soft/z is a link to /deep/in/z, which is not there"]),
        ("deep/in", ["has no deep/in"]),
        ("deep/z", ["has no deep/z", "deep/y int64 (20,)"]),
        ("deep/y/z", ["has no deep/y/z"]),
    ):
        with refused(str(path), *words):
            load_source("arrays", named={"x": f"{path}:{name}", "y": f"{path}:deep/y"})


def matlab(path: Path, **arrays: np.ndarray) -> Path:
    """A file as MATLAB's save(..., '-v7.3') writes arrays of these shapes."""
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array.T, chunks=True, compression="gzip")
        file["#refs#/x"] = np.zeros(3)
    head = b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(512)
    path.write_bytes(head + path.read_bytes()[512:])
    return path


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("shape", [(6,), (5, 7), (5, 7, 3)])
def test_matlab(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], last: bool
) -> None:
    """Samples on its first axis or its last; each read in several blocks."""
    monkeypatch.setattr(stored, "BLOCK", 2000)
    x = toys.RNG.integers(0, 256, size=(40, *shape), dtype=np.uint8)
    kept = np.moveaxis(x, 0, -1) if last else x
    for y in (toys.K[:, None] + 1.0, toys.K[None] + 1.0, np.eye(4)[toys.K]):
        source = read_whole(matlab(tmp_path / "own.MAT", X=kept, y=y), seed=1)
        expected = np.moveaxis(x, -1, 1) if len(shape) == 3 else x
        found = np.concatenate([source.x_train, source.x_test])
        assert sorted(map(bytes, found)) == sorted(map(bytes, expected))
        at = {bytes(row): k for row, k in zip(expected, toys.K, strict=True)}
        assert [at[bytes(row)] for row in np.asarray(source.x_train)] == source.y_train.tolist()
    square = matlab(tmp_path / "own.mat", X=np.zeros((40, *shape[1:], 40)), y=toys.K[:, None])
    with refused("own.mat", "more axes than one"):
        load_source("arrays", path=square)
    (tmp_path / "old.mat").write_bytes(b"MATLAB 5.0 MAT-file".ljust(200))
    with refused("old.mat", "-v7.3"):
        load_source("arrays", path=tmp_path / "old.mat")


def test_large_chunks_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "own.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=toys.X, chunks=toys.X.shape, compression="gzip")
        file["y"] = toys.K
    read_whole(path)
    assert not caplog.text
    monkeypatch.setattr(hdf5, "_LARGE", 1000)
    monkeypatch.setattr(hdf5, "_CHUNK", 60)
    read_whole(path)
    assert "x is stored in chunks of" in caplog.text
    assert "h5repack -l x:CHUNK=10x6 own.h5 NEW.h5" in caplog.text
