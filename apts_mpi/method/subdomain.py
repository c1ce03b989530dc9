"""One subdomain of a rank: its loss over its batch, its gradient, and its local solver."""

from __future__ import annotations

import math
from typing import Any

import torch

from apts_mpi.method.flat import FlatParameters
from apts_mpi.method.messages import CountedMessages
from apts_mpi.trust_region.local import LocalSolver
from apts_mpi.trust_region.objective import Batch, Objective
from apts_mpi.trust_region.scaled import ScaledSolver


class Subdomain:
    """What subdomains of both methods have.

    Attributes:
        samples: b_d of the batch, which may be 0.
        loss: f_d at the iterate.
        gradient: (n,) float32, g_d where it was evaluated last; the flat one itself where the
            subdomain is alone on its rank.
    """

    def __init__(self, flat: FlatParameters, messages: CountedMessages, *, alone: bool) -> None:
        self._flat, self._messages = flat, messages
        self._objective: Objective = lambda with_gradient: 0.0
        self.samples, self.loss = 0, math.nan
        self.gradient = flat.gradient if alone else torch.zeros_like(flat.gradient)

    def take(self, batch: Batch) -> None:
        """The loss is over this batch from now on."""
        self._objective, self.samples = batch

    def loss_here(self, with_gradient: bool) -> float:
        """f_d at the present parameters; g_d is left in the flat gradient where wanted."""
        if self.samples == 0:
            if with_gradient:
                self._flat.gradient.zero_()
            return 0.0
        return self._messages.evaluate(self._objective, self.samples, with_gradient=with_gradient)

    def evaluate(self, *, with_gradient: bool) -> float:
        """f_d at the present parameters, and with the gradient ``gradient``."""
        loss = self.loss_here(with_gradient)
        if with_gradient and self.gradient is not self._flat.gradient:
            self.gradient.copy_(self._flat.gradient)
        return loss

    def restore_gradient(self) -> None:
        """Make ``gradient`` the flat one again, after other subdomains have evaluated theirs."""
        if self.gradient is not self._flat.gradient:
            self._flat.attach_gradients()
            self._flat.gradient.copy_(self.gradient)


class BatchSubdomain(Subdomain):
    """One of ``APTS``, all of whose iteration is on one batch.

    Attributes:
        weight: w_d, known from the first evaluation of a batch on.
        draws: whether the loss was seen to draw random numbers.
        trial: f_d where it was evaluated last.
        shift: (n,) float32, consistency term ``g - g_d`` at the iterate.
        solver, radius: of the local steps; NaN before the first.
    """

    def __init__(
        self,
        flat: FlatParameters,
        messages: CountedMessages,
        solver: LocalSolver,
        *,
        alone: bool,
    ) -> None:
        super().__init__(flat, messages, alone=alone)
        self.weight, self.draws, self.trial = 0.0, False, math.nan
        self.shift = torch.zeros_like(flat.vector)
        self.solver, self.radius = solver, math.nan

    @property
    def repeats(self) -> bool:
        """Whether the next batch is this one again."""
        return getattr(self._objective, "repeats", False)

    def evaluate(self, *, with_gradient: bool) -> float:
        """The same, kept as ``trial``; and a look whether the loss draws random numbers."""
        self.trial = super().evaluate(with_gradient=with_gradient)
        self.draws |= getattr(self._objective, "draws", False)
        return self.trial

    def state_dict(self) -> dict[str, Any]:
        """What a restart needs."""
        return {
            "radius": self.radius,
            "loss": self.loss,
            "weight": self.weight,
            "shift": self.shift.clone(),
            "model": self.solver.model.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any], *, resized: bool) -> None:
        """Restore what ``state_dict`` gave; of a resized run nothing is the subdomain's."""
        if resized:
            self.radius = math.nan
            return
        self.radius = float(state["radius"])
        self.loss, self.weight = float(state["loss"]), float(state["weight"])
        self.shift.copy_(state["shift"])
        self.solver.model.load_state_dict(state["model"])


class SampledSubdomain(Subdomain):
    """One of ``StochasticAPTS``, with minibatches.

    Attributes:
        loss, samples, gradient: of a minibatch at theta_k.
        local: its local steps, with its metric.
    """

    def __init__(
        self,
        flat: FlatParameters,
        messages: CountedMessages,
        local: ScaledSolver,
        *,
        alone: bool,
    ) -> None:
        super().__init__(flat, messages, alone=alone)
        self.local = local

    def state_dict(self) -> dict[str, Any]:
        """What a restart needs."""
        return {
            "loss": self.loss,
            "samples": self.samples,
            "gradient": self.gradient.clone(),
            "local": self.local.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any], *, resized: bool) -> None:
        """Restore what ``state_dict`` gave; a run that was resized keeps the metric as well."""
        self.loss, self.samples = float(state["loss"]), int(state["samples"])
        self.gradient.copy_(state["gradient"])
        self.local.load_state_dict(state["local"])
