"""Layouts that published data sets have: names, labels, files of their own, MATLAB, channels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from apts_mpi.cli.main import main
from apts_mpi.comm.communicator import Comm
from apts_mpi.data import Source, load_source, read_info, write_shards
from apts_mpi.data.sources import hdf5, npy, stored
from apts_mpi.data.sources.stored import Stored
from apts_mpi.errors import AgreedError
from tests.data.helpers import read_whole, refused, saved

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 6))
K = RNG.integers(0, 4, 40)
K[:4] = range(4)


@pytest.fixture(params=[".npz", ".h5"])
def suffix(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def labels(source: Source) -> list[str]:
    """The class names of all samples, in the order of X."""
    x = np.concatenate([source.x_train, source.x_test])
    y = np.concatenate([source.y_train, source.y_test])
    order = [int(np.flatnonzero((x == row).all(axis=1))[0]) for row in X.astype("f4")]
    return [source.classes[k] for k in y[order]]


@pytest.mark.parametrize(
    ("y", "names"),
    [
        (K[:, None], K),
        (K[:, None, None, None].astype("u1"), K),
        (K[None], K),
        (np.eye(4)[K], K),
        (np.eye(4, dtype=bool)[K], K),
        (np.eye(4, dtype="i2")[K][:, :, None], K),
        (np.where(K > 1, 1, -1), np.where(K > 1, 1, -1)),
        (K + 1, K + 1),
        (K * 1000 - 500, K * 1000 - 500),
        (K.astype("f2"), K),
        (-K.astype("f4")[:, None], -K),
        (np.array(["bee", "ant", "dog", "cät"])[K], np.array(["bee", "ant", "dog", "cät"])[K]),
        (np.array([b"b", b"a", b"d", b"c"])[K][:, None], np.array(list("badc"))[K]),
    ],
)
def test_labels(tmp_path: Path, suffix: str, y: np.ndarray, names: np.ndarray) -> None:
    if suffix == ".h5" and y.dtype.kind == "U":
        y = y.astype(object)
    source = read_whole(saved(tmp_path / f"own{suffix}", x=X, y=y))
    assert labels(source) == [str(name) for name in names]
    assert len(source.classes) == len(np.unique(names))


def test_one_hot_columns_that_no_sample_has_are_classes(tmp_path: Path, suffix: str) -> None:
    path = saved(tmp_path / f"own{suffix}", x=X, y=np.eye(6)[K])
    assert load_source("arrays", path=path).classes == tuple("012345")


def test_numbers_that_are_measured_are_no_classes(
    tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    x = RNG.normal(size=(240, 2))
    measured = RNG.permutation(240) + 100000
    for y in (measured, measured.astype("f8"), measured // 3):
        path = saved(tmp_path / f"own{suffix}", x=x, y=y)
        many = len(np.unique(y))
        with refused(str(path), f"y has {many} distinct values in 240", "regression", "classes"):
            load_source("arrays", path=path)
        assert load_source("arrays", path=path, task="regression").y_train.shape[1] == 1
    for y in (measured % 48, measured % 49, np.arange(240) % 60 // 2 * 7):
        source = load_source("arrays", path=saved(path, x=x, y=y))
        assert len(source.classes) == len(np.unique(y))
    assert not caplog.text
    names = np.array([f"c{k:03}".encode() for k in range(240)])
    source = load_source(
        "arrays", path=saved(path, x=x, y=names[np.maximum(measured - 100000, 19)])
    )
    assert len(source.y_test) < 24
    assert f"{len(source.y_test)} of 240 samples were cut for --test-fraction 0.2" in caplog.text
    load_source("arrays", path=path, val_fraction=0.3)
    assert "samples were cut for --val-fraction 0.3" in caplog.text
    with refused("--test-fraction nan", "between 0 and 1"):
        load_source("arrays", path=path, test_fraction=float("nan"))


def test_labels_of_named_classes(tmp_path: Path, suffix: str) -> None:
    names = np.array([b"a", b"b", b"c", b"d"])
    path = tmp_path / f"own{suffix}"
    for y in (K, K + 1, names[K], np.eye(4)[K]):
        source = load_source("arrays", path=saved(path, x=X, y=y, classes=names))
        assert labels(source) == ["abcd"[k] for k in K]
    for y, word in ((K - 1, "label -1"), (K * 2, "label 4"), (np.maximum(K, 1) + 1, "label 4")):
        with refused(str(path), word, "0 to 3"):
            load_source("arrays", path=saved(path, x=X, y=y, classes=names))
    with refused(str(path), "label 'e'", "no class"):
        load_source("arrays", path=saved(path, x=X, y=np.where(K, b"a", b"e"), classes=names))


@pytest.mark.parametrize(
    "pattern",
    ["{s}_images {s}_labels", "{s}/x {s}/y", "images_{s} labels_{s}", "X_{s} Y_{s}", "x{s} y{s}",
     "data/{s} labels/{s}", "{s}-features {s}-targets"],
)  # fmt: skip
@pytest.mark.parametrize(
    "words",
    [
        ("train", "val", "test"), ("training", "valid", "testing"), ("train", "dev", "test"),
        ("train", "holdout", "test"), ("train", "eval", "test"),
    ],
)  # fmt: skip
def test_names_of_splits(
    tmp_path: Path, suffix: str, pattern: str, words: tuple[str, str, str]
) -> None:
    parts = (X[:20], K[:20]), (X[20:31], K[20:31]), (X[31:], K[31:])
    content: dict[str, Any] = {}
    for word, (x, y) in zip(words, parts, strict=True):
        content |= dict(zip(pattern.format(s=word).split(), (x, y[:, None]), strict=True))
    path = tmp_path / f"own{suffix}"
    if suffix == ".npz" and "/" in pattern:
        np.savez(path, **content)
    else:
        saved(path, **content)
    source = read_whole(path)
    assert source.x_val is not None
    found = (source.x_train, source.x_val, source.x_test)
    for (x, _), each in zip(parts, found, strict=True):
        assert np.array_equal(each, x.astype("f4"))
    with refused(str(path), "validation samples of its own"):
        load_source("arrays", path=path, val_fraction=0.1)
    with refused(str(path), "--test-fraction"):
        load_source("arrays", path=path, test_fraction=0.1)


def test_names_that_are_ours_come_first(tmp_path: Path, suffix: str) -> None:
    path = saved(tmp_path / f"own{suffix}", x=X, y=K, data=X[:3], train_images=X[:3])
    assert len(read_whole(path).x_train) == 32


def test_arrays_that_are_not_used_are_told(
    tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    more = {"fine_labels": K % 2, "mean": X[0], "y_guess": X[:, :2], "x_real": X[:7]}
    path = saved(tmp_path / f"own{suffix}", x=X, labels=K, **more)
    load_source("arrays", path=path)
    assert len(caplog.records) == 1
    told = caplog.text
    assert f"{path}: not used: fine_labels int64 (40,), y_guess float64 (40, 2); --x own" in told
    caplog.clear()
    load_source("arrays", named={"x": f"{path}:x", "y": f"{path}:fine_labels"})
    load_source("arrays", path=saved(path, x=X, y=K, mean=X[0], names=np.float64(3)))
    assert not caplog.text
    load_source("arrays", path=saved(path, x=X, y=K, train_images=X[:3]))
    assert "not used: train_images float64 (3, 6)" in caplog.text


@pytest.mark.parametrize("names", ["X_test Y_test", "test_images test_labels", "x_test y_test"])
@pytest.mark.parametrize("own", ["x y", "X y", "data labels"])
def test_a_test_beside_x_and_y_is_taken(tmp_path: Path, suffix: str, names: str, own: str) -> None:
    content = dict(zip(own.split(), (X[:30], K[:30]), strict=True))
    test = dict(zip(names.split(), (X[30:], K[30:]), strict=True))
    path = saved(tmp_path / f"own{suffix}", **content, **test)
    source = read_whole(path)
    assert np.array_equal(source.x_train, X[:30].astype("f4"))
    assert np.array_equal(source.x_test, X[30:].astype("f4"))
    one = dict([*test.items()][:1])
    with refused(str(path), "has no y_test"):
        load_source("arrays", path=saved(path, **content, **one))
    more = {"train_images": X[:3], "train_labels": K[:3]}
    with refused(str(path), "has both", "train_images", "say which"):
        load_source("arrays", path=saved(path, **content, **test, **more))


def test_a_validation_alone_is_the_test_and_said_to_be(
    tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    names = dict(x_train=X[:30], y_train=K[:30], x_val=X[30:], y_val=K[30:])
    path = saved(tmp_path / f"own{suffix}", **names)
    source = load_source("arrays", path=path)
    assert np.array_equal(source.x_test, X[30:].astype("f4"))
    assert source.x_val is None
    assert "validation samples are taken for the test" in caplog.text
    source = load_source("arrays", path=path, test_fraction=0.2)
    assert np.array_equal(source.x_val, X[30:].astype("f4"))
    assert (len(source.x_train), len(source.x_test)) == (24, 6)
    path = saved(path, x_train=X[:30], y_train=K[:30])
    assert len(load_source("arrays", path=path, test_fraction=0.2).x_test) == 6


def test_arrays_in_files_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    parts = {"train": slice(0, 20), "val": slice(20, 30), "test": slice(30, 40)}
    for split, rows in parts.items():
        np.savez(f"{split}-imgs.npz", X[rows])
        np.save(f"{split}-labels.npy", K[rows])
        saved(Path(f"{split}.h5"), x=X[rows], y=K[rows], other=K[rows])
        Path(split).mkdir()
        saved(Path(split) / "a:b.h5", deep=K[rows])
    flags = {"": "train", "-val": "val", "-test": "test"}
    for x, y in (
        ("{}-imgs.npz", "{}-labels.npy"),
        ("{}.h5", "{}.h5:y"),
        ("{}-imgs.npz:arr_0", "{}/a:b.h5"),
        ("{}.h5:x", "{}/a:b.h5:deep"),
    ):
        named = {f"x{flag}": x.format(split) for flag, split in flags.items()}
        named |= {f"y{flag}": y.format(split) for flag, split in flags.items()}
        source = load_source("arrays", named=named)
        for split, rows in parts.items():
            assert np.array_equal(source.columns(split)["x"], X[rows].astype("f4"))
            assert np.array_equal(source.columns(split)["y"], K[rows])
    for named, words in (
        ({"x": "train.h5"}, ["--x train.h5", "--y FILE"]),
        ({"x-test": "train.h5", "y-test": "train.h5"}, ["--x FILE"]),
        ({"x": "train.h5:z", "y": "train.h5"}, ["train.h5: has no z", "other int64 (20,)"]),
        ({"x": "train/a:b.h5", "y": "train.h5:q"}, ["has no q"]),
        ({"x": "no.npz", "y": "train.h5"}, ["no.npz", "--x"]),
        ({"x": "train.h5:x", "y": "test.h5:y"}, ["test.h5: y has 10 labels for 20"]),
    ):
        with refused(*words):
            load_source("arrays", named=named)
    with refused("--from", "--x"):
        load_source("arrays", named={"x": "train.h5", "y": "train.h5"}, path=Path("train.h5"))
    with refused("--x", "arrays"):
        load_source("digits", named={"x": "train.h5", "y": "train.h5"})


def test_channels_of_which_nobody_can_tell(tmp_path: Path) -> None:
    for dtype in ("u1", "f4"):
        for channels in (2, 5, 6, 12):
            x = RNG.integers(0, 256, size=(40, 16, 16, channels)).astype(dtype)
            path = saved(tmp_path / "own.npz", x=x, y=K)
            with refused(str(path), f"(40, 16, 16, {channels})", "--channels-last on", "or off"):
                load_source("arrays", path=path)
            on, off = (read_whole(path, channels_last=last) for last in (True, False))
            assert on.x_train.shape[1:] == (channels, 16, 16)
            assert off.x_train.shape[1:] == (16, 16, channels)


def test_channels_that_are_first_already(tmp_path: Path) -> None:
    for shape in ((1, 16, 16), (3, 16, 16), (4, 6, 7)):
        path = saved(tmp_path / "own.npz", x=np.zeros((40, *shape), np.uint8), y=K)
        with refused(str(path), str(shape)[1:], "channels first already", "--channels-last on"):
            load_source("arrays", path=path, channels_last=True)
    for shape in ((1, 16, 3), (16, 3, 2)):
        path = saved(tmp_path / "own.npz", x=np.zeros((40, *shape), np.uint8), y=K)
        assert read_whole(path, channels_last=True).x_train.shape[2:] == shape[:2]


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
    x = RNG.integers(0, 256, size=(40, *shape), dtype=np.uint8)
    kept = np.moveaxis(x, 0, -1) if last else x
    for y in (K[:, None] + 1.0, K[None] + 1.0, np.eye(4)[K]):
        source = read_whole(matlab(tmp_path / "own.MAT", X=kept, y=y), seed=1)
        expected = np.moveaxis(x, -1, 1) if len(shape) == 3 else x
        found = np.concatenate([source.x_train, source.x_test])
        assert sorted(map(bytes, found)) == sorted(map(bytes, expected))
        at = {bytes(row): k for row, k in zip(expected, K, strict=True)}
        assert [at[bytes(row)] for row in np.asarray(source.x_train)] == source.y_train.tolist()
    square = matlab(tmp_path / "own.mat", X=np.zeros((40, *shape[1:], 40)), y=K[:, None])
    with refused("own.mat", "more axes than one"):
        load_source("arrays", path=square)
    (tmp_path / "old.mat").write_bytes(b"MATLAB 5.0 MAT-file".ljust(200))
    with refused("old.mat", "-v7.3"):
        load_source("arrays", path=tmp_path / "old.mat")


# --- channels ---

IMAGES = RNG.integers(0, 256, size=(40, 6, 7, 3), dtype=np.uint8)


def test_bytes_with_channels_last_are_turned_and_said_to_be(
    tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = saved(tmp_path / f"own{suffix}", x=IMAGES, y=K)
    turned = read_whole(path)
    assert "channels last" in caplog.text
    assert "--channels-last off" in caplog.text
    caplog.clear()
    first = read_whole(saved(tmp_path / f"first{suffix}", x=IMAGES.transpose(0, 3, 1, 2), y=K))
    assert np.array_equal(turned.x_train, first.x_train)
    assert turned.x_train.shape[1:] == (3, 6, 7)
    assert np.array_equal(read_whole(path, channels_last=True).x_test, first.x_test)
    left = read_whole(path, channels_last=False)
    assert left.x_train.shape[1:] == (6, 7, 3)
    assert not caplog.text
    path = saved(path, x=IMAGES / 255.0, y=K)
    with refused(str(path), "(40, 6, 7, 3)", "channels last", "--channels-last on", "or off"):
        load_source("arrays", path=path)
    assert read_whole(path, channels_last=True).x_train.shape[1:] == (3, 6, 7)
    caplog.clear()
    with refused("y holds label 0.5"):
        load_source("arrays", path=saved(path, x=IMAGES, y=K + 0.5))
    assert not caplog.text  # of what is done to what is not taken
    path = saved(path, x=X, y=K)
    with refused(str(path), "(40, 6)", "--channels-last"):
        load_source("arrays", path=path, channels_last=True)


def test_what_may_be_channels_first_is_left(tmp_path: Path) -> None:
    for shape in ((3, 6, 7), (3, 32, 3), (1, 28, 28), (6, 7, 5), (4, 4, 3), (16, 16)):
        x = RNG.integers(0, 256, size=(40, *shape), dtype=np.uint8)
        source = read_whole(saved(tmp_path / "own.npz", x=x, y=K))
        assert source.x_train.shape[1:] == shape


@pytest.mark.parametrize(
    "flags", [["--augment", "flip"], ["--network", "cnn"], ["--network", "resnet"]]
)
def test_shards_with_channels_last_are_refused_where_it_matters(
    tmp_path: Path, flags: list[str]
) -> None:
    path = saved(tmp_path / "own.npz", x=IMAGES, y=K)
    write_shards(load_source("arrays", path=path, channels_last=False), tmp_path / "d", shards=1)
    with pytest.raises(AgreedError, match=r"\(6, 7, 3\).*--channels-last on"):
        main(["--data", str(tmp_path / "d"), "--out", str(tmp_path / "r"), *flags], Comm())


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "x.npy", IMAGES / 255)
    np.save(tmp_path / "y.npy", K)
    command = ["shard", "arrays", "--out", str(tmp_path / "d"), "--shards", "2"]
    files = ["--x", str(tmp_path / "x.npy"), "--y", str(tmp_path / "y.npy")]
    assert main([*command, *files, "--channels-last", "on"], Comm()) == 0
    assert "float32 (3, 6, 7)" in capsys.readouterr().out
    assert read_info(tmp_path / "d").name == "x"
    for source in ("digits", "text"):
        for flag in (files[:2], ["--channels-last", "off"]):
            with pytest.raises(AgreedError, match=f"{flag[0]}: it is for arrays"):
                main(["shard", source, *command[2:], *flag], Comm())


# --- arrays as numpy and HDF5 store them, a block at a time ---


@pytest.mark.parametrize("kind", ["npy", "npz", "packed", "contiguous", "chunked", "lzf", "odd"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["f2", ">f8", "u1", "?", "<i4"])
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


def test_large_chunks_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "own.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=X, chunks=X.shape, compression="gzip")
        file["y"] = K
    read_whole(path)
    assert not caplog.text
    monkeypatch.setattr(hdf5, "_LARGE", 1000)
    monkeypatch.setattr(hdf5, "_CHUNK", 60)
    read_whole(path)
    assert "x is stored in chunks of" in caplog.text
    assert "h5repack -l x:CHUNK=10x6 own.h5 NEW.h5" in caplog.text
