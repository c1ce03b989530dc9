"""Sources made by hand are checked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from apts_mpi.data import Source
from apts_mpi.data.sources import load as sources
from tests.data.helpers import made, refused


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
