"""Random numbers of a forward pass: the same ones in every evaluation of a minibatch.

A trust region compares losses of one minibatch at several parameters. Under another dropout mask
each, their difference is noise. So all evaluations of a minibatch see the same random numbers, and
another minibatch sees others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from apts_mpi.networks.seeding import Generators, same_state
from apts_mpi.trust_region.objective import Objective, Pending


class Keyed:
    """A loss whose random numbers are decided by a key, in all evaluations.

    Args:
        objective: the loss. generators: that it draws from. key: of its minibatch.
        repeats: whether the next minibatch is this one again.

    Attributes:
        repeats: as given. draws: whether it has drawn from them, looked at where it repeats.
    """

    def __init__(
        self, objective: Objective, generators: Generators, key: Sequence[int], *, repeats: bool
    ) -> None:
        self._objective, self._generators, self._key = objective, generators, key
        self.repeats, self.draws = repeats, False

    def __call__(self, with_gradient: bool) -> float | Pending:
        """The loss, with or without its gradient."""
        self._generators.seed(self._key)
        if not self.repeats or self.draws:
            return self._objective(with_gradient)
        before = self._generators.state()
        loss = self._objective(with_gradient)
        self.draws = not same_state(before, self._generators.state())
        return loss


class Repeated:
    """A loss whose random numbers are those of its first evaluation in all later ones.

    Args:
        objective: the loss. generators: that it draws from.
        repeats: whether the next minibatch is this one again.

    Attributes:
        repeats: as given. draws: whether it drew from them, looked at where it repeats.
    """

    def __init__(self, objective: Objective, generators: Generators, *, repeats: bool) -> None:
        self._objective, self._generators = objective, generators
        self._first: list[Any] | None = None
        self.repeats, self.draws = repeats, False

    def __call__(self, with_gradient: bool) -> float | Pending:
        """The loss, with or without its gradient."""
        generators, now = self._generators, self._generators.state()
        if self._first is None:
            self._first = now
            loss = self._objective(with_gradient)
            self.draws = self.repeats and not same_state(now, generators.state())
            return loss
        generators.restore(self._first)
        try:
            return self._objective(with_gradient)
        finally:
            generators.restore(now)
