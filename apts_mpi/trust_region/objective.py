"""What a local solver minimises: the loss over a minibatch, called with or without gradient."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


class Pending:
    """A loss that a GPU may still be computing: ``float`` waits for it.

    Args:
        value: () on the GPU. heard: called by whoever waits for the loss; makes it a number.
    """

    def __init__(self, value: Tensor, heard: Callable[[Tensor], float] = float) -> None:
        self.value, self._heard = value, heard

    def __float__(self) -> float:
        return self._heard(self.value)


# The loss over a minibatch, with or without its gradient. It may say by an attribute ``repeats``
# that the next minibatch is this one again, and by ``draws`` that it draws random numbers.
Objective = Callable[[bool], float | Pending]
# A minibatch: its loss, and how many samples it has, which may be 0.
Batch = tuple[Objective, int]
# Gives a subdomain's next minibatch.
Draw = Callable[[], Batch]
