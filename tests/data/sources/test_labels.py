"""Labels and the names of classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from apts_mpi.data import Source, load_source
from tests.data.helpers import X, Y, read_whole, refused, saved
from tests.data.sources import toys


def test_class_names(tmp_path: Path, suffix: str) -> None:
    names = ["cat", "dög"]
    stored = np.array(names) if suffix == ".npz" else names
    path = saved(tmp_path / f"own{suffix}", x=X, y=Y // 5, classes=stored)
    assert load_source("arrays", path=path).classes == ("cat", "dög")
    path = saved(tmp_path / f"own{suffix}", x=X, y=Y, classes=stored)
    with refused(str(path), "y holds label 3", "0 to 1"):
        load_source("arrays", path=path)


def test_class_names_that_are_no_text(tmp_path: Path, suffix: str) -> None:
    path = saved(tmp_path / f"own{suffix}", x=X, y=Y // 5, classes=np.array([b"a", b"\xff"]))
    with refused(str(path), "classes holds no text"):
        load_source("arrays", path=path)


def labels(source: Source) -> list[str]:
    """The class names of all samples, in the order of toys.X."""
    x = np.concatenate([source.x_train, source.x_test])
    y = np.concatenate([source.y_train, source.y_test])
    order = [int(np.flatnonzero((x == row).all(axis=1))[0]) for row in toys.X.astype("f4")]
    return [source.classes[k] for k in y[order]]


@pytest.mark.parametrize(
    ("y", "names"),
    [
        (toys.K[:, None], toys.K),
        (toys.K[:, None, None, None].astype("u1"), toys.K),
        (toys.K[None], toys.K),
        (np.eye(4)[toys.K], toys.K),
        (np.eye(4, dtype=bool)[toys.K], toys.K),
        (np.eye(4, dtype="i2")[toys.K][:, :, None], toys.K),
        (np.where(toys.K > 1, 1, -1), np.where(toys.K > 1, 1, -1)),
        (toys.K + 1, toys.K + 1),
        (toys.K * 1000 - 500, toys.K * 1000 - 500),
        (toys.K.astype("f2"), toys.K),
        (-toys.K.astype("f4")[:, None], -toys.K),
        (
            np.array(["bee", "ant", "dog", "cät"])[toys.K],
            np.array(["bee", "ant", "dog", "cät"])[toys.K],
        ),
        (np.array([b"b", b"a", b"d", b"c"])[toys.K][:, None], np.array(list("badc"))[toys.K]),
    ],
)
def test_labels(tmp_path: Path, suffix: str, y: np.ndarray, names: np.ndarray) -> None:
    if suffix == ".h5" and y.dtype.kind == "U":
        y = y.astype(object)
    source = read_whole(saved(tmp_path / f"own{suffix}", x=toys.X, y=y))
    assert labels(source) == [str(name) for name in names]
    assert len(source.classes) == len(np.unique(names))


def test_one_hot_columns_that_no_sample_has_are_classes(tmp_path: Path, suffix: str) -> None:
    path = saved(tmp_path / f"own{suffix}", x=toys.X, y=np.eye(6)[toys.K])
    assert load_source("arrays", path=path).classes == tuple("012345")


def test_numbers_that_are_measured_are_no_classes(
    tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    x = toys.RNG.normal(size=(240, 2))
    measured = toys.RNG.permutation(240) + 100000
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
    for y in (toys.K, toys.K + 1, names[toys.K], np.eye(4)[toys.K]):
        source = load_source("arrays", path=saved(path, x=toys.X, y=y, classes=names))
        assert labels(source) == ["abcd"[k] for k in toys.K]
    for y, word in (
        (toys.K - 1, "label -1"),
        (toys.K * 2, "label 4"),
        (np.maximum(toys.K, 1) + 1, "label 4"),
    ):
        with refused(str(path), word, "0 to 3"):
            load_source("arrays", path=saved(path, x=toys.X, y=y, classes=names))
    with refused(str(path), "label 'e'", "no class"):
        load_source(
            "arrays", path=saved(path, x=toys.X, y=np.where(toys.K, b"a", b"e"), classes=names)
        )
