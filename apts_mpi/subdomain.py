"""A subdomain of a rank: its part of the training data, and the minibatches drawn from it."""

from __future__ import annotations

import math
from collections.abc import Callable

from apts_mpi.clock import Clock
from apts_mpi.data.batches import Batches
from apts_mpi.flat import FlatNetwork
from apts_mpi.placement import Samples


class Subdomain:
    """What an optimizer draws from; ``draw`` is the call that all optimizers take.

    Args:
        network: of the rank, which its subdomains share. samples: of the subdomain.
        batches: the order in which they are drawn. clock: of the rank.

    Attributes:
        strange: a loss with gradient that was not finite, the last one; None where there was none.
    """

    def __init__(
        self, network: FlatNetwork, samples: Samples, batches: Batches, clock: Clock
    ) -> None:
        self.samples, self.batches = samples, batches
        self._network, self._clock = network, clock
        self.strange: float | None = None

    def draw(self) -> tuple[Callable[[bool], float], int]:
        """The loss over the next minibatch, and how many samples it has, which may be 0."""
        network, clock = self._network, self._clock
        with clock.phase("data"):
            index = next(self.batches)
            if len(index) == len(self.samples) and self.batches.whole:  # in its own order
                x, y = self.samples.x, self.samples.y
            else:
                x, y = self.samples.take(index)

        def objective(with_gradient: bool) -> float:
            with clock.phase("gradient", "" if with_gradient else "loss"):
                loss = network.loss_and_gradient(x, y) if with_gradient else network.loss(x, y)
            if with_gradient and not math.isfinite(loss):
                self.strange = loss
            return loss

        return objective, len(y)
