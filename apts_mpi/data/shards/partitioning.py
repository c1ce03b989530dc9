"""Who gets which samples: train/test splits, shards, and the parts of ranks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from apts_mpi.data.sources.checks import generator
from apts_mpi.errors import InputError

Indices = NDArray[np.int64]


def part(sizes: Sequence[int], rank: int, ranks: int) -> tuple[int, int]:
    """First and one-past-last global sample of a rank's contiguous part.

    With as many ranks as shards a part is a shard; otherwise the parts differ by one sample at
    most, the larger ones first.
    """
    if not 0 <= rank < ranks:
        raise ValueError(f"rank {rank} is not in 0..{ranks - 1}")
    if ranks == len(sizes):
        return sum(sizes[:rank]), sum(sizes[: rank + 1])
    base, extra = divmod(sum(sizes), ranks)
    start = rank * base + min(rank, extra)
    return start, start + base + (rank < extra)


def apportion(total: int, weights: Sequence[float], *, least: int = 0) -> list[int]:
    """Split `total` into whole numbers in proportion to `weights` (largest remainder).

    Every part gets `least` at least, taken from the largest parts.
    """
    share = np.asarray(weights, dtype=np.float64)
    share = share / share.max()  # so that the sum cannot overflow
    exact = share / share.sum() * total
    counts = np.floor(exact).astype(np.int64)
    order = np.argsort(-(exact - counts), kind="stable")
    counts[order[: total - int(counts.sum())]] += 1
    while counts.min() < least:
        counts[counts.argmax()] -= 1
        counts[counts.argmin()] += 1
    return [int(count) for count in counts]


def split_indices(y: Indices, test_fraction: float, seed: int) -> tuple[Indices, Indices]:
    """Stratified train and test indices, ceil(n * test_fraction) of them for the test.

    No class goes to the test whole, so a few samples fewer may be taken from tiny classes.
    """
    if not 0 < test_fraction < 1:
        raise InputError(f"--test-fraction {test_fraction}: give a test fraction between 0 and 1")
    rng = generator(seed)
    counts = np.bincount(y)
    test_counts = apportion(math.ceil(len(y) * test_fraction), counts.tolist())
    is_test = np.zeros(len(y), dtype=bool)
    for label, (count, wanted) in enumerate(zip(counts, test_counts, strict=True)):
        if count:
            chosen = rng.permutation(np.flatnonzero(y == label))[: min(wanted, count - 1)]
            is_test[chosen] = True
    return np.flatnonzero(~is_test), np.flatnonzero(is_test)


def spread(y: Indices, rng: np.random.Generator) -> Indices:
    """A random order in which every class is spread evenly.

    The j-th of a class's n samples sits at (j + u) / n of the way, so that any contiguous part,
    a shard or a rank's, has nearly the class frequencies of the whole.
    """
    place = np.empty(len(y))
    for label in np.unique(y):
        members = rng.permutation(np.flatnonzero(y == label))
        place[members] = (np.arange(len(members)) + rng.random()) / len(members)
    return np.argsort(place, kind="stable")


def shard_indices(
    y: Indices,
    shards: int,
    seed: int,
    *,
    stratified: bool = False,
    sizes: Sequence[float] | None = None,
    least: int = 1,
) -> list[Indices]:
    """Shuffled indices of each shard: equal shards, or in proportion to `sizes`."""
    rng = generator(seed)
    order = spread(y, rng) if stratified else rng.permutation(len(y))
    counts = apportion(len(y), [1.0] * shards if sizes is None else sizes, least=least)
    return np.split(order, np.cumsum(counts)[:-1])


def skewed_indices(y: Indices, shards: int, seed: int, concentration: float) -> list[Indices]:
    """Label-skewed shards: each class is dealt out in Dirichlet(concentration) proportions.

    Small concentrations give shards of few classes. A shard left empty gets one sample of the
    largest shard.
    """
    rng = generator(seed)
    parts: list[list[Indices]] = [[] for _ in range(shards)]
    for label in np.unique(y):
        members = rng.permutation(np.flatnonzero(y == label))
        # Tiny concentrations underflow to no proportions at all: one shard takes the class.
        weights = np.nan_to_num(rng.dirichlet(np.full(shards, concentration)))
        if not weights.sum() > 0:
            weights[rng.integers(shards)] = 1.0
        counts = apportion(len(members), weights.tolist())
        for mine, piece in zip(parts, np.split(members, np.cumsum(counts)[:-1]), strict=True):
            mine.append(piece)
    whole = [rng.permutation(np.concatenate(pieces)) for pieces in parts]
    for k, piece in enumerate(whole):
        if not len(piece):
            donor = max(range(shards), key=lambda j: len(whole[j]))
            whole[k], whole[donor] = whole[donor][:1], whole[donor][1:]
    return whole
