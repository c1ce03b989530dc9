"""The order of a pass that is streamed: random by groups of windows, known without being held.

A part is cut into windows of consecutive samples; the windows are shuffled, a few at a time make a
group, and a group's samples are shuffled together. Minibatches are pieces of that order. So one
takes what lies in few windows of the files, and a group has samples from all over the part.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

GROUP = 8  # windows

Indices = NDArray[np.int64]


def listed(own: Indices | range) -> Indices:
    """Consecutive samples, or any, as an array."""
    return np.arange(own.start, own.stop) if isinstance(own, range) else own


class Grouped(Sequence[Indices]):
    """The minibatches of a pass, each made as it is asked for; memory for two groups, and a number
    for each window.

    Args:
        own: the samples (n,), in ascending order; a range where they are all there.
        count: of minibatches, of equal size to within one.
        key: whole numbers; the order depends on these and nothing else.
        window: samples of a window, by their place in the part. overlap: share of a minibatch that
            is added to it from the next one, as `Batches` has it.
    """

    def __init__(
        self,
        own: Indices | range,
        count: int,
        key: tuple[int, ...],
        window: int,
        overlap: float = 0.0,
    ) -> None:
        self._own, self._count, self._key, self._overlap = own, count, key, overlap
        if isinstance(own, range):
            first = np.arange(0, len(own), window)
        else:  # some windows may have lost samples, or all of them
            first = np.flatnonzero(np.diff(own // window, prepend=-1))
        order = np.random.default_rng(key).permutation(len(first))
        last = np.append(first[1:], len(own))
        self._first, self._last = first[order], last[order]
        ends = np.concatenate(([0], np.cumsum(self._last - self._first)))
        self._edges = np.append(ends[:-1:GROUP], ends[-1])  # of the groups in the order
        self._held: dict[int, Indices] = {}

    def fresh(self) -> Grouped:
        """The same order, with nothing shared that changes: for another thread."""
        other = object.__new__(Grouped)
        other.__dict__.update(self.__dict__, _held={})
        return other

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, number: int) -> Indices: ...

    @overload
    def __getitem__(self, number: slice) -> list[Indices]: ...

    def __getitem__(self, number: int | slice) -> Indices | list[Indices]:
        if isinstance(number, slice):
            return [self[k] for k in range(*number.indices(self._count))]
        if not 0 <= number < self._count:
            raise IndexError(number)
        own = self._piece(number)
        extra = round(self._overlap * len(own))
        if not extra or self._count == 1:
            return own
        return np.concatenate((own, self._piece((number + 1) % self._count)[:extra]))

    def _piece(self, number: int) -> Indices:
        base, extra = divmod(len(self._own), self._count)
        start = number * base + min(number, extra)
        stop = start + base + (number < extra)
        group = int(np.searchsorted(self._edges, start, side="right")) - 1
        found = [np.empty(0, dtype=np.int64)]
        while start < stop:
            offset = int(self._edges[group])
            found.append(self._group(group)[start - offset : stop - offset])
            start += len(found[-1])
            group += 1
        return np.concatenate(found)

    def _group(self, number: int) -> Indices:
        if number not in self._held:
            if len(self._held) == 2:
                del self._held[max(self._held, key=lambda held: abs(held - number))]
            windows = slice(number * GROUP, (number + 1) * GROUP)
            edges = zip(self._first[windows], self._last[windows], strict=True)
            samples = np.concatenate([listed(self._own[lo:hi]) for lo, hi in edges])
            rng = np.random.default_rng((*self._key, *(0,) * (4 - len(self._key)), number + 1))
            self._held[number] = rng.permutation(samples)
        return self._held[number]
