"""Whether float32 holds what features vary by, judged from the values as they are stored."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apts_mpi.data.shards.moments import Moments
from apts_mpi.errors import fault

log = logging.getLogger("apts_mpi")

REMEDY = "subtract a constant from it, e.g. its minimum, or leave it out"
_PIECE = 2**18  # values that are looked at together
_SHARE = 0.01  # of the deviation that rounding may be
# Of the mean: real numbers that vary by less are often a constant with the rounding of how it was
# computed; by less than the second, certainly.
_FINE, _NOISE = 1e-8, 1e-12


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
        a constant that is told. Raises InputError."""
        if self._origin is None:
            return
        away, spread = self._moments.result()
        mean = np.abs(self._origin.astype(np.float64) + away)
        poor = (self._lost > _SHARE * spread) & (spread > 0)
        if self._dtype.kind == "f":
            poor &= spread > _NOISE * mean
            told = poor & (spread <= _FINE * mean)
            poor &= ~told
            for at in np.argwhere(told)[:1]:
                log.warning(
                    "%s: %s, and is taken for a constant; where it is not, %s",
                    where,
                    self._told(name, at, spread, mean),
                    REMEDY,
                )
        for at in np.argwhere(poor)[:1]:
            raise fault(where, self._told(name, at, spread, mean), REMEDY)

    def _told(self, name: str, at: Any, spread: Any, mean: Any) -> str:
        place = tuple(int(i) for i in at)
        assert self._origin is not None, "asked before"
        return (
            f"{name}[:, {', '.join(map(str, place))}] varies by {spread[place]:.3g} about "
            f"{mean[place]:.6g} (the first is {self._origin[place]}), finer than float32"
        )
