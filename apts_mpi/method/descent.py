"""Steps of SGD and Adam on one flat parameter, by torch's own functions.

Its optimizer classes would import torch's compiler, which takes seconds on every rank. Without
``foreach``, which is for many small tensors, is the fastest way for one vector.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd


class Step(Protocol):
    """A step of an optimizer along the flat gradient, with the state that it keeps between."""

    def step(self, theta: Tensor, gradient: Tensor) -> None:
        """Move the parameters (n,) along their gradient (n,)."""

    def state_dict(self) -> dict[str, Any]:
        """What a restart needs, by torch's names; nothing before the first step."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""


class SGD:
    """Stochastic gradient descent with momentum, as ``torch.optim.SGD``."""

    def __init__(self, *, lr: float, momentum: float = 0.0, nesterov: bool = False) -> None:
        self._lr, self._momentum, self._nesterov = lr, momentum, nesterov
        self._buffer: Tensor | None = None

    def step(self, theta: Tensor, gradient: Tensor) -> None:
        """One step; the first one makes the momentum's buffer."""
        buffers = [self._buffer]
        sgd(
            [theta],
            [gradient],
            buffers,
            foreach=False,
            weight_decay=0.0,
            momentum=self._momentum,
            lr=self._lr,
            dampening=0.0,
            nesterov=self._nesterov,
            maximize=False,
        )
        self._buffer = buffers[0]

    def state_dict(self) -> dict[str, Any]:
        """The momentum's buffer."""
        return {} if self._buffer is None else {"momentum_buffer": self._buffer}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore it."""
        self._buffer = state.get("momentum_buffer")


class Adam:
    """Adam with torch's defaults, as ``torch.optim.Adam``; with ``decay`` as its ``AdamW``."""

    def __init__(self, *, lr: float, decay: float | None = None) -> None:
        self._lr, self._decay = lr, decay
        self._state: dict[str, Tensor] = {}

    def step(self, theta: Tensor, gradient: Tensor) -> None:
        """One step; the first one makes the averages."""
        state = self._state
        if not state:
            state["step"] = torch.zeros((), device="cpu")
            state["exp_avg"] = torch.zeros_like(theta)
            state["exp_avg_sq"] = torch.zeros_like(theta)
        (adam if self._decay is None else adamw)(
            [theta],
            [gradient],
            [state["exp_avg"]],
            [state["exp_avg_sq"]],
            [],
            [state["step"]],
            foreach=False,
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=self._lr,
            weight_decay=self._decay or 0.0,
            eps=1e-8,
            maximize=False,
        )

    def state_dict(self) -> dict[str, Any]:
        """The count of steps, ``()``, and the averages of gradients and their squares, (n,)."""
        return dict(self._state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore them."""
        self._state = dict(state)
