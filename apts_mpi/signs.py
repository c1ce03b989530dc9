"""Tells, once each, the signs of a run that goes nowhere, with their likely causes."""

from __future__ import annotations

import logging
from dataclasses import dataclass

log = logging.getLogger("apts_mpi")

IN_A_ROW = 10  # iterations after which bad luck is no longer the explanation


@dataclass
class FailureSigns:
    """Counts of bad iterations in a row, and what has been told already."""

    rejected: int = 0
    untrue: int = 0
    told_floor: bool = False
    told_rejected: bool = False
    told_untrue: bool = False

    def watch(
        self, *, moved: bool, promised: bool, rho: float, radius: float, at_floor: bool
    ) -> None:
        """Look at one iteration; every rank sees the same, the log decides who is heard.

        Args:
            moved: whether any step was taken. promised: whether the ranks' corrections promised a
                reduction. rho: of the joined correction. radius: Delta. at_floor: whether Delta
                cannot shrink any more.
        """
        self.rejected = 0 if moved else self.rejected + 1
        self.untrue = self.untrue + 1 if promised and not rho > 0.1 else 0
        if at_floor and not self.told_floor:
            self.told_floor = True
            log.warning(
                "the radius is at its floor %.1e: no step lowers the loss any more; training has "
                "converged, or the batches are too small for their loss to be trusted (raise "
                "--batch)",
                radius,
            )
        if self.rejected >= IN_A_ROW and not self.told_rejected:
            self.told_rejected = True
            log.warning(
                "%d iterations in a row were rejected (radius %.1e): the loss is at a minimum or "
                "not smooth at this scale; a --window above 1 lets it rise for a while",
                IN_A_ROW,
                radius,
            )
        if self.untrue >= IN_A_ROW and not self.told_untrue:
            self.told_untrue = True
            log.warning(
                "%d times in a row the ranks' local reductions did not come true on the joined "
                "data: the subdomains' losses disagree (label-skewed shards?) or their batches "
                "are too small; keep --consistency on, raise --batch",
                IN_A_ROW,
            )
