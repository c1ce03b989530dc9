"""Stragglers: how much longer the slowest of many ranks takes than one, from measured times.

What has been measured is a sample of times. Up to a quarter as many ranks as it has members, the
expected maximum is that of ranks drawing from the sample, with replacement; that is exact and needs
no random numbers. Beyond, where a sample cannot have seen what is rare enough, it is the larger one
of that and of a normal distribution of the same mean and standard deviation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.integrate import quad
from scipy.special import log_ndtr

RESAMPLED = 4000  # sums, where an iteration is longer than a measured one


@dataclass(frozen=True)
class Spread:
    """Times of an outer iteration relative to their mean, sorted, the mean 1.

    Attributes:
        times: one or more. evaluations: of minibatches within each of them.
    """

    times: tuple[float, ...]
    evaluations: float = 1.0

    def maximum(self, ranks: int) -> float:
        """The expected maximum over so many ranks, relative to the mean."""
        found = sample_maximum(self.times, ranks)
        if 4 * ranks > len(self.times):
            deviation = float(np.std(self.times))
            found = max(found, 1.0 + deviation * normal_maximum(ranks))
        return found

    def excess(self, ranks: int) -> float:
        """What the slowest rank takes longer than the mean, relative to it."""
        return max(self.maximum(ranks) - 1.0, 0.0)

    def over(self, evaluations: float) -> Spread:
        """The spread of iterations of another length, their evaluations' times independent.

        Longer ones are sums of measured iterations, resampled with a fixed seed. In shorter ones
        deviations are larger by the root of the ratio; the times' sum has the right variance.
        """
        ratio = evaluations / self.evaluations
        times = np.asarray(self.times)
        if ratio >= 2.0 and len(times) > 1:
            count = round(min(ratio, 200.0))
            chance = np.random.default_rng(0)
            sums = np.zeros(RESAMPLED)
            for _ in range(count):
                sums += chance.choice(times, RESAMPLED)
            # Beyond 200 of them the sums are normal, and only their deviation shrinks.
            scaled = 1.0 + (sums / count - 1.0) * math.sqrt(count / ratio)
        else:
            scaled = 1.0 + (times - 1.0) / math.sqrt(ratio)
        return spread(np.maximum(scaled, 0.0).tolist(), evaluations)


def spread(times: Sequence[float], evaluations: float = 1.0) -> Spread:
    """The spread of measured times, in any unit.

    Raises:
        ValueError: there are none, or their mean is not positive.
    """
    mean = float(np.mean(times)) if len(times) else 0.0
    if not mean > 0.0:
        raise ValueError("a spread needs positive times")
    return Spread(tuple(np.sort(np.asarray(times) / mean).tolist()), evaluations)


def sample_maximum(times: Sequence[float], ranks: int) -> float:
    """Expected maximum of so many draws with replacement; ``times`` sorted.

    The i-th smallest of n is the maximum with probability (i/n)^N - ((i-1)/n)^N.
    """
    levels = (np.arange(len(times) + 1) / len(times)) ** ranks
    return float(np.dot(np.diff(levels), times))


@lru_cache
def normal_maximum(ranks: int) -> float:
    """Expected maximum of so many standard normal numbers, by integration.

    E max = integral over x > 0 of P(max > x), less that over x < 0 of P(max < x).
    """
    above = quad(lambda x: -math.expm1(ranks * float(log_ndtr(x))), 0.0, 12.0, limit=200)[0]
    below = quad(lambda x: math.exp(ranks * float(log_ndtr(x))), -12.0, 0.0, limit=200)[0]
    return float(above - below)
