"""What the index says of a source that is cut into shards: sizes, digests, moments."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from apts_mpi.data.format import SPLITS
from apts_mpi.data.info import DatasetInfo, Split
from apts_mpi.data.moments import Moments
from apts_mpi.data.partitioning import Indices
from apts_mpi.data.sources import Source
from apts_mpi.data.text import TextSource

BLOCK = 512 * 1024  # bytes looked at together; the last digits of the moments depend on it

Rows = Indices | slice  # of a split that make a shard; a text is not shuffled
Parts = dict[str, list[Rows]]


def identified(source: Source | TextSource, parts: Parts) -> DatasetInfo:
    """What the index says of a source, the rows of whose shards are these."""
    if isinstance(source, TextSource):
        return _text_info(source, parts)
    moments = Moments(scalar=source.x_train.dtype == np.uint8)
    targets = Moments(scalar=False)
    splits = {}
    for split in SPLITS:
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
    more: dict[str, Any] = {}
    if source.task == "regression":
        more = dict(zip(("target_mean", "target_std"), targets.result(), strict=True))
        more["target_shape"] = source.y_train.shape[1:]
    return DatasetInfo(
        name=source.name,
        classes=source.classes,
        sample_shape=source.x_train.shape[1:],
        dtype=source.x_train.dtype.str,
        mean=mean,
        std=std,
        splits=splits,
        task=source.task,
        **more,
    )


def _text_info(source: TextSource, parts: Parts) -> DatasetInfo:
    splits = {}
    for split in SPLITS:
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
