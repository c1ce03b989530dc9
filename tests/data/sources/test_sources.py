"""The embedded digits, MNIST files, and the user's arrays."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import pickle
import struct
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError

import h5py
import numpy as np
import pytest

from apts_mpi.data import Source, cache_directory, load_source
from apts_mpi.data.sources import load as sources
from apts_mpi.data.sources import mnist
from apts_mpi.errors import InputError

REPOSITORY = Path(__file__).resolve().parents[3]
DATA = Path(os.environ.get("APTS_MPI_TEST_DATA", REPOSITORY.parent / "shared" / "data"))


@contextmanager
def refused(*words: str) -> Iterator[pytest.ExceptionInfo[InputError]]:
    """The block raises an InputError of one line holding every word."""
    with pytest.raises(InputError) as caught:
        yield caught
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    assert not [word for word in words if word not in text], text


# --- digits ---


def test_digits() -> None:
    a, b, c = (load_source("digits", seed=seed) for seed in (0, 0, 1))
    assert a.x_train.shape == (1437, 1, 8, 8)
    assert a.x_test.shape == (360, 1, 8, 8)
    assert a.x_train.dtype == np.uint8
    assert a.classes == tuple("0123456789")
    assert np.array_equal(a.x_train, b.x_train)
    assert not np.array_equal(a.y_train, c.y_train)
    everything = np.concatenate([a.x_train, a.x_test]).reshape(1797, 64)
    assert everything.max() == 16
    # The sum of all pixels and the class counts published for the data set.
    assert int(everything.sum()) == 561718
    counts = np.bincount(np.concatenate([a.y_train, a.y_test]))
    assert counts.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert np.abs(np.bincount(a.y_test) - counts * 0.2).max() <= 1


def test_digits_are_those_of_scikit_learn() -> None:
    datasets = pytest.importorskip("sklearn.datasets", reason="needs scikit-learn")
    source, original = load_source("digits"), datasets.load_digits()

    def rows(x: np.ndarray, y: np.ndarray) -> list[tuple[bytes, int]]:
        flat = x.reshape(len(x), 64).astype(np.uint8)
        return sorted((a.tobytes(), int(b)) for a, b in zip(flat, y, strict=True))

    found = rows(source.x_train, source.y_train) + rows(source.x_test, source.y_test)
    assert sorted(found) == rows(original.images, original.target)


def test_misused_sources(tmp_path: Path) -> None:
    with refused("cifar", "digits, mnist, cifar10, arrays, imagefolder"):
        load_source("cifar")
    with refused("--from"):
        load_source("digits", path=tmp_path)
    with refused("--from"):
        load_source("arrays")
    with refused("--download"):
        load_source("digits", download=True)
    with refused("nowhere", "--from"):
        load_source("mnist", path=tmp_path / "nowhere")


def test_cache_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("APTS_MPI_CACHE", raising=False)
    assert cache_directory("digits", 4) == tmp_path / "home" / ".cache" / "apts_mpi" / "digits-4"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_directory("digits", 4) == tmp_path / "xdg" / "apts_mpi" / "digits-4"
    monkeypatch.setenv("APTS_MPI_CACHE", str(tmp_path / "own"))
    assert cache_directory("digits", 4) == tmp_path / "own" / "digits-4"
    with refused("--from", "--download"):
        load_source("mnist")


# --- validation ---


def test_a_validation_split_is_cut_from_the_training_data() -> None:
    whole, source = load_source("digits", seed=2), load_source("digits", seed=2, val_fraction=0.1)
    assert np.array_equal(source.x_test, whole.x_test)
    assert source.x_val is not None
    assert source.y_val is not None
    assert (len(source.y_train), len(source.y_val)) == (1437 - 144, 144)
    parts = [*zip(source.x_train, source.y_train, strict=True)]
    parts += [*zip(source.x_val, source.y_val, strict=True)]
    found = sorted((x.tobytes(), int(y)) for x, y in parts)
    pairs = zip(whole.x_train, whole.y_train, strict=True)
    assert found == sorted((x.tobytes(), int(y)) for x, y in pairs)
    counts = np.bincount(whole.y_train)
    assert np.abs(np.bincount(source.y_val) - counts * 0.1).max() <= 1
    other = load_source("digits", seed=3, val_fraction=0.1)
    assert other.x_val is not None
    assert not np.array_equal(other.x_val, source.x_val)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5, float("nan")])
def test_no_part_for_validation(fraction: float) -> None:
    with refused("--val-fraction", str(fraction), "between 0 and 1"):
        load_source("digits", val_fraction=fraction)


def test_a_source_has_one_validation_split() -> None:
    x, y = np.ones((4, 2)), np.array([0, 1, 0, 1])
    source = Source("own", x, y, x, y, ("a", "b"), x_val=x, y_val=y)
    assert source.splits == ("train", "val", "test")
    with refused("own", "validation samples of its own", "--val-fraction"):
        sources._validated(source, 0.5, 0)
    with refused("own", "(2,)", "(3,) in x_val"):
        Source("own", x, y, x, y, ("a", "b"), x_val=np.ones((4, 3)), y_val=y)
    with refused("own", "y_val", "label 2"):
        Source("own", x, y, x, y, ("a", "b"), x_val=x, y_val=y + 1)


# --- sources made by hand ---


def made(**changes: Any) -> Source:
    parts: dict[str, Any] = dict(
        name="own",
        x_train=np.ones((4, 2)),
        y_train=np.array([0, 1, 0, 1]),
        x_test=np.ones((2, 2)),
        y_test=np.array([0, 1]),
        classes=("a", "b"),
    )
    return Source(**(parts | changes))


def test_sources_are_made_canonical() -> None:
    source = made(y_test=np.array([0, 1], dtype=np.uint8), x_train=np.ones((4, 2), order="F"))
    assert source.x_train.dtype == np.float32
    assert source.x_train.flags.c_contiguous
    assert source.y_test.dtype == np.int64


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"classes": ()}, ["0 classes"]),
        ({"classes": ("a", "a")}, ["'a' is there twice"]),
        ({"classes": ("a", "")}, ["class name ''"]),
        ({"name": ""}, ["name ''"]),
        ({"y_train": np.array([0, 1, 2, 0])}, ["y_train", "label 2", "0 to 1"]),
        ({"y_train": np.array([0, 1, -1, 0])}, ["y_train", "label -1"]),
        ({"y_train": np.array([0, 1])}, ["2 labels for 4 samples"]),
        ({"y_test": np.array([0.5, 1])}, ["y_test", "label 0.5"]),
        ({"x_test": np.ones((2, 3))}, ["(2,)", "(3,)"]),
        ({"x_test": np.ones((2, 2), np.uint8)}, ["uint8"]),
        ({"x_train": np.full((4, 2), np.nan)}, ["x_train[0, 0] is nan"]),
        ({"x_train": np.full((4, 2), 1e300)}, ["x_train[0, 0] is 1e+300"]),
        ({"x_train": np.ones(4)}, ["x_train", "(4,)"]),
        ({"x_test": np.ones((0, 2)), "y_test": np.ones(0)}, ["x_test", "(0, 2)"]),
        ({"x_train": np.ones((4, 2), complex)}, ["complex128"]),
    ],
)
def test_bad_sources(changes: dict[str, Any], words: list[str]) -> None:
    with refused("own" if changes.get("name") is None else "", *words):
        made(**changes)


# --- arrays ---

X = np.random.default_rng(0).normal(size=(20, 3))
Y = np.repeat([3, 5], 10)


def saved(path: Path, **arrays: Any) -> Path:
    if path.suffix == ".npz":
        np.savez_compressed(path, **arrays)
    else:
        with h5py.File(path, "w") as file:
            for name, data in arrays.items():
                file[name] = data
    return path


@pytest.fixture(params=[".npz", ".h5"])
def suffix(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_arrays_are_split(tmp_path: Path, suffix: str) -> None:
    source = load_source("arrays", path=saved(tmp_path / f"own{suffix}", x=X, y=Y.astype(float)))
    assert source.name == "own"
    assert source.classes == ("3", "5")
    assert np.bincount(source.y_train).tolist() == [8, 8]
    assert np.bincount(source.y_test).tolist() == [2, 2]
    everything = np.concatenate([source.x_train, source.x_test])
    assert np.array_equal(np.sort(everything, axis=0), np.sort(X.astype("f4"), axis=0))


def test_arrays_come_split(tmp_path: Path, suffix: str) -> None:
    path = saved(
        tmp_path / f"own{suffix}", x_train=X, y_train=Y, x_test=X[:2], y_test=np.array([5, 3])
    )
    source = load_source("arrays", path=path)
    assert np.array_equal(source.x_train, X.astype("f4"))
    assert source.y_train.tolist() == [0] * 10 + [1] * 10
    assert source.y_test.tolist() == [1, 0]


def test_class_names(tmp_path: Path, suffix: str) -> None:
    names = ["cat", "dög"]
    stored = np.array(names) if suffix == ".npz" else names
    path = saved(tmp_path / f"own{suffix}", x=X, y=Y // 5, classes=stored)
    assert load_source("arrays", path=path).classes == ("cat", "dög")
    path = saved(tmp_path / f"own{suffix}", x=X, y=Y, classes=stored)
    with refused(str(path), "y holds label 3", "0 to 1"):
        load_source("arrays", path=path)


def read_whole(path: Path, **options: Any) -> Source:
    """The source with its samples, which would otherwise be read when they are written."""
    source = load_source("arrays", path=path, **options)
    for split in source.splits:
        np.asarray(source.columns(split)["x"])
    return source


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": X}, ["has no y", "it has x float64 (20, 3)", "--x own", "--y FILE:NAME"]),
        ({"a": X}, ["has no x", "it has a float64 (20, 3)", "--x own"]),
        ({"x": X, "y_train": Y}, ["both x and y_train"]),
        ({"images": X, "data": X, "labels": Y}, ["images", "data", "may all be x", "--x own"]),
        ({"x_train": X, "y_train": Y}, ["no others", "--test-fraction"]),
        ({"x_train": X, "y_train": Y, "x_test": X}, ["has no y_test"]),
        ({"x": X, "y": Y[:5]}, ["y has 5 labels for 20 samples"]),
        ({"x": X, "y": Y + 0.5}, ["y holds label 3.5 in row 0", "--task regression"]),
        ({"x": X, "y": np.where(Y == 5, np.nan, 1)}, ["label nan in row 10", "remove such"]),
        (
            {"x_train": X, "y_train": Y, "x_test": X[:0], "y_test": Y[:0]},
            ["x_test has no samples", "leave x_test and y_test out"],
        ),
        ({"x": Y, "y": X}, ["x has shape (20,)", "--x and --y look swapped", "(20, 3)", "(n, 1)"]),
        ({"x": X, "y": Y * 0}, ["1 classes", "two or more"]),
        ({"x": X, "y": X}, ["y has 3 columns", "row 0 is not one-hot", "--task regression"]),
        ({"x": X, "y": np.eye(3)[Y - 3][..., None].repeat(2, 2)}, ["y is float64 of shape (20,"]),
        ({"x": X, "y": np.eye(3)[Y // 3], "classes": np.array([b"a", b"b"])}, ["3 columns for 2"]),
        ({"x": np.moveaxis(X, 0, 1), "y": Y}, ["shape (3, 20)", "last axis", "moveaxis"]),
        ({"x": X[:, 0], "y": Y}, ["x has shape (20,); store samples by features, as (n, 1)"]),
        ({"x": np.float64(3), "y": Y}, ["x has shape ()"]),
        ({"x": np.where(X[4, 1] == X, np.inf, X), "y": Y}, ["x[4, 1] is inf"]),
        ({"x": X.astype("S4"), "y": Y}, ["|S4"]),
        ({"x_train": X, "y_train": Y, "x_test": X, "y_test": Y + 1}, ["label 4", "absent"]),
        ({"x": X, "y": Y, "classes": Y}, ["classes is int64"]),
    ],
)
def test_bad_arrays(tmp_path: Path, suffix: str, arrays: dict[str, Any], words: list[str]) -> None:
    path = saved(tmp_path / f"own{suffix}", **arrays)
    with refused(str(path), *words):
        read_whole(path)


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


def test_class_names_that_are_damaged_are_not_left_out(tmp_path: Path) -> None:
    path = saved(tmp_path / "own.h5", x=X, y=Y, classes=np.array([b"ant", b"bee", b"cat"]))
    with h5py.File(path) as file:
        place = h5py.h5o.get_info(file["classes"].id).addr
    content = bytearray(path.read_bytes())
    content[place] ^= 0xFF
    path.write_bytes(content)
    with refused(str(path)):
        load_source("arrays", path=path)


def test_class_names_that_are_no_text(tmp_path: Path, suffix: str) -> None:
    path = saved(tmp_path / f"own{suffix}", x=X, y=Y // 5, classes=np.array([b"a", b"\xff"]))
    with refused(str(path), "classes holds no text"):
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


def test_files_of_the_wrong_kind(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"own{suffix}"
    with refused(str(path), "not a file"):
        load_source("arrays", path=path)
    path.write_bytes(b"hello")
    with refused(str(path), "cannot be read"):
        load_source("arrays", path=path)
    good = saved(path, x=X, y=Y).read_bytes()
    path.write_bytes(good[: len(good) // 2])
    with refused(str(path), "cannot be read"):
        load_source("arrays", path=path)
    with refused("own.csv", ".npz, .npy, .h5 or .mat"):
        load_source("arrays", path=tmp_path / "own.csv")


# --- MNIST ---


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


IMAGES = np.arange(60, dtype=np.uint8).reshape(5, 3, 4)


@pytest.mark.parametrize("packed", [False, True])
def test_idx(tmp_path: Path, packed: bool) -> None:
    path, content = tmp_path / "images", idx(IMAGES)
    path.write_bytes(gzip.compress(content) if packed else content)
    assert np.array_equal(mnist.read_idx(path, 3), IMAGES)
    md5 = hashlib.md5(content).hexdigest()
    assert np.array_equal(mnist.read_idx(path, 3, md5=md5), IMAGES)
    with refused(str(path), md5, "arrays"):
        mnist.read_idx(path, 3, md5="0" * 32)
    faults = {
        content[:-1]: "",
        content + b"\0": "more than the 60 bytes",
        content[:10]: "00000803",
        b"": "nothing",
        b"\0\0\x09" + content[3:]: "00000903",
        struct.pack(">4I", 0x803, 2**32 - 1, 2**32 - 1, 2**32 - 1): "claims",
    }
    for bad, word in faults.items():
        path.write_bytes(gzip.compress(bad) if packed else bad)
        with refused(str(path), word):
            mnist.read_idx(path, 3)
    path.write_bytes(content)
    with refused("00000803", "1 dimensions"):
        mnist.read_idx(path, 1)


def test_damaged_and_swollen_gzip(tmp_path: Path) -> None:
    path, good = tmp_path / "images.gz", bytearray(gzip.compress(idx(IMAGES)))
    for bad in (good[:30], good[:-8] + b"\0" * 8, good[:12] + b"\xff" * 20 + good[32:]):
        path.write_bytes(bad)
        with refused(str(path)):
            mnist.read_idx(path, 3)
    # Zeros behind it, which would be looked at one by one for minutes.
    path.write_bytes(gzip.compress(idx(IMAGES)))
    os.truncate(path, 60_000_000)
    with refused(str(path), "more than the 60 bytes"):
        mnist.read_idx(path, 3)
    os.truncate(path, 3 * 10**8)
    with refused(str(path), "has 300000000 bytes, more than any file of MNIST"):
        mnist.read_idx(path, 3)
    # 100 MB of zeros after the content: one byte of them is looked at.
    path.write_bytes(gzip.compress(idx(IMAGES) + bytes(10**8), compresslevel=1))
    with refused(str(path), "more than the 60 bytes"):
        mnist.read_idx(path, 3)


@pytest.fixture
def small_mnist(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Four small files, taken for the canonical ones, by name."""
    rng = np.random.default_rng(0)
    files, table = {}, {}
    for name in mnist.FILES:
        n = 30 if name.startswith("train") else 10
        shape = (n, 28, 28) if "images" in name else (n,)
        files[name] = idx(rng.integers(0, 10, size=shape, dtype=np.uint8))
        table[name] = (len(shape), hashlib.md5(files[name]).hexdigest())
    monkeypatch.setattr(mnist, "FILES", table)
    return files


def test_mnist_folder(tmp_path: Path, small_mnist: dict[str, bytes]) -> None:
    for k, (name, content) in enumerate(small_mnist.items()):
        spelling = name.replace("-idx", ".idx") if k % 2 else name
        if k < 2:
            (tmp_path / spelling).write_bytes(content)
        else:
            (tmp_path / f"{spelling}.gz").write_bytes(gzip.compress(content))
    source = load_source("mnist", path=tmp_path)
    assert source.x_train.shape == (30, 1, 28, 28)
    assert source.x_test.tobytes() == small_mnist["t10k-images-idx3-ubyte"][16:]
    (tmp_path / "train-labels.idx1-ubyte").unlink()
    with refused(str(tmp_path), "train-labels-idx1-ubyte", "--download"):
        load_source("mnist", path=tmp_path)


def test_download(
    tmp_path: Path, small_mnist: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    spoilt: set[str] = set()

    def urlopen(url: str, timeout: float) -> io.BytesIO:
        asked.append(url.removeprefix("https://ossci-datasets.s3.amazonaws.com/mnist/"))
        name = asked[-1].removesuffix(".gz")
        if name in spoilt:
            return io.BytesIO(gzip.compress(small_mnist[name][:-1] + b"\x07"))
        return io.BytesIO(gzip.compress(small_mnist[name]))

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    monkeypatch.setenv("APTS_MPI_CACHE", str(tmp_path))
    spoilt.add("t10k-images-idx3-ubyte")
    with refused("https://", "t10k-images-idx3-ubyte.gz", "md5"):
        load_source("mnist", download=True)
    kept = ["train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"]
    assert sorted(p.name for p in (tmp_path / "mnist").iterdir()) == kept
    spoilt.clear()
    asked.clear()
    source = load_source("mnist", download=True)
    assert asked == ["t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"]
    assert len(source.y_test) == 10
    asked.clear()
    assert np.array_equal(load_source("mnist").x_train, source.x_train)
    assert asked == []


def test_download_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def urlopen(*_: object, **__: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    with refused("https://", "no route to host", "--from"):
        load_source("mnist", path=tmp_path / "new", download=True)
    assert not list((tmp_path / "new").iterdir())


def test_real_mnist() -> None:
    if not (DATA / "mnist").is_dir():
        pytest.skip(f"no MNIST in {DATA / 'mnist'}; set APTS_MPI_TEST_DATA to the folder above it")
    source = load_source("mnist", path=DATA / "mnist")
    assert source.x_train.shape == (60000, 1, 28, 28)
    assert source.x_test.shape == (10000, 1, 28, 28)
    assert abs(source.x_train.mean() / 255 - 0.1307) < 1e-4
    assert np.bincount(source.y_train)[:3].tolist() == [5923, 6742, 5958]
