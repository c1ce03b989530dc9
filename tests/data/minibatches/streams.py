"""What the tests of streams share."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

from apts_mpi.data import Source, TextSource
from apts_mpi.data.minibatches.batches import Batches
from apts_mpi.data.minibatches.streaming import Stream

KINDS = ("bytes", "floats", "targets", "text", "wide text")
CONTEXT = {"text": 5, "wide text": 5}


def source_of(kind: str, samples: int = 90) -> Source | TextSource:
    rng = np.random.default_rng(0)
    if kind in CONTEXT:
        words = 300 if kind == "wide text" else 9
        text = rng.integers(0, words, samples * 7).astype("<i4" if words > 256 else np.uint8)
        cut = samples * 6
        return TextSource("text", text[:cut], text[cut:], tuple(map("w{}".format, range(words))))
    x = rng.normal(3, 2, (samples + 20, 2, 3)).astype("f4")
    if kind == "bytes":
        x = rng.integers(0, 256, x.shape, dtype=np.uint8)
    y = rng.integers(0, 3, len(x))
    parts = (x[:samples], y[:samples], x[samples:], y[samples:])
    if kind == "targets":
        z = rng.normal(size=(len(x), 2))
        return Source("z", x[:samples], z[:samples], x[samples:], z[samples:], task="regression")
    return Source("toy", *parts, classes=("a", "b", "c"))


def followed(stream: Stream, batch: int, **options: Any) -> Batches:
    """Minibatches that a stream follows from their start."""
    batches = Batches(
        stream.samples, largest=stream.samples, batch=batch, window=stream.window, **options
    )
    stream.follow(batches)
    return batches


def check(stream: Stream, batches: Iterator[np.ndarray], part: Any, draws: int) -> None:
    """So many draws give what the part has."""
    for index in itertools.islice(batches, draws):
        x, y = stream.take(index)
        assert (x.dtype, y.dtype) == (part.x.dtype, part.y.dtype)
        assert np.array_equal(x, part.x[index])
        assert np.array_equal(y, part.y[index])


def threads() -> int:
    return sum(thread.name == "reading ahead" for thread in threading.enumerate())
