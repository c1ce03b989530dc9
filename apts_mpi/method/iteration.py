"""What an outer iteration did, and the signs of a run that goes nowhere."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Iteration:
    """What one outer iteration did; the same on every rank. Fields with a default are APTS's.

    Attributes:
        loss: f on the iteration's batch at the new iterate; of a baseline before its steps.
        rho, accepted: of the joined correction. rho is NaN where nothing was tried.
        global_rho, global_accepted: of the global step.
        radius: Delta after the iteration.
        relaxation: a, the factor on the averaged corrections of the next iteration.
        local_reduction: what the joined correction promised.
        local_accepted, local_tried: local steps, summed over ranks.
        gradient_evaluations: per-sample ones, summed over ranks; a forward one counts a third.
    """

    loss: float
    rho: float = math.nan
    accepted: bool
    global_rho: float = math.nan
    global_accepted: bool = False
    radius: float = math.nan
    relaxation: float = math.nan
    local_reduction: float = math.nan
    local_accepted: int = 0
    local_tried: int = 0
    gradient_evaluations: float


def require_options(own: dict[str, Any], theirs: dict[str, Any], *, besides: set[str]) -> None:
    """See that a saved state belongs to an optimizer of these options, but for some of them.

    Raises:
        ValueError: it does not; the line has what it has and what it should have.
    """
    differing = [
        f"{name} {theirs.get(name)}, not {value}"
        for name, value in own.items()
        if name not in besides and theirs.get(name) != value
    ]
    if differing:
        raise ValueError(f"the state has {'; '.join(differing)}")
