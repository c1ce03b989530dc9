"""Which arrays of a file are taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apts_mpi.data import load_source
from tests.data.helpers import X, Y, read_whole, refused, saved
from tests.data.sources import toys


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


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("{s}_images {s}_labels", ("train", "val", "test")),
        ("{s}/x {s}/y", ("training", "valid", "testing")),
        ("images_{s} labels_{s}", ("train", "dev", "test")),
        ("X_{s} Y_{s}", ("train", "holdout", "test")),
        ("x{s} y{s}", ("train", "eval", "test")),
        ("x{s} y{s}", ("training", "valid", "testing")),
        ("data/{s} labels/{s}", ("train", "val", "test")),
        ("data/{s} labels/{s}", ("train", "holdout", "test")),
        ("{s}-features {s}-targets", ("train", "dev", "test")),
        ("{s}-features {s}-targets", ("training", "eval", "testing")),
    ],
)
def test_names_of_splits(
    tmp_path: Path, suffix: str, pattern: str, words: tuple[str, str, str]
) -> None:
    parts = (toys.X[:20], toys.K[:20]), (toys.X[20:31], toys.K[20:31]), (toys.X[31:], toys.K[31:])
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
    path = saved(
        tmp_path / f"own{suffix}", x=toys.X, y=toys.K, data=toys.X[:3], train_images=toys.X[:3]
    )
    assert len(read_whole(path).x_train) == 32


def test_arrays_that_are_not_used_are_told(
    tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    more = {
        "fine_labels": toys.K % 2,
        "mean": toys.X[0],
        "y_guess": toys.X[:, :2],
        "x_real": toys.X[:7],
    }
    path = saved(tmp_path / f"own{suffix}", x=toys.X, labels=toys.K, **more)
    load_source("arrays", path=path)
    assert len(caplog.records) == 1
    told = caplog.text
    assert f"{path}: not used: fine_labels int64 (40,), y_guess float64 (40, 2); --x own" in told
    caplog.clear()
    load_source("arrays", named={"x": f"{path}:x", "y": f"{path}:fine_labels"})
    load_source("arrays", path=saved(path, x=toys.X, y=toys.K, mean=toys.X[0], names=np.float64(3)))
    assert not caplog.text
    load_source("arrays", path=saved(path, x=toys.X, y=toys.K, train_images=toys.X[:3]))
    assert "not used: train_images float64 (3, 6)" in caplog.text


@pytest.mark.parametrize("names", ["X_test Y_test", "test_images test_labels", "x_test y_test"])
@pytest.mark.parametrize("own", ["x y", "X y", "data labels"])
def test_a_test_beside_x_and_y_is_taken(tmp_path: Path, suffix: str, names: str, own: str) -> None:
    content = dict(zip(own.split(), (toys.X[:30], toys.K[:30]), strict=True))
    test = dict(zip(names.split(), (toys.X[30:], toys.K[30:]), strict=True))
    path = saved(tmp_path / f"own{suffix}", **content, **test)
    source = read_whole(path)
    assert np.array_equal(source.x_train, toys.X[:30].astype("f4"))
    assert np.array_equal(source.x_test, toys.X[30:].astype("f4"))
    one = dict([*test.items()][:1])
    with refused(str(path), "has no y_test"):
        load_source("arrays", path=saved(path, **content, **one))
    more = {"train_images": toys.X[:3], "train_labels": toys.K[:3]}
    with refused(str(path), "has both", "train_images", "say which"):
        load_source("arrays", path=saved(path, **content, **test, **more))


def test_a_validation_alone_is_the_test_and_said_to_be(
    tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    names = dict(x_train=toys.X[:30], y_train=toys.K[:30], x_val=toys.X[30:], y_val=toys.K[30:])
    path = saved(tmp_path / f"own{suffix}", **names)
    source = load_source("arrays", path=path)
    assert np.array_equal(source.x_test, toys.X[30:].astype("f4"))
    assert source.x_val is None
    assert "validation samples are taken for the test" in caplog.text
    source = load_source("arrays", path=path, test_fraction=0.2)
    assert np.array_equal(source.x_val, toys.X[30:].astype("f4"))
    assert (len(source.x_train), len(source.x_test)) == (24, 6)
    path = saved(path, x_train=toys.X[:30], y_train=toys.K[:30])
    assert len(load_source("arrays", path=path, test_fraction=0.2).x_test) == 6


def test_arrays_in_files_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    parts = {"train": slice(0, 20), "val": slice(20, 30), "test": slice(30, 40)}
    for split, rows in parts.items():
        np.savez(f"{split}-imgs.npz", toys.X[rows])
        np.save(f"{split}-labels.npy", toys.K[rows])
        saved(Path(f"{split}.h5"), x=toys.X[rows], y=toys.K[rows], other=toys.K[rows])
        Path(split).mkdir()
        saved(Path(split) / "a:b.h5", deep=toys.K[rows])
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
            assert np.array_equal(source.columns(split)["x"], toys.X[rows].astype("f4"))
            assert np.array_equal(source.columns(split)["y"], toys.K[rows])
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
