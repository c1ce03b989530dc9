"""Hockney's model of a message's time: a latency, and a bandwidth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls


@dataclass(frozen=True)
class Hockney:
    """Time of a message = latency + bytes / bandwidth.

    Attributes:
        latency: seconds. bandwidth: bytes per second, infinite where size does not matter.
        residual: median of the relative errors of what it was fitted to.
    """

    latency: float
    bandwidth: float
    residual: float

    def seconds(self, nbytes: float) -> float:
        """Of a message of so many bytes."""
        return self.latency + nbytes / self.bandwidth


def fit(sizes: Sequence[float], seconds: Sequence[float]) -> Hockney:
    """Fit by least squares of the relative errors, so that short messages count as much as long.

    Args:
        sizes: bytes, two different ones at least. seconds: of each, positive; a size may come
            more than once.

    Raises:
        ValueError: there are not as many of both, too few, or one is out of range.
    """
    nbytes, times = np.asarray(sizes, dtype=float), np.asarray(seconds, dtype=float)
    if nbytes.shape != times.shape or nbytes.ndim != 1 or len(set(nbytes.tolist())) < 2:
        raise ValueError("a fit needs times of two different sizes at least")
    good = np.isfinite(nbytes) & np.isfinite(times) & (nbytes >= 0) & (times > 0)
    if not good.all():
        raise ValueError("a fit needs finite sizes from 0 and finite positive times")
    # In units of the largest size, both columns and both unknowns are of a like magnitude.
    scale = float(nbytes.max())
    columns = np.column_stack((1.0 / times, nbytes / scale / times))
    (latency, per_scale), _ = nnls(columns, np.ones(len(times)))
    bandwidth = scale / per_scale if per_scale > 0 else math.inf
    errors = np.abs(latency + nbytes / bandwidth - times) / times
    return Hockney(float(latency), float(bandwidth), float(np.median(errors)))
