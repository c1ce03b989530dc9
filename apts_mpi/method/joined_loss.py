"""The loss over all ranks' samples: local evaluations, their joining, and the work they cost."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from apts_mpi.comm.communicator import Comm
from apts_mpi.method.flat import FlatParameters
from apts_mpi.method.messages import CountedMessages
from apts_mpi.trust_region.objective import Objective


class Part:
    """One subdomain: its loss f_d over its batch, and what is known of it.

    Attributes:
        samples: b_d of the batch, which may be 0. weight: w_d, known from the first evaluation of a
            batch on.
        draws: whether the loss was seen to draw random numbers.
        loss: f_d at the iterate. trial: f_d where it was evaluated last.
        gradient: (n,) float32, g_d where it was evaluated last; the flat one itself where the
            subdomain is alone on its rank.
        shift: (n,) float32, consistency term ``g - g_d`` at the iterate.
    """

    def __init__(self, flat: FlatParameters, messages: CountedMessages, *, alone: bool) -> None:
        self._flat, self._messages = flat, messages
        self._objective: Objective = lambda with_gradient: 0.0
        self.samples, self.weight = 0, 0.0
        self.draws = False
        self.loss = self.trial = math.nan
        self.gradient = flat.gradient if alone else torch.zeros_like(flat.gradient)
        self.shift = torch.zeros_like(flat.vector)

    def begin(self, objective: Objective, samples: int) -> None:
        """A new iteration: the loss over a batch of so many samples."""
        self._objective, self.samples = objective, samples

    def own(self, with_gradient: bool) -> float:
        """f_d alone, without a message; g_d is left in the flat gradient where wanted."""
        if self.samples == 0:
            if with_gradient:
                self._flat.gradient.zero_()
            return 0.0
        return self._messages.evaluate(self._objective, self.samples, with_gradient=with_gradient)

    def evaluate(self, *, with_gradient: bool) -> None:
        """``trial``, and with the gradient ``gradient``, at the present parameters."""
        self.trial = self.own(with_gradient)
        self.draws |= getattr(self._objective, "draws", False)
        if with_gradient and self.gradient is not self._flat.gradient:
            self.gradient.copy_(self._flat.gradient)


class JoinedLoss:
    """f = sum w_d f_d at the present parameters, w_d = b_d / sum b of the subdomains' batches.

    Args:
        flat: the rank's parameters. comm: the ranks. subdomains: of this rank.
        joins_gradients: whether g is wanted at all, and not each subdomain's own gradient alone.
        compress: how corrections are sent, one of COMPRESSIONS.

    Attributes:
        parts: this rank's subdomains. messages: by which all is joined.
        g: (n,) float32, gradient of f at the iterate; zero where gradients are not joined.
        vector: (n,) float32, what the last vector message joined.
        draws: whether any subdomain's loss was seen to draw random numbers.
    """

    def __init__(
        self,
        flat: FlatParameters,
        comm: Comm,
        *,
        joins_gradients: bool,
        subdomains: int = 1,
        compress: str = "none",
    ) -> None:
        self.flat = flat
        self.messages = CountedMessages(flat, comm, compress)
        self.vector = self.messages.vector
        self.joins_gradients = joins_gradients
        alone = subdomains == 1
        self.parts = [Part(flat, self.messages, alone=alone) for _ in range(subdomains)]
        self.g = torch.zeros_like(flat.vector)
        self.draws = False

    @property
    def work(self) -> float:
        """Per-sample gradient evaluations since ``begin``, summed over ranks."""
        return self.messages.work

    def begin(self, batches: Sequence[tuple[Objective, int]]) -> None:
        """A new iteration: each subdomain's loss over its batch of so many samples."""
        if len(batches) != len(self.parts):
            raise ValueError(f"batches of {len(batches)} subdomains, not {len(self.parts)}")
        for part, (objective, samples) in zip(self.parts, batches, strict=True):
            part.begin(objective, samples)
        self.messages.work = 0.0

    def evaluate(self, *, with_gradient: bool) -> float:
        """f at the present parameters, one message; it is not finite where any f_d is not.

        With the gradient, g_d is left in each part and the joined one in ``vector``.
        """
        joins = with_gradient and self.joins_gradients
        for k, part in enumerate(self.parts):
            part.evaluate(with_gradient=with_gradient)
            if joins and k == 0:
                torch.mul(part.gradient, part.samples, out=self.vector)
            elif joins:
                self.vector.add_(part.gradient * part.samples)
        rows = [
            (part.samples * part.trial, float(part.samples), float(part.draws))
            for part in self.parts
        ]
        if joins:
            total, samples, draws = self.messages.join(*rows, exact=True)
            self.vector.div_(max(samples, 1.0))
        else:
            total, samples, draws = self.messages.sum(*rows)
        self.draws = draws > 0
        if not samples > 0:
            raise ValueError(f"the ranks' batches have {samples:g} samples together")
        for part in self.parts:
            part.weight = part.samples / samples
        return total / samples

    def keep_loss(self) -> None:
        """The losses evaluated last belong to the iterate."""
        for part in self.parts:
            part.loss = part.trial

    def keep_gradient(self) -> None:
        """The gradients evaluated last belong to the iterate: remember them, and the shifts."""
        if self.joins_gradients:
            self.g.copy_(self.vector)
            for part in self.parts:
                torch.sub(self.g, part.gradient, out=part.shift)
            return
        for part in self.parts:  # so that g less the shift is g_d, without rounding
            torch.neg(part.gradient, out=part.shift)
        self.g.zero_()

    def gradient_is_finite(self) -> bool:
        """Of the one evaluated last; the same on every rank, as none may decide for all."""
        return not self.joins_gradients or bool(self.vector.isfinite().all())

    def add(self, k: int, correction: Tensor, factor: float) -> None:
        """Add ``factor`` times part k's correction (n,), which is overwritten, to ``vector``."""
        correction.mul_(factor)
        (self.vector.copy_ if k == 0 else self.vector.add_)(correction)

    def join(self, *rows: Sequence[float]) -> list[float]:
        """Sum ``vector`` and each part's scalars over ranks; the scalars' sums are returned."""
        return self.messages.join(*rows)
