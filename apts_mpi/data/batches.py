"""Minibatches of a rank's part: the same number on every rank, whatever the parts' sizes."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray


class Batches:
    """An endless sequence of minibatches, shuffled anew for every pass over the part.

    Args:
        samples: of this rank. largest: samples of the rank that has most; it sets how many
            minibatches a pass has, so that all ranks finish a pass together.
        batch: samples of a minibatch on that rank; None takes the whole part each time.
        overlap: percent of a minibatch that is added to it from the next one of the pass, as the
            method's authors did; the number of minibatches stays the same.
        seed, rank: a rank's order depends on these and on nothing else.
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
    ) -> None:
        self.samples = samples
        self.per_pass = 1 if batch is None else max(math.ceil(largest / batch), 1)
        self._overlap = overlap / 100.0
        self._seed, self._rank = seed, rank

    @property
    def whole(self) -> bool:
        """Whether every batch is the whole part, in its own order."""
        return self.per_pass == 1

    def one_pass(self, number: int) -> Iterator[NDArray[np.int64]]:
        """The minibatches of pass ``number``, as (b,) indices into the part; b may be 0."""
        if self.whole:
            yield np.arange(self.samples)
            return
        rng = np.random.default_rng((self._seed, self._rank, number))
        parts = np.array_split(rng.permutation(self.samples), self.per_pass)
        for part, following in zip(parts, parts[1:] + parts[:1], strict=True):
            extra = round(self._overlap * len(part))
            yield np.concatenate((part, following[:extra]))

    def __iter__(self) -> Iterator[NDArray[np.int64]]:
        number = 0
        while True:
            yield from self.one_pass(number)
            number += 1
