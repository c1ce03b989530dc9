"""What a local solver minimises: the loss over a minibatch, called with or without gradient."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


class Pending:
    """A loss that a GPU may still be computing: ``float`` waits for it.

    Args:
        value: () on the GPU. heard: told the loss when somebody has waited for it, and returns it.
    """

    def __init__(self, value: Tensor, heard: Callable[[Tensor], float] = float) -> None:
        self.value, self._heard = value, heard

    def __float__(self) -> float:
        return self._heard(self.value)


# Gives the loss over the rank's next minibatch, with or without its gradient, and its samples.
Objective = Callable[[bool], float | Pending]


Draw = Callable[[], tuple[Objective, int]]
