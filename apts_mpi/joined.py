"""The loss over all ranks' samples: local evaluations, their joining, and the work they cost."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from apts_mpi.comm import Comm
from apts_mpi.compression import message_for
from apts_mpi.flat import FlatParameters
from apts_mpi.trust_region.local import FirstOrder, Objective

FORWARD_WORK = 1.0 / 3.0  # a forward evaluation against one with a gradient
_SCALARS = 6  # most scalars a message carries


class CountedMessages:
    """The sums over ranks that an iteration needs, and with each of them the work since the last.

    Args:
        flat: the rank's parameters. comm: the ranks.
        compress: how the vector is sent, one of COMPRESSIONS, where ``exact`` does not forbid it.

    Attributes:
        vector: (n,) float32, of the vector message.
        work: per-sample gradient evaluations, summed over ranks, since it was last set to zero; a
            forward one counts a third. It rides in the messages that are sent anyway.
    """

    def __init__(self, flat: FlatParameters, comm: Comm, compress: str = "none") -> None:
        self._comm = comm
        self._message = message_for(compress, flat.n, _SCALARS, flat.vector.device, comm)
        self.vector = self._message.vector
        self.work = 0.0
        self._untold = 0.0  # this rank's, not in any message yet

    def count(self, evaluations: float) -> None:
        """Add evaluations of this rank, in those of a sample's gradient."""
        self._untold += evaluations

    def evaluate(self, objective: Objective, samples: int, *, with_gradient: bool) -> float:
        """This rank's loss over so many samples, counted."""
        self.count(samples * (1.0 if with_gradient else FORWARD_WORK))
        return objective(with_gradient)

    def join(self, *rows: Sequence[float], exact: bool = False) -> list[float]:
        """Sum ``vector``, and each subdomain's row of scalars, over the ranks.

        Args:
            exact: in float32 in any case: of what is no correction, a gradient.

        Returns:
            The scalars' sums, exact and the same however subdomains are spread over ranks.
        """
        rows = self._with_work(rows)
        return self._told(self._comm.sum_message(self._message, *rows, exact=exact))

    def sum(self, *rows: Sequence[float]) -> list[float]:
        """Sum each subdomain's row of scalars over the ranks, as ``join`` does."""
        return self._told(self._comm.sum_scalars(*self._with_work(rows)))

    def keep(self) -> None:
        """The correction joined last was accepted: what compressing it lost is sent later."""
        self._message.keep()

    def drop(self) -> None:
        """It was not: what is lost of earlier ones stays as it was."""
        self._message.drop()

    def state_dict(self) -> dict[str, Tensor]:
        """What compressing has lost so far, of this rank alone."""
        return self._message.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore it."""
        self._message.load_state_dict(state)

    def _with_work(self, rows: Sequence[Sequence[float]]) -> tuple[Sequence[float], ...]:
        """The rows, behind the first one the work to be told: in thirds, which sum exactly."""
        thirds = float(round(3.0 * self._untold))
        return tuple((*row, 0.0 if i else thirds) for i, row in enumerate(rows))

    def _told(self, sums: list[float]) -> list[float]:
        self._untold = 0.0
        self.work += sums[-1] / 3.0
        return sums[:-1]


class JoinedLoss:
    """f = sum w_d f_d at the present parameters, w_d = b_d / sum b of the ranks' batches.

    Args:
        flat: the rank's parameters. comm: the ranks.
        joins_gradients: whether g is wanted at all, and not each rank's own gradient alone.
        compress: how corrections are sent, one of COMPRESSIONS.

    Attributes:
        g: (n,) float32, gradient of f at the iterate; g_d where gradients are not joined.
        shift: (n,) float32, consistency term ``g - g_d`` there.
        messages: by which all is joined.
        vector: (n,) float32, what the last vector message joined.
        weight: w_d of this rank, known from the first evaluation of a batch on.
    """

    def __init__(
        self,
        flat: FlatParameters,
        comm: Comm,
        *,
        joins_gradients: bool,
        compress: str = "none",
    ) -> None:
        self.flat = flat
        self.messages = CountedMessages(flat, comm, compress)
        self.vector = self.messages.vector
        self.joins_gradients = joins_gradients
        self.g = torch.zeros_like(flat.vector)
        self.shift = torch.zeros_like(flat.vector)
        self.weight = 0.0
        self.samples = 0

    @property
    def work(self) -> float:
        """Per-sample gradient evaluations since ``begin``, summed over ranks."""
        return self.messages.work

    def begin(self, objective: Objective, samples: int) -> None:
        """A new iteration: this rank's loss over its batch of so many samples, which may be 0."""
        self._objective, self.samples = objective, samples
        self.messages.work = 0.0

    def own(self, with_gradient: bool) -> float:
        """f_d alone, without a message; g_d is left in the flat gradient where wanted."""
        if self.samples == 0:
            if with_gradient:
                self.flat.gradient.zero_()
            return 0.0
        return self.messages.evaluate(self._objective, self.samples, with_gradient=with_gradient)

    def evaluate(self, *, with_gradient: bool) -> tuple[float, float]:
        """f and f_d at the present parameters, one message; f is not finite where any f_d is not.

        With the gradient, g_d is left in the flat gradient and the joined one in ``vector``.
        """
        own = self.own(with_gradient)
        scalars = (self.samples * own, float(self.samples))
        if with_gradient and self.joins_gradients:
            torch.mul(self.flat.gradient, self.samples, out=self.vector)
            total, samples = self.messages.join(scalars, exact=True)
            self.vector.div_(max(samples, 1.0))
        else:
            total, samples = self.messages.sum(scalars)
        if not samples > 0:
            raise ValueError(f"the ranks' batches have {samples:g} samples together")
        self.weight = self.samples / samples
        return total / samples, own

    def keep_gradient(self) -> None:
        """The gradient evaluated last belongs to the iterate: remember it, and its shift."""
        if self.joins_gradients:
            self.g.copy_(self.vector)
            torch.sub(self.g, self.flat.gradient, out=self.shift)
        else:
            self.g.copy_(self.flat.gradient)
            self.shift.zero_()

    def gradient_is_finite(self) -> bool:
        """Of the one evaluated last; the same on every rank, as none may decide for all."""
        return not self.joins_gradients or bool(self.vector.isfinite().all())

    def join(self, correction: Tensor, factor: float, *rows: Sequence[float]) -> list[float]:
        """Sum ``factor * correction`` over ranks into ``vector``; the scalars' sums are returned.

        One message; correction (n,), the factor this rank's own; a row of scalars a subdomain.
        """
        torch.mul(correction, factor, out=self.vector)
        return self.messages.join(*rows)


def search_radius(joined: JoinedLoss, start: Tensor, loss: float, norm: str) -> float:
    """The first radius: doubled along steepest descent while the loss keeps falling.

    Costs forward evaluations and scalar messages only, and leaves the parameters where they are.

    Args:
        joined: its ``g`` is the gradient at start. start: (n,) the iterate. loss: f there.
        norm: of the radius, "2" or "inf".
    """
    theta = joined.flat.vector
    first = 1e-4 if norm == "inf" else 1e-4 * math.sqrt(joined.flat.n)
    radius, best, p = first, loss, torch.zeros_like(start)
    FirstOrder(norm).step(joined.g, torch.zeros_like(p), radius, radius, p)
    for _ in range(20):
        torch.add(start, p, out=theta)
        trial, _ = joined.evaluate(with_gradient=False)
        if not trial < best:
            break
        best, radius = trial, radius * 2.0
        p.mul_(2.0)
    theta.copy_(start)
    return radius / 2.0
