"""The sums over ranks that an iteration needs, and the work that rides in them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from apts_mpi.comm.communicator import Comm
from apts_mpi.comm.compression import message_for
from apts_mpi.method.flat import FlatParameters
from apts_mpi.trust_region.objective import Objective

FORWARD_WORK = 1.0 / 3.0  # a forward evaluation against one with a gradient
_SCALARS = 6  # most scalars that a message carries


def require_samples(count: float) -> float:
    """Of all batches together, as joined.

    Raises:
        ValueError: on every rank, where there are none.
    """
    if not count > 0:
        raise ValueError("the ranks' batches have no samples")
    return count


class CountedMessages:
    """The sums over ranks that an iteration needs, and with each of them the work since the last.

    Args:
        flat: the rank's parameters. comm: the ranks.
        compress: how the vector is sent, one of COMPRESSIONS, where ``exact`` does not forbid it.

    Attributes:
        vector: (n,) float32, of the vector message.
        work: per-sample gradient evaluations, summed over ranks, since it was last set to zero; a
            forward one counts a third. It rides in the messages that are sent anyway.
        error: of this rank, which the next message makes known to all: it raises on every rank.
    """

    def __init__(self, flat: FlatParameters, comm: Comm, compress: str = "none") -> None:
        self._comm = comm
        self._message = message_for(compress, flat.n, _SCALARS, flat.vector.device, comm)
        self.vector = self._message.vector
        self.work = 0.0
        self._unsent = 0.0  # this rank's, not in any message yet
        self.error: Exception | None = None

    def count(self, evaluations: float) -> None:
        """Add evaluations of this rank, in those of a sample's gradient."""
        self._unsent += evaluations

    def evaluate(self, objective: Objective, samples: int, *, with_gradient: bool) -> float:
        """This rank's loss over so many samples, counted."""
        self.count(samples * (1.0 if with_gradient else FORWARD_WORK))
        return float(objective(with_gradient))

    def add(self, k: int, part: Tensor) -> None:
        """Add subdomain k's part (n,) to ``vector``, anew from the first one on."""
        (self.vector.copy_ if k == 0 else self.vector.add_)(part)

    def join(self, *rows: Sequence[float], exact: bool = False) -> list[float]:
        """Sum ``vector``, and each subdomain's row of scalars, over the ranks.

        Args:
            exact: in float32 in any case: of what is no correction, a gradient.

        Returns:
            The scalars' sums, exact and the same however subdomains are spread over ranks.
        """
        rows = self._with_work(rows)
        return self._without_work(self._comm.sum_message(self._message, *rows, exact=exact))

    def sum(self, *rows: Sequence[float]) -> list[float]:
        """Sum each subdomain's row of scalars over the ranks, as ``join`` does."""
        return self._without_work(self._comm.sum_scalars(*self._with_work(rows)))

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
        """The rows, behind the first one the work not sent yet: in thirds, which sum exactly."""
        thirds = float(round(3.0 * self._unsent)) if self.error is None else math.nan
        return tuple((*row, 0.0 if i else thirds) for i, row in enumerate(rows))

    def _without_work(self, sums: list[float]) -> list[float]:
        self._unsent = 0.0
        if math.isnan(sums[-1]):  # some rank has failed
            error, self.error = self.error, None
            self._comm.agree(error)
        self.work += sums[-1] / 3.0
        return sums[:-1]
