"""Mean and standard deviation of a stream of blocks, in one pass; what features are divided by; and
whether float32 holds what they vary by."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apts_mpi.errors import fault

log = logging.getLogger("apts_mpi")

NORMALIZE = ("auto", "feature", "channel", "one", "off")
_ROUNDING = 2 * np.finfo(np.float32).eps  # of the mean: what lies below it is rounding


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


REMEDY = "subtract a constant from it, e.g. its minimum, or leave it out"
_PIECE = 2**18  # values that are looked at together
_SHARE = 0.01  # of the deviation that rounding may be
# Of the mean: real numbers that vary by less are often a constant with the rounding of how it was
# computed; by less than the second, certainly.
_FINE, _NOISE = 1e-8, 1e-12


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
    return np.asarray(std <= _ROUNDING * np.abs(mean))


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


class Precision:
    """What float32 makes of each number of a sample, over all the blocks of a data set.

    What is kept is float64, of the shape of a sample.
    """

    def __init__(self, sample_shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._dtype = dtype
        self._exact = dtype.kind == "b" or dtype.itemsize <= 2 or dtype == np.dtype("f4")
        self._moments = Moments(sample_shape)
        self._origin: NDArray[Any] | None = None
        self._lost: NDArray[np.float64] = np.zeros(sample_shape)

    def add(self, block: NDArray[Any]) -> None:
        """Take in finite samples (m, *sample_shape)."""
        if self._exact or not len(block):
            return
        if self._origin is None:
            self._origin = block[0].copy()
        step = max(1, _PIECE // max(1, self._origin.size))
        for start in range(0, len(block), step):
            piece = block[start : start + step]
            wide = piece.astype(np.float64)
            lost = np.abs(piece.astype(np.float32) - wide)
            if self._dtype.kind in "iu":  # larger ones float64 has rounded already
                lost += np.where(np.abs(wide) > 2**53, np.spacing(np.abs(wide)), 0)
            self._lost = np.maximum(self._lost, lost.max(axis=0))
            # Of integers the differences are exact so, also where float64 rounds the numbers.
            exact = np.dtype(np.int64) if self._dtype.kind in "iu" else self._dtype
            self._moments.add(piece.astype(exact) - self._origin.astype(exact))

    def check(self, where: Path | str, name: str) -> None:
        """Refuse data that vary by so little about their mean that float32 loses it; of what may be
        a constant, warn. Raises InputError."""
        if self._origin is None:
            return
        away, spread = self._moments.result()
        mean = np.abs(self._origin.astype(np.float64) + away)
        poor = (self._lost > _SHARE * spread) & (spread > 0)
        if self._dtype.kind == "f":
            poor &= spread > _NOISE * mean
            doubtful = poor & (spread <= _FINE * mean)
            poor &= ~doubtful
            for at in np.argwhere(doubtful)[:1]:
                log.warning(
                    "%s: %s, and is taken for a constant; where it is not, %s",
                    where,
                    self._described(name, at, spread, mean),
                    REMEDY,
                )
        for at in np.argwhere(poor)[:1]:
            raise fault(where, self._described(name, at, spread, mean), REMEDY)

    def _described(self, name: str, at: Any, spread: Any, mean: Any) -> str:
        place = tuple(int(i) for i in at)
        assert self._origin is not None, "asked before"
        return (
            f"{name}[:, {', '.join(map(str, place))}] varies by {spread[place]:.3g} about "
            f"{mean[place]:.6g} (the first is {self._origin[place]}), finer than float32"
        )
