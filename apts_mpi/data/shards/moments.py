"""Mean and standard deviation of a stream of blocks, in one pass, and what is divided by."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

NORMALIZE = ("auto", "feature", "channel", "one", "off")
_NOISE = 2 * np.finfo(np.float32).eps  # of the mean: what lies below it is rounding


def moments_shape(sample_shape: tuple[int, ...], how: str) -> tuple[int, ...]:
    """The shape of the mean and deviation of samples of that shape; it broadcasts over them.

    Args:
        how: one of `NORMALIZE`: of every number of a sample its own, (*sample_shape); of every
            channel, the first dimension of a sample, (c, 1, ...), or () of one channel; one for
            all, (), also where it is "off". "auto" is by feature for samples (features,), by
            channel for images (c, h, w), and one for all others.
    """
    if how == "auto":
        how = {1: "feature", 3: "channel"}.get(len(sample_shape), "one")
    if how == "feature":
        return sample_shape
    if how == "channel" and sample_shape[0] > 1:
        return (sample_shape[0], *[1] * (len(sample_shape) - 1))
    return ()


class Moments:
    """Running mean and variance over the samples of the blocks given to `add`.

    Values are taken relative to the first row ever seen, so that a constant feature has a
    variance of exactly zero; blocks are merged by the parallel formula of Chan et al. (1983).

    Args:
        shape: of mean and deviation, as `moments_shape` has it.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape = shape
        self._count = 0
        self._origin: NDArray[np.float64] | None = None
        self._mean: NDArray[np.float64] = np.zeros(())
        self._squares: NDArray[np.float64] = np.zeros(())

    def add(self, block: NDArray[Any]) -> None:
        """Take in a block of shape (m, *sample_shape); m = 0 is a no-op."""
        rows = block
        if not self._shape:
            rows = block.reshape(-1)
        elif self._shape != block.shape[1:]:
            rows = np.moveaxis(block, 1, -1).reshape(-1, self._shape[0])
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
        """Mean and deviation, float64, of the shape; a constant has deviation 0."""
        if self._origin is None:
            raise ValueError("no data")
        std = np.sqrt(self._squares / self._count)
        mean = self._origin + self._mean
        return np.reshape(mean, self._shape), np.reshape(std, self._shape)


def nonzero(std: NDArray[np.float64]) -> NDArray[np.float64]:
    """The deviations, 1 where there is none."""
    return np.asarray(np.where(std > 0, std, 1.0))


def is_constant(mean: NDArray[np.float64], std: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether values of that mean and deviation are alike, but perhaps for rounding of float32."""
    return np.asarray(std <= _NOISE * np.abs(mean))


def divisors(mean: NDArray[np.float64], std: NDArray[np.float64]) -> NDArray[np.float64]:
    """What features of that mean and deviation are divided by, above 0, of the same shape.

    Of a feature that is constant in the training data, or but for the rounding of float32, it is
    its own size, that of the widest feature, or 1, whichever is largest: training says nothing of
    it, so that another value in other data must not be blown up.
    """
    constant = is_constant(mean, std)
    widest = np.max(np.where(constant, 0.0, std), initial=1.0)
    return np.asarray(np.where(constant, np.maximum(np.abs(mean), widest), std))


def target_divisors(mean: NDArray[np.float64], std: NDArray[np.float64]) -> NDArray[np.float64]:
    """What targets (outputs,) of that mean and deviation are divided by, above 0.

    Of an output that is constant in the training data it is the smallest deviation of the others:
    a network learns 0 for it, and what it is off by is not to stand out from their errors.
    """
    constant = is_constant(mean, std)
    if constant.all():
        return np.asarray(np.where(mean != 0, np.abs(mean), 1.0))
    return np.asarray(np.where(constant, std[~constant].min(), std))
