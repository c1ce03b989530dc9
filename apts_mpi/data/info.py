"""The identity of a sharding: what its index records and what each shard file repeats."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Split:
    """The table of one split: samples and content digest (sha256, hex) of each shard."""

    sizes: tuple[int, ...]
    contents: tuple[str, ...]

    @property
    def total(self) -> int:
        """Samples in all shards."""
        return sum(self.sizes)

    @property
    def starts(self) -> tuple[int, ...]:
        """K + 1 offsets: shard k holds the global samples starts[k] to starts[k + 1] - 1."""
        return tuple(accumulate(self.sizes, initial=0))


@dataclass(frozen=True, eq=False)
class DatasetInfo:
    """What the index says of a sharding.

    `mean` and `std` are float64 of shape () or `sample_shape`, from the training data only.
    `digest` (sha256, hex) identifies the sharding with every byte of its data: two infos are
    equal when their digests are.
    """

    name: str
    classes: tuple[str, ...]
    sample_shape: tuple[int, ...]
    dtype: str
    mean: NDArray[np.float64] = field(repr=False)
    std: NDArray[np.float64] = field(repr=False)
    splits: Mapping[str, Split] = field(repr=False)
    task: str = "classification"
    format_version: int = FORMAT_VERSION
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        identity = {
            "format_version": self.format_version,
            "task": self.task,
            "name": self.name,
            "classes": self.classes,
            "sample_shape": self.sample_shape,
            "dtype": self.dtype,
            "mean": [self.mean.shape, hashlib.sha256(self.mean.tobytes()).hexdigest()],
            "std": [self.std.shape, hashlib.sha256(self.std.tobytes()).hexdigest()],
            "splits": {name: [split.sizes, split.contents] for name, split in self.splits.items()},
        }
        text = json.dumps(identity, sort_keys=True)
        object.__setattr__(self, "digest", hashlib.sha256(text.encode()).hexdigest())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DatasetInfo) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    @property
    def shards(self) -> int:
        """Number K of shards of each split."""
        return len(self.splits["train"].sizes)

    @property
    def samples(self) -> int:
        """Number of training samples."""
        return self.splits["train"].total

    @property
    def test_samples(self) -> int:
        """Number of test samples."""
        return self.splits["test"].total

    def filename(self, split: str, shard: int) -> str:
        """The name of a shard file inside the folder."""
        return f"{split}-{shard:05d}-of-{self.shards:05d}.h5"

    def index_attributes(self) -> dict[str, Any]:
        """Attributes of the index file."""
        return {
            "format": "apts-mpi-index",
            "format_version": self.format_version,
            "dataset": self.name,
            "task": self.task,
            "shards": self.shards,
            "sample_shape": self.sample_shape,
            "dtype": self.dtype,
            "classes": self.classes,
            "digest": self.digest,
        }

    def shard_attributes(self, split: str, shard: int) -> dict[str, Any]:
        """Attributes of one shard file, in the order in which they are checked."""
        table = self.splits[split]
        return self.index_attributes() | {
            "format": "apts-mpi-shard",
            "split": split,
            "shard": shard,
            "start": table.starts[shard],
            "samples": table.sizes[shard],
            "total": table.total,
            "content": table.contents[shard],
        }
