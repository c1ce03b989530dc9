"""A subdomain of a rank: its part of the training data, and the minibatches drawn from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import Tensor

from apts_mpi.comm.clock import Clock
from apts_mpi.data.minibatches.batches import Batches
from apts_mpi.method.randomness import Keyed
from apts_mpi.training.flat_network import FlatNetwork
from apts_mpi.training.samples import Held, Samples, Streamed
from apts_mpi.trust_region.objective import Objective, Pending


class Subdomain:
    """What an optimizer draws from; ``draw`` is the call that all optimizers take.

    Args:
        network: of the rank, which its subdomains share. samples: of the subdomain.
        batches: the order in which they are drawn. clock: of the rank.
        augment: changes a batch of images at random, by a key. key: sets the subdomain's random
            numbers apart from others, (seed, number).

    Attributes:
        strange: a loss with gradient that was looked at and not finite, the last one; None where
            there was none.
    """

    def __init__(
        self,
        network: FlatNetwork,
        samples: Samples,
        batches: Batches,
        clock: Clock,
        *,
        augment: Callable[[Tensor, Sequence[int]], Tensor] | None = None,
        key: tuple[int, ...] = (),
    ) -> None:
        self.samples, self.batches = samples, batches
        self._augment, self._key = augment, key
        self._network, self._clock = network, clock
        self.strange: float | None = None

    def follow(self) -> None:
        """Where samples are streamed: have those ready that will be drawn from here on."""
        if isinstance(self.samples, Streamed):
            self.samples.stream.follow(self.batches)

    def draw(self) -> tuple[Objective, int]:
        """The loss over the next minibatch, and how many samples it has, which may be 0."""
        network, clock = self._network, self._clock
        with clock.phase("data"):
            place, samples = self.batches.drawn, self.samples
            index = next(self.batches)
            whole = len(index) == len(samples) and self.batches.whole  # in its own order
            if whole and isinstance(samples, Held):
                x, y = samples.x, samples.y
            else:
                x, y = samples.take(index)
            key = (*self._key, *place)
            if self._augment is not None:
                x = self._augment(x, key)

        def heard(value: Tensor) -> float:
            with clock.phase("gradient"):
                loss = float(value)
            if not math.isfinite(loss):
                self.strange = loss
            return loss

        def objective(with_gradient: bool) -> float | Pending:
            if not with_gradient:
                with clock.phase("gradient", "loss"):
                    return network.loss(x, y)
            with clock.phase("gradient"):
                value = network.start_gradient(x, y)
            return Pending(value, heard) if value.is_cuda else heard(value)

        # Images that change as they are drawn are another batch each time.
        repeats = self.batches.repeats and self._augment is None
        return Keyed(objective, network.generators, key, repeats=repeats), len(y)
