"""The cost model's formulas: Allreduce by its algorithms, stragglers, an outer iteration.

Pure functions of numbers; seconds and bytes throughout. Allreduce as in Thakur, Rabenseifner,
Gropp, *Optimization of Collective Communication Operations in MPICH*, Int. J. High Perform. Comput.
Appl. 19 (2005): a message of n bytes takes ``alpha + n beta``, adding n bytes to others ``n
gamma``, and a rank sends and receives at the same time, with one partner.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from benchmarks.project.spread import Spread

SCALARS_BYTES = 320  # of a scalar message: 8 scalars of 10 digits (apts_mpi.comm.message), float32
FORWARD = 1.0 / 3.0  # a forward evaluation against one with its gradient, as the program counts
PUBLISHED = ("apts-sr1", "apts-first-order")  # their work depends on the data


# ---- messages ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Link:
    """What connects any two ranks.

    Attributes:
        latency: alpha, seconds per message. per_byte: beta, seconds per byte.
        reduction: gamma, seconds to add a byte; 0 where it is part of ``per_byte``.
        copy: bytes per second from a device to its host before a message, and back after.
    """

    latency: float
    per_byte: float
    reduction: float = 0.0
    copy: float = math.inf

    def seconds(self, nbytes: float, ranks: int) -> float:
        """Of an Allreduce, by the cheapest algorithm, as a library that is tuned would choose.

        Raises:
            ValueError: fewer ranks than one, or bytes than none.
        """
        if ranks < 1 or nbytes < 0:
            raise ValueError(f"an Allreduce of {nbytes} bytes over {ranks} ranks")
        if ranks == 1:
            return 0.0
        return min(own(nbytes, ranks, self) for own in ALGORITHMS.values()) + 2 * nbytes / self.copy

    def barrier(self, ranks: int) -> float:
        """Of a barrier by dissemination (Hensgen, Finkel, Manber 1988): a latency per round."""
        return math.ceil(math.log2(ranks)) * self.latency


def ring(nbytes: float, ranks: int, link: Link) -> float:
    """Reduce-scatter and allgather around a ring: 2 (p - 1) messages of n / p bytes."""
    share, rounds = nbytes / ranks, ranks - 1
    return 2 * rounds * (link.latency + share * link.per_byte) + rounds * share * link.reduction


def doubling(nbytes: float, ranks: int, link: Link) -> float:
    """Recursive doubling: the whole vector in each of lg p rounds.

    Where p is no power of two, every rank too many adds its vector to a neighbour's first, and
    gets the sum last.
    """
    rounds, extra = _rounds(ranks)
    message = link.latency + nbytes * link.per_byte
    return (rounds + 2 * extra) * message + (rounds + extra) * nbytes * link.reduction


def rabenseifner(nbytes: float, ranks: int, link: Link) -> float:
    """Rabenseifner's: reduce-scatter by recursive halving, allgather by recursive doubling.

    Where p is no power of two, every rank too many and a neighbour first exchange halves, add them,
    and one of both gets the other's; the one left out gets the sum last.
    """
    rounds, extra = _rounds(ranks)
    moved = nbytes * (1.0 - 2.0**-rounds)  # n (p - 1) / p of the power of two
    core = 2 * (rounds * link.latency + moved * link.per_byte) + moved * link.reduction
    halves = 2 * (link.latency + nbytes / 2 * link.per_byte) + nbytes / 2 * link.reduction
    return core + extra * (halves + link.latency + nbytes * link.per_byte)


ALGORITHMS = {"ring": ring, "recursive doubling": doubling, "Rabenseifner": rabenseifner}


def _rounds(ranks: int) -> tuple[int, int]:
    """Rounds among the largest power of two of ranks, and 1 where some are too many."""
    rounds = ranks.bit_length() - 1
    return rounds, int(ranks != 1 << rounds)


# ---- an outer iteration ------------------------------------------------------------------------


@dataclass(frozen=True)
class Costs:
    """What a rank takes by itself, for one method and network.

    Attributes:
        gradient: seconds per sample of a loss and gradient.
        evaluation: seconds per minibatch besides.
        step: seconds of algebra per local step.
        join: of algebra per outer iteration besides.
        sample: seconds to draw a sample. other: seconds per outer iteration besides.
        spread: of the time by itself, relative.
    """

    gradient: float
    evaluation: float
    step: float
    join: float
    sample: float
    other: float
    spread: Spread


@dataclass(frozen=True)
class Work:
    """What a rank does in an outer iteration.

    Attributes:
        batch: samples of a minibatch. evaluations: minibatches' losses with gradient, one without
            counted a third. steps: local ones. draws: minibatches drawn.
        vectors, vector_bytes: vector messages and bytes of each. scalars: scalar messages.
    """

    batch: float
    evaluations: float
    steps: float
    draws: float
    vectors: float
    vector_bytes: float
    scalars: float


def work_of(
    method: str,
    parameters: int,
    batch: float,
    steps: int | None,
    *,
    evaluations: float | None = None,
    vectors: float | None = None,
) -> Work:
    """The work of an outer iteration (apts_mpi/stochastic.py, baselines.py, apts.py).

    The scaled solver's first local gradient is that of the last control batch, so that K steps and
    the control batch are K gradients and one forward evaluation.

    Args:
        method: as in the rows of ``strong``. steps: local ones. evaluations, vectors: minibatch
            evaluations and vector messages per iteration, needed where they depend on the data.

    Raises:
        ValueError: the method is not known, or such a number is missing.
    """
    if method == "apts" and steps:
        return Work(batch, steps + FORWARD, steps, steps, 1, 4 * (parameters + 60), 1)
    if method in ("adam", "sgd"):
        return Work(batch, 1, 1, 1, 1, 4 * (parameters + 20), 0)
    if method in ("local-sgd", "diloco") and steps:
        return Work(batch, steps, steps, steps, 1, 4 * (parameters + 20), 0)
    if method in PUBLISHED and evaluations and vectors:
        return Work(batch, evaluations, evaluations, 1, vectors, 4 * (parameters + 60), 1)
    raise ValueError(f"method {method!r} is not known, or its local steps are missing")


@dataclass(frozen=True)
class Parts:
    """Seconds of an outer iteration by what they are spent on."""

    compute: float
    algebra: float
    data: float
    other: float
    vector: float
    scalar: float
    imbalance: float

    @property
    def busy(self) -> float:
        """What a rank takes by itself."""
        return self.compute + self.algebra + self.data + self.other

    @property
    def total(self) -> float:
        """All of it."""
        return self.busy + self.vector + self.scalar + self.imbalance


def iteration(work: Work, costs: Costs, link: Link, ranks: int, *, slowdown: float = 1.0) -> Parts:
    """Seconds of an outer iteration on so many ranks.

    Every message is preceded by a barrier, as in apts_mpi.comm.communicator. Stragglers are waited
    for once an iteration: the expected maximum of the ranks' own time, less its mean.

    Args:
        slowdown: of what a rank does by itself, where ranks share a machine.
    """
    compute = slowdown * work.evaluations * (costs.evaluation + work.batch * costs.gradient)
    algebra = slowdown * (costs.join + work.steps * costs.step)
    data = slowdown * work.draws * work.batch * costs.sample
    other = slowdown * costs.other
    vector = scalar = imbalance = 0.0
    if ranks > 1:
        barrier = link.barrier(ranks)
        vector = work.vectors * (barrier + link.seconds(work.vector_bytes, ranks))
        scalar = work.scalars * (barrier + link.seconds(SCALARS_BYTES, ranks))
        excess = costs.spread.over(work.evaluations).excess(ranks)
        imbalance = excess * (compute + algebra + data + other)
    return Parts(compute, algebra, data, other, vector, scalar, imbalance)
