"""Steps of SGD, Adam and Muon on one flat parameter, by torch's own functions.

Its optimizer classes would import torch's compiler, which takes seconds on every rank. Without
``foreach``, which is for many small tensors, is the fastest way for one vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from apts_mpi.method.layers import Layer
from apts_mpi.trust_region.polar import COEFFICIENTS

MUON_MOMENTUM = 0.95  # of torch and of Muon's author


class Step(Protocol):
    """A step of an optimizer along the flat gradient, with the state that it keeps between.

    Attributes:
        lr: of the next step.
    """

    lr: float

    def step(self, theta: Tensor, gradient: Tensor) -> None:
        """Move the parameters (n,) along their gradient (n,)."""

    def state_dict(self) -> dict[str, Any]:
        """What a restart needs, by torch's names; nothing before the first step."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""


class SGD:
    """Stochastic gradient descent with momentum, as ``torch.optim.SGD``."""

    def __init__(self, *, lr: float, momentum: float = 0.0, nesterov: bool = False) -> None:
        self.lr, self._momentum, self._nesterov = lr, momentum, nesterov
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
            lr=self.lr,
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
        self.lr, self._decay = lr, decay
        self._state: dict[str, Tensor] = {}

    def step(self, theta: Tensor, gradient: Tensor) -> None:
        """One step; the first one makes the averages."""
        state = self._state
        if not state:
            state.update(_averages(theta))
        averages = (state["exp_avg"], state["exp_avg_sq"], state["step"])
        one = ([each] for each in (theta, gradient, *averages))
        _adam(*one, lr=self.lr, decay=self._decay, foreach=False)

    def state_dict(self) -> dict[str, Any]:
        """The count of steps, ``()``, and the averages of gradients and their squares, (n,)."""
        return dict(self._state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore them."""
        self._state = dict(state)


class Muon:
    """Muon for hidden weights, AdamW at the same rate for all others.

    As ``torch.optim.Muon`` with updates of AdamW's length, 0.2 sqrt(max(rows, columns)) times the
    polar factor (Liu et al. 2025, arXiv 2502.16982), and as ``torch.optim.AdamW``.

    Args:
        layers: of the flat vector. decay: the weight decay of both.
    """

    def __init__(self, layers: Sequence[Layer], *, lr: float, decay: float = 0.0) -> None:
        self.lr, self._decay = lr, decay
        self._hidden = [layer for layer in layers if layer.kind == "hidden"]
        self._others: list[slice] = []  # neighbours together
        for part in (layer.part for layer in layers if layer.kind != "hidden"):
            if self._others and self._others[-1].stop == part.start:
                part = slice(self._others.pop().start, part.stop)
            self._others.append(part)
        self._state: dict[str, Tensor] = {}

    def step(self, theta: Tensor, gradient: Tensor) -> None:
        """One step; the first one makes the averages."""
        from torch.optim._muon import muon  # which older versions of torch lack

        state = self._state
        if not state:
            state.update(_averages(theta))
        vectors: tuple[Tensor, ...] = (theta, gradient, state["exp_avg"])
        muon(
            *([layer.of(vector) for layer in self._hidden] for vector in vectors),
            lr=self.lr,
            weight_decay=self._decay,
            momentum=MUON_MOMENTUM,
            nesterov=True,
            ns_coefficients=COEFFICIENTS,
            ns_steps=5,
            eps=1e-7,
            adjust_lr_fn="match_rms_adamw",
            has_complex=False,
        )
        vectors = (*vectors, state["exp_avg_sq"])
        cut = [[vector[part] for part in self._others] for vector in vectors]
        cut.append([state["step"].clone() for _ in self._others])
        _adam(*cut, lr=self.lr, decay=self._decay)
        state["step"] += 1

    def state_dict(self) -> dict[str, Any]:
        """As Adam's; of hidden weights the average of gradients is Muon's momentum."""
        return dict(self._state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore it."""
        self._state = dict(state)


def _adam(
    parameters: list[Tensor],
    gradients: list[Tensor],
    averages: list[Tensor],
    squares: list[Tensor],
    counts: list[Tensor],
    *,
    lr: float,
    decay: float | None,
    foreach: bool | None = None,
) -> None:
    """A step of Adam on each of the parameters; of AdamW where there is a weight decay."""
    (adam if decay is None else adamw)(
        parameters,
        gradients,
        averages,
        squares,
        [],
        counts,
        foreach=foreach,
        amsgrad=False,
        beta1=0.9,
        beta2=0.999,
        lr=lr,
        weight_decay=decay or 0.0,
        eps=1e-8,
        maximize=False,
    )


def _averages(theta: Tensor) -> dict[str, Tensor]:
    """Adam's state before the first step, by torch's names."""
    return {
        "step": torch.zeros((), device="cpu"),
        "exp_avg": torch.zeros_like(theta),
        "exp_avg_sq": torch.zeros_like(theta),
    }
