"""Learning rates over a run: warm-up, and how they fall to its end.

They depend on the part of the work that is done alone, so that they are the same on every rank and
for a run that is resumed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

SCHEDULES = ("constant", "cosine", "wsd")
COOLDOWN = 0.2  # of the work: wsd's


@dataclass(frozen=True)
class Schedule:
    """What a learning rate is multiplied by, from 0 to 1.

    Attributes:
        shape: after the warm-up: "constant"; "cosine" to 0 at the end (Loshchilov and Hutter, arXiv
            1608.03983, one cycle); or "wsd" (warm-up, stable, decay): linear to 0 over the last
            fifth, which matches the cosine (Hägele et al. 2024, arXiv 2405.18392).
        warmup: part of the work in which the rate rises linearly, 0 to below 1.
        step: part of the work that a minibatch of every rank is.
    """

    shape: str = "constant"
    warmup: float = 0.0
    step: float = 0.0

    def factor(self, done: float, steps: int = 0) -> float:
        """For the next step.

        Args:
            done: part of the work that was done before the iteration. steps: taken in it so far.
        """
        now = min(done + steps * self.step, 1.0)
        # The first step of the warm-up is no step of length zero.
        rising = min((now + self.step) / self.warmup, 1.0) if self.warmup > 0.0 else 1.0
        if self.shape == "cosine":
            turn = max(now - self.warmup, 0.0) / (1.0 - self.warmup)
            return rising * 0.5 * (1.0 + math.cos(math.pi * turn))
        if self.shape == "wsd":
            return min(rising, (1.0 - now) / COOLDOWN)
        return rising


CONSTANT = Schedule()
