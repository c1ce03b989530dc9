"""What the index says of a source that is cut into shards: sizes, digests, moments."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from apts_mpi.data.info import DatasetInfo, Split
from apts_mpi.data.moments import Moments, divisors, moments_shape, target_divisors
from apts_mpi.data.partitioning import Indices
from apts_mpi.data.sources import Source
from apts_mpi.data.text import TextSource

BLOCK = 512 * 1024  # bytes looked at together; the last digits of the moments depend on it

Rows = Indices | slice  # of a split that make a shard; a text is not shuffled
Parts = dict[str, list[Rows]]


def identified(
    source: Source | TextSource, parts: Parts, *, normalize: str = "auto"
) -> DatasetInfo:
    """What the index says of a source, the rows of whose shards of each split are these."""
    if isinstance(source, TextSource):
        return _text_info(source, parts)
    sample_shape, target_shape = source.x_train.shape[1:], source.y_train.shape[1:]
    moments = Moments(moments_shape(sample_shape, normalize))
    targets = Moments(target_shape)
    splits = {}
    for split in parts:
        x, y = source.columns(split).values()
        sizes, contents = [], []
        for chosen in parts[split]:
            assert not isinstance(chosen, slice), "samples are shuffled"
            digest = hashlib.sha256()
            for rows in np.array_split(chosen, max(1, len(chosen) * x[:1].nbytes // BLOCK)):
                digest.update(x[rows].data)
                if split == "train":
                    moments.add(x[rows])
            digest.update(y[chosen].data)
            if split == "train" and source.task == "regression":
                targets.add(y[chosen])
            sizes.append(len(chosen))
            contents.append(digest.hexdigest())
        splits[split] = Split(tuple(sizes), tuple(contents))
    mean, std = moments.result()
    std = divisors(mean, std)
    if normalize == "off":
        mean, std = np.zeros(()), np.ones(())
    more: dict[str, Any] = {}
    if source.task == "regression":
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


def _text_info(source: TextSource, parts: Parts) -> DatasetInfo:
    splits = {}
    for split in parts:
        (tokens,) = source.columns(split).values()
        pieces = [tokens[chosen] for chosen in parts[split]]
        contents = tuple(hashlib.sha256(piece.data).hexdigest() for piece in pieces)
        splits[split] = Split(tuple(map(len, pieces)), contents)
    return DatasetInfo(
        name=source.name,
        classes=source.classes,
        sample_shape=(),
        dtype=source.train.dtype.str,
        mean=np.zeros(()),
        std=np.ones(()),
        splits=splits,
        task=source.task,
    )
