"""Minibatches of a rank's part: the same number on every rank, whatever the parts' sizes."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from apts_mpi.data.minibatches.grouped import Grouped, Indices, listed
from apts_mpi.data.shards.partitioning import part


@dataclass(frozen=True)
class Leg:
    """A stretch of a pass on one number of ranks: how many batches it was cut into, and drew."""

    ranks: int
    batches: int
    taken: int


@dataclass(frozen=True)
class Place:
    """Where a run is in its data: the pass, and its legs so far, one unless it was resumed on
    another number of ranks within the pass. The same on every rank."""

    number: int = 0
    legs: tuple[Leg, ...] = ()

    def unseen(
        self, sizes: Sequence[int], seed: int, window: int | None = None
    ) -> NDArray[np.bool_]:
        """Which samples of the training set, in their global order, the pass has not drawn yet.

        Args:
            sizes: samples of each shard. seed: of the run. window: as `Batches` had it.

        Raises:
            ValueError: no run can have gone such a way.
        """
        left = np.ones(sum(sizes), dtype=bool)
        for k, leg in enumerate(self.legs):
            if not 1 <= leg.ranks <= len(left):
                raise ValueError(f"a pass on {leg.ranks} ranks over {len(left)} samples")
            edges = [part(sizes, rank, leg.ranks) for rank in range(leg.ranks)]
            largest = max(int(left[start:stop].sum()) for start, stop in edges)
            if not 0 <= leg.taken <= leg.batches <= largest:
                raise ValueError(f"{leg.taken} of {leg.batches} batches of {largest} samples")
            for rank, (start, stop) in enumerate(edges if leg.taken else ()):
                own = np.flatnonzero(left[start:stop])
                pieces = _pieces(own, leg.batches, seed, rank, self.number, k, window)
                for taken in range(leg.taken):
                    left[start + pieces[taken]] = False
        return left


class Batches:
    """An endless iterator over minibatches, shuffled anew for every pass over the part.

    Args:
        samples: of this rank. largest: samples of the rank that has most; it sets how many
            minibatches a pass has, so that all ranks finish a pass together.
        batch: samples of a minibatch on that rank; None takes the whole part each time.
        overlap: percent of a minibatch that is added to it from the next one of the pass, as the
            method's authors did; the number of minibatches stays the same.
        seed, rank: a rank's order depends on these and on nothing else.
        window: samples of a window of the part, where it is streamed: the order is then one by
            groups of windows (`Grouped`). None shuffles the whole part.

    Attributes:
        repeats: whether the next batch is the one drawn last, the whole part; the same on every
            rank.
    """

    def __init__(
        self,
        samples: int,
        *,
        largest: int,
        batch: int | None,
        overlap: float = 0.0,
        seed: int = 0,
        rank: int = 0,
        window: int | None = None,
    ) -> None:
        self.samples = samples
        self.per_pass = 1 if batch is None else max(math.ceil(largest / batch), 1)
        self._batch, self._overlap = batch, overlap / 100.0
        self._seed, self._rank, self._window = seed, rank, window
        self._number = self._taken = 0
        self._earlier: tuple[Leg, ...] = ()
        self._rest: Sequence[Indices] | None = None  # of the pass that was begun
        self.repeats = False

    @property
    def whole(self) -> bool:
        """Whether every batch is the whole part, in its own order."""
        return self.per_pass == 1

    @property
    def widest(self) -> int:
        """The most samples of a minibatch."""
        if self.whole or self._batch is None:
            return self.samples
        own = min(self._batch, self.samples)
        return own + math.ceil(self._overlap * own)

    @property
    def smallest(self) -> int:
        """The fewest samples of a minibatch that has any; 0 of a part without."""
        base, more = divmod(self.samples, self.per_pass)
        own = base or min(more, 1)
        return own if self.whole else own + round(self._overlap * own)

    def one_pass(self, number: int) -> Sequence[Indices]:
        """The minibatches of pass ``number``, as (b,) indices into the part; b may be 0."""
        return self._cut(range(self.samples), self.per_pass, number, 0)

    def ahead(self) -> Iterator[Indices]:
        """What this will give from here on, drawn by itself; also for another thread."""
        other = copy.copy(self)
        if isinstance(self._rest, Grouped):
            other._rest = self._rest.fresh()
        return other

    def _cut(self, own: Indices | range, count: int, number: int, leg: int) -> Sequence[Indices]:
        parts = _pieces(
            own, count, self._seed, self._rank, number, leg, self._window, self._overlap
        )
        if isinstance(parts, Grouped) or self._overlap == 0.0 or len(parts) == 1:
            return parts
        return [
            np.concatenate((part, following[: round(self._overlap * len(part))]))
            for part, following in zip(parts, [*parts[1:], parts[0]], strict=True)
        ]

    def __iter__(self) -> Iterator[Indices]:
        return self

    def __next__(self) -> Indices:
        if self._rest is None:
            self._rest = self.one_pass(self._number)
        batch = self._rest[self._taken]
        self._taken += 1
        self.repeats = self.whole and not self._earlier
        if self._taken == len(self._rest):
            self._number, self._taken, self._earlier, self._rest = self._number + 1, 0, (), None
        return batch

    @property
    def drawn(self) -> tuple[int, int, int]:
        """Pass, leg and number in it of the minibatch that comes next."""
        return self._number, len(self._earlier), self._taken

    @property
    def passes(self) -> float:
        """Passes over the data so far, the one that was begun by its part."""
        left = 1.0
        if self._rest is not None:
            here = Leg(1, len(self._rest), self._taken)
            left = math.prod(1.0 - leg.taken / leg.batches for leg in (*self._earlier, here))
        return self._number + 1.0 - left

    # ---- the place in the data -------------------------------------------------------------

    def place(self, ranks: int) -> Place:
        """Where the sequence is, of so many ranks that draw in step."""
        if self._rest is None:
            return Place(self._number)
        here = Leg(ranks, len(self._rest), self._taken)
        return Place(self._number, (*self._earlier, here))

    def go_to(self, place: Place, sizes: Sequence[int], ranks: int) -> None:
        """Resume where a run was, on so many ranks, as many as it had or others.

        On as many ranks the sequence is the run's own. On others the rank continues with what the
        pass has not drawn of its part, so that no sample of the pass is lost or drawn twice.

        Args:
            place: of the run. sizes: samples of each shard. ranks: of this run.

        Raises:
            ValueError: the place cannot be one of a run on these data with these settings.
        """
        self._number, self._taken, self._earlier, self._rest = place.number, 0, (), None
        if not place.legs:
            return
        *earlier, last = place.legs
        same = last.ranks == ranks
        before = Place(place.number, tuple(earlier) if same else place.legs)
        unseen = before.unseen(sizes, self._seed, self._window)
        edges = [part(sizes, rank, ranks) for rank in range(ranks)]
        largest = max(int(unseen[start:stop].sum()) for start, stop in edges)
        count = 1 if self._batch is None else max(math.ceil(largest / self._batch), 1)
        taken = last.taken if same else 0
        if not largest or (same and count != last.batches) or not taken < count:
            raise ValueError("the place in the data is not one of these settings")
        start, stop = edges[self._rank]
        own, k = np.flatnonzero(unseen[start:stop]), len(before.legs)
        self._rest, self._taken = self._cut(own, count, place.number, k), taken
        self._earlier = before.legs


def _pieces(
    own: Indices | range,
    count: int,
    seed: int,
    rank: int,
    number: int,
    leg: int,
    window: int | None = None,
    overlap: float = 0.0,
) -> Sequence[Indices]:
    """So many minibatches of a rank's samples, in the order of that pass and leg.

    The overlap is only for those that are made as they are asked for.
    """
    if count == 1:
        return [listed(own)]
    key = (seed, rank, number, leg) if leg else (seed, rank, number)
    if window is not None:
        return Grouped(own, count, key, window, overlap)
    order: Indices = np.random.default_rng(key).permutation(listed(own))
    return np.array_split(order, count)
