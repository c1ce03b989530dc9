"""The radius rule and the reduction ratio every trust region here shares, local or global."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class RadiusRule:
    """When a step is taken and how the radius follows (Conn, Gould, Toint 2000, Alg. 6.1.1).

    Attributes:
        accept: smallest reduction ratio of a step that is taken.
        shrink_below: a ratio below it shrinks the radius.
        grow_above: a ratio above it grows the radius, if the step used the whole of it.
        shrink: factor in (0, 1).
        grow: factor > 1.
        minimum: the radius never falls below it (in the units of the step's norm).
        maximum: the radius never rises above it.
    """

    accept: float = 1e-4
    shrink_below: float = 0.25
    grow_above: float = 0.75
    shrink: float = 0.5
    grow: float = 2.0
    minimum: float = 1e-8
    maximum: float = 1e3

    def __post_init__(self) -> None:
        if not 0 <= self.accept <= self.shrink_below < self.grow_above:
            raise ValueError("need 0 <= accept <= shrink_below < grow_above")
        if not 0 < self.shrink < 1 < self.grow:
            raise ValueError("need 0 < shrink < 1 < grow")
        if not 0 < self.minimum <= self.maximum:
            raise ValueError("need 0 < minimum <= maximum")

    def accepts(self, rho: float) -> bool:
        """Whether a step of this reduction ratio is taken; a NaN ratio never is."""
        return rho >= self.accept

    def update(
        self, radius: float, rho: float, *, hits_boundary: bool, length: float = math.inf
    ) -> float:
        """The next radius.

        Args:
            radius: the present radius.
            rho: the reduction ratio; NaN counts as a failed step.
            hits_boundary: whether the step used the whole radius; only then can growing help.
            length: of the step; a failed one shrinks the radius below it, wherever that stood.
        """
        if not rho >= self.shrink_below:  # also true for NaN
            radius = self.shrink * min(radius, length)
        elif rho > self.grow_above and hits_boundary:
            radius *= self.grow
        return min(max(radius, self.minimum), self.maximum)

    def at_floor(self, radius: float) -> bool:
        """Whether the radius has nowhere left to shrink to."""
        return radius <= self.minimum


def reduction_ratio(f_old: float, f_new: float, predicted: float, *, noise: float = 0.0) -> float:
    """Actual over predicted reduction, safe against rounding.

    Where both reductions drown in the rounding of the loss the quotient means nothing; adding the
    same ``noise * max(1, |f|)`` to both makes it tend to one there (Conn, Gould, Toint 2000,
    section 17.4.2).

    Args:
        f_old: loss at the iterate, or the reference of a non-monotone window.
        f_new: loss at the trial point; not finite gives NaN, which no rule accepts.
        predicted: reduction the model promised; not positive gives NaN.
        noise: relative rounding error of one loss evaluation.
    """
    if not (math.isfinite(f_new) and math.isfinite(f_old) and math.isfinite(predicted)):
        return math.nan
    slack = noise * max(1.0, abs(f_old))
    if predicted + slack <= 0.0:
        return math.nan
    return (f_old - f_new + slack) / (predicted + slack)


# A linear model knows no curvature: its ratio falls from one for a short step to one half at the
# exact line search. Steps that long zigzag; to grow only above a high ratio keeps them shorter.
FIRST_ORDER_RULE = RadiusRule(grow_above=0.85)


@dataclass(frozen=True, kw_only=True)
class RelaxationRule:
    """How far the average of the ranks' corrections is stretched, a >= 1 (1: the plain average).

    Where every rank's small steps point the same way their average is too timid and rho stays near
    one; summing them (a = N) overshoots as N grows. So a follows rho as a radius does. It grows
    more slowly than it retreats: a rejected correction costs the whole iteration.
    """

    shrink_below: float = 0.25
    grow_above: float = 0.7
    shrink: float = 0.5
    grow: float = 1.5
    maximum: float = 8.0

    def update(self, relaxation: float, rho: float) -> float:
        """The next relaxation; a NaN ratio counts as a failed step."""
        if not rho >= self.shrink_below:
            return max(relaxation * self.shrink, 1.0)
        if rho > self.grow_above:
            return min(relaxation * self.grow, self.maximum)
        return relaxation


_BACK = math.sqrt(2.0)  # growth per iteration after a rejection


@dataclass(frozen=True, kw_only=True)
class NoisyRule:
    """When a joined correction is taken, and how the radius follows, where losses are sampled.

    A ratio of one control batch is mostly noise, so numerator and denominator are smoothed over
    iterations before dividing; and as the ratio of a good radius falls to zero where the noise
    keeps the loss from falling, there is a wide band in which the radius stays (docs/method.md).

    Attributes:
        smoothing: weight of the past in the smoothed reductions, in [0, 1).
        grow_above: a smoothed ratio above it grows the radius, by ``grow`` where it is one.
        shrink_below: a smoothed ratio below it shrinks the radius by ``shrink``.
        window: control losses whose largest the loss at the trial point is judged against.
        minimum: the radius never falls below it.
    """

    smoothing: float = 0.7
    grow_above: float = 0.35
    grow: float = 2.0
    shrink_below: float = -0.5
    shrink: float = 0.8
    window: int = 5
    minimum: float = 1e-8

    def __post_init__(self) -> None:
        if not 0 <= self.smoothing < 1:
            raise ValueError("need 0 <= smoothing < 1")
        if not -math.inf < self.shrink_below < self.grow_above < 1:
            raise ValueError("need shrink_below < grow_above < 1")
        if not 0 < self.shrink < 1 <= self.grow:
            raise ValueError("need 0 < shrink < 1 <= grow")
        if self.window < 1 or not self.minimum > 0:
            raise ValueError("need window >= 1 and minimum > 0")

    def update(self, radius: float, rho: float, ceiling: float = 0.0) -> float:
        """The next radius after a correction that was taken.

        Args:
            rho: the smoothed ratio.
            ceiling: what the radius grows back to while the ratio does not shrink it.
        """
        if rho < self.shrink_below:
            return max(radius * self.shrink, self.minimum)
        back = min(radius * _BACK, ceiling)
        if rho > self.grow_above:
            radius *= self.grow ** ((min(rho, 1.0) - self.grow_above) / (1.0 - self.grow_above))
        return max(radius, back, self.minimum)

    def after_rejection(self, radius: float, *, finite: bool) -> tuple[float, float]:
        """The radius after a correction that was not taken, and the ceiling.

        A rejection is mostly an accident, of noise or of a cliff that the next minibatches go
        round. One that is none comes back, and each lowers the ceiling.

        Args:
            finite: whether loss and slope at the trial point were.
        """
        return max(radius * (0.5 if finite else 0.1), self.minimum), radius * self.shrink


@dataclass
class SmoothedRatio:
    """rho: actual over predicted reduction, both summed with fading weights before dividing.

    Attributes:
        actual, promised: ared and pred, smoothed, up to the same factor.
    """

    smoothing: float
    actual: float = 0.0
    promised: float = 0.0

    def update(self, actual: float, promised: float) -> float:
        """Take in an iteration; returns the smoothed ratio, in [-2, 2]."""
        fresh = 1.0 - self.smoothing
        self.actual = self.smoothing * self.actual + fresh * actual
        # A correction along which the loss falls ever faster promises less than it keeps.
        promised = max(promised, abs(actual) / 2.0)
        self.promised = self.smoothing * self.promised + fresh * promised
        return self.actual / self.promised if self.promised > 0.0 else 0.0

    def reset(self) -> None:
        """Forget: after a rejection the past says nothing about the new radius."""
        self.actual = self.promised = 0.0
