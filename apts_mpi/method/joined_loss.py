"""The loss over all ranks' samples: the subdomains' evaluations, joined."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from apts_mpi.method.messages import CountedMessages, require_samples
from apts_mpi.method.subdomain import BatchSubdomain


class JoinedLoss:
    """f = sum w_i f_i at the present parameters, w_i = b_i / sum b of the subdomains' batches.

    The joined vector of the messages has two uses, one after the other: it is the gradient where
    the loss was evaluated last, then the sum of the corrections.

    Args:
        messages: by which all is joined. subdomains: this rank's subdomains.
        joins_gradients: whether g is wanted at all, and not each subdomain's own gradient alone.

    Attributes:
        g: (n,) float32, gradient of f at the iterate; zero where gradients are not joined.
        gradient: (n,) float32, of f where it was evaluated last, until corrections are added.
        correction: (n,) float32, the sum of the corrections, once they are joined, until the next
            evaluation. The same memory.
        draws: whether any subdomain's loss was seen to draw random numbers.
    """

    def __init__(
        self,
        messages: CountedMessages,
        subdomains: Sequence[BatchSubdomain],
        *,
        joins_gradients: bool,
    ) -> None:
        self._messages, self._subdomains = messages, subdomains
        self.gradient = self.correction = messages.vector
        self.joins_gradients = joins_gradients
        self.g = torch.zeros_like(messages.vector)
        self.draws = False

    @property
    def repeats(self) -> bool:
        """Whether the next batches are these; without effect where they draw random numbers."""
        return not self.draws and all(subdomain.repeats for subdomain in self._subdomains)

    def evaluate(self, *, with_gradient: bool) -> float:
        """f at the present parameters, one message; it is not finite where any f_i is not.

        With the gradient, g_i is left in each subdomain and the joined one in ``gradient``.
        """
        joins = with_gradient and self.joins_gradients
        for k, subdomain in enumerate(self._subdomains):
            subdomain.evaluate(with_gradient=with_gradient)
            if joins and k == 0:
                torch.mul(subdomain.gradient, subdomain.samples, out=self.gradient)
            elif joins:
                self.gradient.add_(subdomain.gradient * subdomain.samples)
        rows = [
            (subdomain.samples * subdomain.trial, float(subdomain.samples), float(subdomain.draws))
            for subdomain in self._subdomains
        ]
        if joins:
            total, samples, draws = self._messages.join(*rows, exact=True)
            self.gradient.div_(max(samples, 1.0))
        else:
            total, samples, draws = self._messages.sum(*rows)
        self.draws = draws > 0
        require_samples(samples)
        for subdomain in self._subdomains:
            subdomain.weight = subdomain.samples / samples
        return total / samples

    def adopt(self, *, with_gradient: bool) -> None:
        """What was evaluated last belongs to the iterate: losses, and gradients with the shifts."""
        if with_gradient:  # of 0, where they are not joined, g less the shift is exactly g_i
            self.g.copy_(self.gradient) if self.joins_gradients else self.g.zero_()
        for subdomain in self._subdomains:
            subdomain.loss = subdomain.trial
            if with_gradient:
                torch.sub(self.g, subdomain.gradient, out=subdomain.shift)

    def gradient_is_finite(self) -> bool:
        """Of the one evaluated last; the same on every rank, as none may decide for all."""
        return not self.joins_gradients or bool(self.gradient.isfinite().all())
