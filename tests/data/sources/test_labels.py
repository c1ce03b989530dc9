"""Labels and the names of classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from apts_mpi.data import load_source
from tests.data.helpers import X, Y, refused, saved


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
