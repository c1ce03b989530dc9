"""The data set of the tests of shards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np

from apts_mpi.data import Source


def toy(samples: int = 40, tests: int = 9, *, images: bool = False, seed: int = 0) -> Source:
    """Three classes; the first feature of a sample is its number, so that order shows."""
    rng = np.random.default_rng(seed)

    def make(n: int) -> np.ndarray:
        if images:
            return rng.integers(0, 256, size=(n, 1, 2, 3), dtype=np.uint8)
        x = rng.normal(3, 2, size=(n, 4)).astype(np.float32)
        x[:, 0], x[:, 1] = np.arange(n), 7  # a constant feature, too
        return x

    y = np.arange(samples) % 3
    return Source(
        "toy", make(samples), y, make(tests), np.arange(tests) % 3, classes=("a", "b", "c")
    )


def raw(directory: Path, split: str, name: str) -> Any:
    """A data set through the index's virtual data set."""
    with h5py.File(directory / "index.h5") as file:
        return file[split][name][:]
