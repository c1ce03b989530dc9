"""What an outer iteration did, and the signs of a run that goes nowhere."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

log = logging.getLogger("apts_mpi")

IN_A_ROW = 10  # iterations after which bad luck is no longer the explanation
UNMOVED = 5  # accepted steps in a row after which a ratio of exactly 0 is none


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


@dataclass
class FailureSigns:
    """Warns, once each, of the signs of failure: bad iterations in a row, a radius at its floor."""

    rejected: int = 0
    untrue: int = 0
    unmoved: int = 0
    warned_floor: bool = False
    warned_rejected: bool = False
    warned_untrue: bool = False
    warned_unmoved: bool = False

    def watch(self, done: Iteration, *, at_floor: bool, noisy: bool = False) -> None:
        """Look at one iteration; every rank sees the same, the log decides who is heard.

        Args:
            done: the iteration. at_floor: whether Delta cannot shrink any more.
            noisy: whether reductions are sampled, so that untrue promises are nothing special.
        """
        moved = done.accepted or done.global_accepted
        self.rejected = 0 if moved else self.rejected + 1
        untrue = done.local_reduction > 0.0 and not done.rho > 0.1
        self.untrue = self.untrue + 1 if untrue else 0
        self.unmoved = self.unmoved + 1 if done.accepted and done.rho == 0.0 else 0
        if self.unmoved >= UNMOVED and not self.warned_unmoved:
            self.warned_unmoved = True
            log.warning(
                "the loss did not change at all in %d accepted steps (radius %.1e): it is computed "
                "with other weights than those that are moved (kept casts, a copy), or in "
                "a precision that hides such steps",
                UNMOVED,
                done.radius,
            )
        if at_floor and not self.warned_floor:
            self.warned_floor = True
            log.warning(
                "the radius is at its floor %.1e: no step lowers the loss any more; training has "
                "converged, or the batches are too small for their loss to be trusted (raise "
                "--batch)",
                done.radius,
            )
        if self.rejected >= IN_A_ROW and not self.warned_rejected:
            self.warned_rejected = True
            log.warning(
                "%d iterations in a row were rejected (radius %.1e): the loss is at a minimum or "
                "not smooth at this scale; a larger --window lets it rise for a while",
                IN_A_ROW,
                done.radius,
            )
        if self.untrue >= IN_A_ROW and not self.warned_untrue and not noisy:
            self.warned_untrue = True
            log.warning(
                "%d times in a row the ranks' local reductions did not come true on the joined "
                "data: the subdomains' losses disagree (label-skewed shards?) or their batches "
                "are too small; keep --consistency on, raise --batch",
                IN_A_ROW,
            )
