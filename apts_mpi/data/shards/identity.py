"""What the index says of a source that is cut into shards: sizes, digests, moments."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from itertools import accumulate, pairwise
from typing import Any

import numpy as np

from apts_mpi.data.shards.info import DatasetInfo, Split
from apts_mpi.data.shards.spooling import Ordered, Shards
from apts_mpi.data.sources.moments import Moments, divisors, moments_shape, target_divisors
from apts_mpi.data.sources.source import Source, TextSource

BLOCK = 512 * 1024  # bytes looked at together; the last digits of the moments depend on it


def identified(
    source: Source | TextSource, shards: Shards, *, normalize: str = "auto"
) -> DatasetInfo:
    """What the index says of a source, the shards of whose splits are these."""
    if isinstance(source, TextSource):
        return DatasetInfo(
            name=source.name,
            classes=source.classes,
            sample_shape=(),
            dtype=source.train.dtype.str,
            mean=np.zeros(()),
            std=np.ones(()),
            splits=_splits(shards, {}),
            task=source.task,
        )
    sample_shape, target_shape = source.x_train.shape[1:], source.y_train.shape[1:]
    regression = source.task == "regression"
    moments = Moments(moments_shape(sample_shape, normalize))
    targets = Moments(target_shape)
    splits = _splits(shards, {"x": moments, "y": targets} if regression else {"x": moments})
    mean, std = moments.result()
    std = divisors(mean, std)
    if normalize == "off":
        mean, std = np.zeros(()), np.ones(())
    more: dict[str, Any] = {}
    if regression:
        target_mean, target_std = targets.result()
        target_std = target_divisors(target_mean, target_std)
        more = {"target_mean": target_mean, "target_std": target_std}
        more["target_shape"] = target_shape
    return DatasetInfo(
        name=source.name,
        classes=source.classes,
        sample_shape=sample_shape,
        dtype=source.x_train.dtype.str,
        mean=mean,
        std=std,
        splits=splits,
        task=source.task,
        **more,
    )


def _blocks(rows: Ordered) -> Iterator[tuple[int, int]]:
    """Where the blocks of a shard start and stop, which differ by a row at most."""
    size = math.prod(rows.row_shape) * rows.dtype.itemsize
    blocks = max(1, len(rows) * size // BLOCK)
    each, more = divmod(len(rows), blocks)
    return pairwise(accumulate([each + 1] * more + [each] * (blocks - more), initial=0))


def _splits(shards: Shards, moments: Mapping[str, Moments]) -> dict[str, Split]:
    """Sizes and digests of all shards; the moments, by data set, take in the training's."""
    splits = {}
    for split, parts in shards.items():
        sizes, contents = [], []
        for part in parts:
            digest = hashlib.sha256()
            for name, data in part.items():
                # Labels and targets are small, and are in memory.
                whole = [(0, len(data))] if name == "y" else _blocks(data)
                for start, stop in whole:
                    block = data[start:stop]
                    digest.update(block.data)
                    if split == "train" and name in moments:
                        moments[name].add(block)
            sizes.append(len(next(iter(part.values()))))
            contents.append(digest.hexdigest())
        splits[split] = Split(tuple(sizes), tuple(contents))
    return splits
