"""Medians with bootstrap intervals."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Runs = Sequence[Array]  # the values of every run
LEVEL, RESAMPLES, _SEED = 0.95, 1000, 0


@dataclass(frozen=True)
class Estimate:
    """A value with its interval.

    Attributes:
        value: the estimate. low, high: ends of its 95 percent interval; None where there are too
            few values for one.
    """

    value: float
    low: float | None = None
    high: float | None = None

    def times(self, factor: float) -> Estimate:
        """In another unit."""
        if self.low is None or self.high is None:
            return Estimate(self.value * factor)
        return Estimate(self.value * factor, self.low * factor, self.high * factor)

    def text(self, form: Callable[[float], str]) -> str:
        """``1.72 [1.70, 1.75]``."""
        if self.low is None or self.high is None:
            return form(self.value)
        return f"{form(self.value)} [{form(self.low)}, {form(self.high)}]"


def median(runs: Runs) -> Estimate:
    """Median over all runs' values.

    The interval is a percentile bootstrap's. Values of one run are alike, so that whole runs are
    drawn; single values where there is one run only.
    """
    return _estimate(lambda of: of[0], [runs])


def quotient(upper: Runs, lower: Runs) -> Estimate:
    """Quotient of two medians, with the interval of both being drawn anew."""
    return _estimate(lambda of: of[0] / of[1], [upper, lower])


def paired(combine: Callable[[Any, Any], Any], one: Array, other: Array) -> Estimate:
    """What two medians make together, of values that were measured in turns: pairs are drawn.

    Args:
        one, other: (n,) each; of the longer the first are taken.
    """
    pairs = min(len(one), len(other))
    samples = [[one[:pairs]], [other[:pairs]]]
    return _estimate(lambda of: combine(*of), samples, together=True)


def _estimate(
    combine: Callable[[list[Any]], Any], samples: Sequence[Runs], *, together: bool = False
) -> Estimate:
    units = [_units(runs) for runs in samples]
    value = float(combine([np.nanmedian(unit) for unit in units]))
    if min(map(len, units)) < 2:
        return Estimate(value)
    from scipy.stats import bootstrap  # slow to import

    def statistic(*drawn: Any, axis: int) -> Any:
        medians = []
        for unit, indices in zip(units, drawn, strict=True):
            values = unit[np.moveaxis(indices, axis, -1).astype(int)]
            flat = values.reshape(*values.shape[:-2], -1)
            of = np.nanmedian if np.isnan(unit).any() else np.median
            medians.append(of(flat, axis=-1))
        return combine(medians)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # values all equal: their interval is a point
        ends = bootstrap(
            [np.arange(len(unit)) for unit in units],
            statistic,
            paired=together,
            n_resamples=RESAMPLES,
            batch=100,  # bounds the memory
            confidence_level=LEVEL,
            method="percentile",
            vectorized=True,
            rng=np.random.default_rng(_SEED),
        ).confidence_interval
    return Estimate(value, float(ends.low), float(ends.high))


def _units(runs: Runs) -> Array:
    """What a resample draws from, a row each: runs, padded with nan, or the values of one run."""
    whole = [np.asarray(run, dtype=np.float64) for run in runs if len(run)]
    if len(whole) == 1:
        return whole[0][:, None]
    padded = np.full((len(whole), max(map(len, whole))), np.nan)
    for row, run in zip(padded, whole, strict=True):
        row[: len(run)] = run
    return padded
