"""What the tests of data share: refusals, files of arrays, toy data sets."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from apts_mpi.data import Source, load_source
from apts_mpi.errors import InputError
from tests.conftest import ROOT

DATA = Path(os.environ.get("APTS_MPI_TEST_DATA", ROOT.parent / "shared" / "data"))


@contextmanager
def refused(*words: str) -> Iterator[pytest.ExceptionInfo[InputError]]:
    """The block raises an InputError of one line holding every word."""
    with pytest.raises(InputError) as caught:
        yield caught
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    assert not [word for word in words if word not in text], text


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


def read_whole(path: Path, **options: Any) -> Source:
    """The source with its samples, which would otherwise be read when they are written."""
    source = load_source("arrays", path=path, **options)
    for split in source.splits:
        np.asarray(source.columns(split)["x"])
    return source
