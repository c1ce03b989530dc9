"""The first radius: a step along descent is doubled while the loss falls.

It costs forward evaluations and scalar messages only. Where a search sees nothing it says so in one
line, and must not bound the run: the loss rises along its own gradient, or does not move, or is
another one each time. In half precision small steps do not show yet; there the search continues.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from apts_mpi.method.flat import FlatParameters
from apts_mpi.method.joined_loss import JoinedLoss
from apts_mpi.trust_region.local import FirstOrder
from apts_mpi.trust_region.metric import Metric

log = logging.getLogger("apts_mpi")

HIDDEN = 0.01  # part of a loss that rounding to 8 bits may hide
NOISE = 1e-3  # part of a loss by which it may differ from itself
_FIRST = 1e-5  # smallest displacement that is tried along signs
_BLIND = 1e-3  # first radius where the loss gives none, as Adam's usual learning rate
_STEPS_IN_REACH = 5.0  # so many steps of the first radius go as far as one step of the search
DOUBTED = 3  # doublings up to which the loss at the start is looked at twice


@dataclass(frozen=True)
class FirstStep:
    """What a search found.

    Attributes:
        length: of the longest step up to which the loss fell; NaN where no step lowered it, or the
            loss is another one each time.
        noisy: whether it is.
        why: a line's end for the user where nothing was found.
    """

    length: float
    noisy: bool = False
    why: str = ""

    def warn(self, radius: float) -> None:
        """Say that nothing was found, and what training starts with instead."""
        log.warning("no first radius was found, training starts with %.1e: %s", radius, self.why)


def search(
    loss_at: Callable[[float], float], *, loss: float, slope: float, first: float, largest: float
) -> FirstStep:
    """Double a step while the loss falls; the same on every rank.

    Where the loss rises by no more than rounding may hide, while the slope promises no more than
    that either, nothing can be seen yet, and the search continues.

    Args:
        loss_at: the loss after a step of that length. loss: at the start.
        slope: how much it falls per length, at first. first: the smallest step.
        largest: length that no step reaches.
    """
    hidden, best, found = HIDDEN * abs(loss), loss, math.nan
    trials, length = list[float](), first
    while length < largest:
        trials.append(loss_at(length))
        if trials[-1] < best:
            best, found = trials[-1], length
        elif not (trials[-1] <= loss + hidden and length * slope <= hidden):
            break
        length *= 2.0
    if found > first * 2.0**DOUBTED or not trials:
        return FirstStep(found)
    again = loss_at(0.0)
    if not abs(again - loss) <= NOISE * abs(loss):
        return FirstStep(
            math.nan,
            noisy=True,
            why=f"the loss of one minibatch is {loss:.6g} and then {again:.6g} at the same "
            "parameters: it draws from a generator of its own, which cannot be repeated; use the "
            "default ones of torch, numpy or random",
        )
    if not math.isnan(found):
        return FirstStep(found)
    why = (
        f"the loss stays {loss:.6g} however the parameters move: it is computed with a copy of "
        "them, or it is constant"
    )
    if any(trial != loss for trial in trials):
        why = (
            f"the loss of {loss:.6g} rises by {trials[0] - loss:.2g} along its own gradient: the "
            "samples are not normalised, or training starts in a minimum"
        )
    return FirstStep(math.nan, why=why)


def search_along(
    theta: Tensor,
    start: Tensor,
    direction: Tensor,
    loss_here: Callable[[], float],
    *,
    unit: float,
    **numbers: float,
) -> FirstStep:
    """Search along a direction; the parameters are left at the start.

    Args:
        theta: (n,) the parameters. start: (n,) where they are. direction: (n,).
        loss_here: the joined loss at the present parameters.
        unit: length of the direction, as steps are measured; negative where it is an ascent.
        numbers: loss, slope, first and largest, as ``search``'s.
    """

    def loss_at(length: float) -> float:
        torch.add(start, direction, alpha=length / unit, out=theta)
        return loss_here()

    found = search(loss_at, **numbers)
    theta.copy_(start)
    return found


def along_descent(
    joined: JoinedLoss, theta: Tensor, start: Tensor, *, loss: float, norm: str
) -> FirstStep:
    """The first radius of a deterministic run: a step of steepest descent, doubled.

    Args:
        joined: its ``g`` is the gradient at the start. theta: (n,) the parameters.
        start: (n,) where they are. loss: f there.
        norm: of the radius, "2" or "inf".
    """
    p = torch.zeros_like(theta)
    first = 1e-4 if norm == "inf" else 1e-4 * math.sqrt(len(theta))
    slope = FirstOrder(norm).step(joined.g, torch.zeros_like(p), first, first, p).predicted / first
    found = search_along(
        theta,
        start,
        p,
        partial(joined.evaluate, with_gradient=False),
        unit=first,
        loss=loss,
        slope=slope,
        first=first,
        largest=first * 2.0**20,
    )
    return found if found.length > 0.0 else replace(found, length=first / 2.0)


@dataclass(frozen=True)
class Reach:
    """What a search along signs found.

    Attributes:
        step: the search. reach: half of what Delta may grow to. first: the first radius.
        longest: the largest that may be given.
    """

    step: FirstStep
    reach: float
    first: float
    longest: float

    def report(self, given: float) -> None:
        """Say that nothing was found, or that the radius given is too long; NaN: none is."""
        if self.step.why:
            self.step.warn(self.first)
        elif given > self.longest:
            log.warning(
                "the radius %.1e is cut to %.1e: longer steps do not lower the loss at the start",
                given,
                self.longest,
            )


def along_step(
    flat: FlatParameters,
    start: Tensor,
    direction: Tensor,
    metric: Metric,
    loss_here: Callable[[], float],
    *,
    loss: float,
    samples: float,
    steps: int,
) -> Reach:
    """The first radius of a stochastic run: the first local step, doubled.

    No further than the weights are large: at the start of a language model the loss falls along
    far longer steps, as soon as the frequent tokens are likely, and the rest is undone. Where that
    cannot be seen, Delta may grow as far as the weights are large. Nor do the steps between two
    messages together go further than the hidden matrices are large, and at first than a quarter of
    that: a shallow network whose first iteration goes further does not recover from it.

    Args:
        flat: the parameters. start, loss_here, loss: as ``search_along``'s.
        direction: (n,) the gradient, summed over so many samples, which becomes the step.
        metric: of the local steps. steps: between two messages.
    """
    slope = metric.first_step(direction) / samples
    room = metric.extent() / steps
    largest = max(flat.weight_scale() or 1.0, _FIRST)  # no weights: nothing to go by
    step = search_along(
        flat.vector,
        start,
        direction,
        loss_here,
        unit=-1.0,
        loss=loss,
        slope=slope,
        first=_FIRST,
        largest=largest,
    )
    if not math.isnan(step.length):
        reach = min(step.length, room / 2.0)
        longest = min(step.length / _STEPS_IN_REACH, room)
        return Reach(step, reach, min(longest, room / 4.0), longest)
    blind = min(_BLIND if step.noisy else _FIRST / _STEPS_IN_REACH, room / 4.0)
    return Reach(step, min(largest, room / 2.0), blind, blind)
