"""Who gets which samples: shards, and the parts of ranks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apts_mpi.data.shards.info import DatasetInfo, windowed
from apts_mpi.data.sources.splits import SPLITS, apportion, generator
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


def samples_of(directory: Path, info: DatasetInfo, context: int | None) -> DatasetInfo:
    """What is stored as the samples that training counts: of a text, its windows.

    Raises:
        ValueError: a text without a context, or a context with anything else.
        InputError: the context is longer than the text of a shard.
    """
    if (context is None) == (info.task == "language"):
        raise ValueError(f"a context of {context} for the task {info.task}")
    return info if context is None else windowed(info, context, origin=str(directory))


def located(
    directory: Path, info: DatasetInfo, split: str, rank: int, ranks: int
) -> tuple[int, int, list[tuple[int, int, int]]]:
    """Where a rank's part lies: its first and one-past-last global sample, and the shards with it.

    A shard is given as its number and the first and one-past-last of its own samples.

    Raises:
        InputError: more ranks than training samples, or no such split.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is not one of {SPLITS}")
    if split not in info.splits:
        raise InputError(
            f"{directory}: has no validation split; make the shards with --val-fraction, or from "
            "data that have one"
        )
    table = info.splits[split]
    if split == "train" and ranks > table.total:
        kind = "windows" if info.task == "language" else "samples"
        raise InputError(
            f"{directory}: {ranks} subdomains for {table.total} training {kind}; use {table.total} "
            "at most (ranks times --subdomains-per-rank)"
        )
    start, stop = part(table.sizes, rank, ranks)
    touched = [
        (shard, max(start, first) - first, min(stop, last) - first)
        for shard, first, last in table.spans
        if max(start, first) < min(stop, last)
    ]
    return start, stop, touched


def cut(tokens: NDArray[Any], context: int) -> NDArray[Any]:
    """The windows (m, context + 1) in a row of m * context + 1 tokens, as a view of it."""
    return np.lib.stride_tricks.sliding_window_view(tokens, context + 1)[::context]
