"""Which arrays of a file are taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apts_mpi.data import load_source
from tests.data.helpers import X, Y, read_whole, refused, saved


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
