"""Mean and standard deviation of a stream of blocks, in one pass."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


class Moments:
    """Running mean and variance over the first axis of the blocks given to `add`.

    Values are taken relative to the first row ever seen, so that a constant feature has a
    variance of exactly zero; blocks are merged by the parallel formula of Chan et al. (1983).
    With `scalar`, all features share one mean and one deviation.
    """

    def __init__(self, *, scalar: bool) -> None:
        self._scalar = scalar
        self._count = 0
        self._origin: NDArray[np.float64] | None = None
        self._mean: NDArray[np.float64] = np.zeros(())
        self._squares: NDArray[np.float64] = np.zeros(())

    def add(self, block: NDArray[Any]) -> None:
        """Take in a block of shape (m, *sample_shape); m = 0 is a no-op."""
        rows = block.reshape(-1) if self._scalar else block
        if not len(rows):
            return
        if self._origin is None:
            self._origin = rows[0].astype(np.float64)
        shifted = rows - self._origin
        count, mean = len(rows), shifted.mean(axis=0)
        squares = np.square(shifted - mean).sum(axis=0)
        total = self._count + count
        step = mean - self._mean
        self._squares = self._squares + squares + step**2 * (self._count * count / total)
        self._mean = self._mean + step * (count / total)
        self._count = total

    def result(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and deviation, float64, of shape () or sample_shape; a constant has deviation 1."""
        if self._origin is None:
            raise ValueError("no data")
        std = np.sqrt(self._squares / self._count)
        return np.asarray(self._origin + self._mean), np.asarray(np.where(std > 0, std, 1.0))
