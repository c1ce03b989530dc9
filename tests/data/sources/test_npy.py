"""Arrays in .npy and .npz files, and damage to them."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from apts_mpi.data import load_source
from tests.data.helpers import X, Y, read_whole, refused, saved


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "exploded",))

    objects = np.array([Bomb()], dtype=object)
    path = tmp_path / "own.npz"
    np.savez(path, allow_pickle=True, x=objects, y=Y)
    with refused(str(path), "x is an object array"):
        load_source("arrays", path=path)
    path.write_bytes(pickle.dumps(Bomb()))
    with refused(str(path), "cannot be read"):
        load_source("arrays", path=path)
    assert not (tmp_path / "exploded").exists()


def content_of(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


LABELS = content_of(Y)


def forged_npz(path: Path, shape: tuple[int, ...], body: bytes) -> Path:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f8", "fortran_order": False, "shape": shape}
    )
    return archive_of(path, zipfile.ZIP_DEFLATED, x=header.getvalue() + body, y=LABELS)


def test_a_damaged_name_does_not_pass_for_another_array(tmp_path: Path) -> None:
    path = saved(tmp_path / "own.npz", x=X, y=Y, classes=np.array(list("abcdefgh")))
    whole = path.read_bytes()
    at = whole.rindex(b"classes.npy")  # in the archive's directory, not before the data
    path.write_bytes(whole[:at] + b"k" + whole[at + 1 :])
    with refused(str(path), "cannot be read"):
        load_source("arrays", path=path)


def test_claims_beyond_the_file(tmp_path: Path) -> None:
    path = forged_npz(tmp_path / "own.npz", (10**15, 3), b"\0" * 24)
    with refused(str(path), "x claims shape (1000000000000000, 3)"):
        load_source("arrays", path=path)
    path = forged_npz(path, (100, 3), b"\0" * 24)
    with refused(str(path), "x claims 2400 bytes"):
        load_source("arrays", path=path)
    path = tmp_path / "own.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("x", shape=(10**15, 3), dtype="f4", chunks=(10, 3))
        file["y"] = Y
    with refused(str(path), "x claims shape (1000000000000000, 3)", "0 bytes are stored"):
        load_source("arrays", path=path)
    with h5py.File(path, "w") as file:  # each of its chunks is unpacked whole
        data = file.create_dataset("x", (20, 3), "f4", chunks=(2**28, 3), maxshape=(None, 3))
        data.id.write_direct_chunk((0, 0), b"x" * 99)
        file["y"] = Y
    with refused(str(path), "x claims shape (268435456, 3)", "99 bytes are stored"):
        load_source("arrays", path=path)


def archive_of(path: Path, packing: int, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", packing) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return path


def test_damage_to_what_is_packed(tmp_path: Path) -> None:
    rng, path = np.random.default_rng(0), tmp_path / "own.npz"
    np.savez_compressed(path, x=rng.normal(size=(40, 3)), y=np.arange(40) % 3)
    good = path.read_bytes()
    for place in range(60, 400, 7):
        path.write_bytes(good[:place] + b"\xff\xff" + good[place + 2 :])
        with refused(str(path), "cannot be read"):
            read_whole(path)


def test_archives_that_numpy_does_not_write(tmp_path: Path) -> None:
    members = {"x": content_of(X), "y": LABELS}
    for packing in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):  # which can claim gigabytes to unpack
        path = archive_of(tmp_path / "own.npz", packing, **members)
        with refused(str(path), "x is packed as numpy never does"):
            load_source("arrays", path=path)
    path = archive_of(tmp_path / "own.npz", zipfile.ZIP_STORED, **members)
    load_source("arrays", path=path)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("y.npy", members["y"])
    with refused(str(path), "holds y twice"):
        load_source("arrays", path=path)


@pytest.mark.parametrize("header", ["(" * 9000, "-" * 9000 + "1", "{'descr': '<f8'", "'" * 3])
def test_headers_that_are_no_literal(tmp_path: Path, header: str) -> None:
    content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode()
    path = archive_of(tmp_path / "own.npz", zipfile.ZIP_STORED, x=content, y=LABELS)
    with refused(str(path), "cannot be read") as caught:
        load_source("arrays", path=path)
    # Python's parser would say that of a header too deep for it.
    assert not isinstance(caught.value.__cause__, MemoryError)


def test_objects_are_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "own.npz"
    np.savez(path, x=X, y=np.array(["a", "b"] * 10, dtype=object))
    with refused(str(path), "y is an object array", ".astype(str)"):
        load_source("arrays", path=path)
    path = tmp_path / "own.mat"
    with h5py.File(path, "w") as file:
        file["x"] = X.T
        file.create_dataset("y", (20, 1), dtype=h5py.ref_dtype)
    with refused(str(path), "y is a cell array", "save numbers"):
        load_source("arrays", path=path)
