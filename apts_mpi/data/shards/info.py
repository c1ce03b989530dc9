"""The identity of a sharding: what its index records and what each shard file repeats."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import astuple, dataclass, field, fields, replace
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from apts_mpi.errors import InputError

# The format version of each task: an older program refuses the later tasks by their version.
TASKS = {"classification": 1, "language": 2, "regression": 2}
# That of any task with a validation split, or with moments of another shape than `plain_moments`.
LATEST = 3


class Column(NamedTuple):
    """A data set of every shard file: its name, and type and shape of a row."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Split:
    """The table of one split: samples and content digest (sha256, hex) of each shard.

    What is stored of a text is tokens, each a sample; `windowed` counts windows.
    """

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

    @property
    def spans(self) -> list[tuple[int, int, int]]:
        """Of every shard that has samples: its number, first and one-past-last global sample."""
        edges = enumerate(pairwise(self.starts))
        return [(shard, start, stop) for shard, (start, stop) in edges if start < stop]


@dataclass(frozen=True, eq=False)
class DatasetInfo:
    """What the index says of a sharding.

    `splits` has "train", "test", and "val" where there are validation samples. `mean` and `std` are
    float64 of one of the shapes of `all_moments`, from the training data only; 0 and 1 for text and
    for what is not normalised. `classes` are the names of the classes, or of the tokens of a text,
    and empty for regression, where `target_shape` is that of a sample's targets, (outputs,), and
    `target_mean` and `target_std` are theirs over the training data, float64 of that shape.
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
    target_shape: tuple[int, ...] = ()
    target_mean: NDArray[np.float64] | None = field(default=None, repr=False)
    target_std: NDArray[np.float64] | None = field(default=None, repr=False)
    format_version: int = field(init=False)
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        plain = self.mean.shape == plain_moments(self.task, self.dtype, self.sample_shape)
        version = TASKS[self.task] if plain and "val" not in self.splits else LATEST
        object.__setattr__(self, "format_version", version)
        identity: dict[str, Any] = {
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
        if self.task == "regression":
            identity["target_shape"] = self.target_shape
            for name, value in self.target_moments().items():
                identity[name] = hashlib.sha256(value.tobytes()).hexdigest()
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
    def files(self) -> list[tuple[str, int]]:
        """Every shard file, as its split and its number in that."""
        return [(split, shard) for split in self.splits for shard in range(self.shards)]

    @property
    def samples(self) -> int:
        """Number of training samples."""
        return self.splits["train"].total

    @property
    def outputs(self) -> int:
        """Numbers that a network gives for a sample (for each token of a text)."""
        return self.target_shape[0] if self.task == "regression" else len(self.classes)

    @property
    def columns(self) -> tuple[Column, ...]:
        """The data sets of a shard file, in the order in which its digest takes them."""
        if self.task == "language":
            return (Column("tokens", self.dtype, ()),)
        targets = "<f4" if self.task == "regression" else "<i8"
        x = Column("x", self.dtype, self.sample_shape)
        return (x, Column("y", targets, self.target_shape))

    def to_text(self) -> str:
        """All of it as JSON, for `from_text`; numbers keep every bit."""
        values = {each.name: getattr(self, each.name) for each in fields(self) if each.init}
        splits = {name: astuple(split) for name, split in self.splits.items()}
        return json.dumps({**values, "splits": splits}, default=np.ndarray.tolist)

    @classmethod
    def from_text(cls, text: str) -> DatasetInfo:
        """What `to_text` wrote."""
        values = json.loads(text)
        for name in ("classes", "sample_shape", "target_shape"):
            values[name] = tuple(values[name])
        for name in ("mean", "std", "target_mean", "target_std"):
            if values[name] is not None:
                values[name] = np.asarray(values[name], dtype=np.float64)
        for name, (sizes, contents) in values["splits"].items():
            values["splits"][name] = Split(tuple(sizes), tuple(contents))
        return cls(**values)

    def target_moments(self) -> dict[str, NDArray[np.float64]]:
        """The moments of the targets by the names that the index has for them."""
        values = {"target_mean": self.target_mean, "target_std": self.target_std}
        return {name: value for name, value in values.items() if value is not None}

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
            **{name: getattr(self, name) for name in attributes_of(self.task)},
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


def attributes_of(task: str) -> dict[str, Any]:
    """The attributes that an index has of that task besides, each with a value of its type."""
    if task == "language":
        return {"dtype": "", "classes": ("",)}
    if task == "regression":
        return {"sample_shape": (0,), "dtype": "", "target_shape": (0,)}
    return {"sample_shape": (0,), "dtype": "", "classes": ("",)}


def plain_moments(task: str, dtype: str, sample_shape: tuple[int, ...]) -> tuple[int, ...]:
    """The one shape that mean and deviation have before format version 3."""
    return () if task == "language" or dtype == "|u1" else sample_shape


def all_moments(sample_shape: tuple[int, ...]) -> set[tuple[int, ...]]:
    """The shapes that mean and deviation may have: for all, for each number, for each channel."""
    return {(), sample_shape, (*sample_shape[:1], *[1] * (len(sample_shape) - 1))}


def windowed(info: DatasetInfo, context: int, *, origin: str = "") -> DatasetInfo:
    """The windows of a text as samples: of shape (context,), counted so in the splits.

    A shard of L tokens has (L - 1) // context windows; window i takes the tokens from
    i * context to (i + 1) * context, of which the first `context` are the inputs and the last
    `context` the targets. Tokens behind the last window are left out, and no window goes over the
    end of a shard.

    Args:
        info: of a text, as it is stored. context: tokens of a window, 1 or more. origin: names the
            data in a message.

    Raises:
        ValueError: no text, or one that has its windows already, or a context below 1.
        InputError: the context is longer than the text of a shard.
    """
    if info.task != "language" or info.sample_shape:
        raise ValueError(f"{info.task} of samples {info.sample_shape} has no windows to be cut")
    if context < 1:
        raise ValueError(f"a context of {context} tokens")
    splits = {}
    for name, split in info.splits.items():
        sizes = tuple(max(tokens - 1, 0) // context for tokens in split.sizes)
        if not sum(sizes) or (name == "train" and not min(sizes)):
            shortest = min(split.sizes) if name == "train" else max(split.sizes)
            raise InputError(
                f"{origin or info.name}: a context of {context} tokens is longer than a shard's "
                f"{name} text ({shortest} tokens, {max(shortest - 1, 0)} with a next one); take a "
                "shorter --context or make fewer shards"
            )
        splits[name] = Split(sizes, split.contents)
    return replace(info, sample_shape=(context,), splits=splits)
