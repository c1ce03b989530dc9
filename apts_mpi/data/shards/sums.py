"""The SHA-256 of every chunk of a shard, so that a part of it is known to be sound."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from apts_mpi.data.shards.format import read_array, read_attribute, write_attributes
from apts_mpi.data.sources.spooling import Ordered
from apts_mpi.errors import fault

SUMS = "sums"


def chunk_sum(chunk: NDArray[Any]) -> NDArray[np.uint8]:
    """(32,) SHA-256 of the rows of a chunk."""
    return np.frombuffer(hashlib.sha256(chunk.data).digest(), dtype=np.uint8)


def write_sums(file: h5py.File, columns: Mapping[str, Ordered]) -> None:
    """Add the checksums of the chunks of data sets which have been written."""
    rows = ((data, file[name].chunks[0]) for name, data in columns.items())
    sums = np.stack(
        [chunk_sum(data[k : k + step]) for data, step in rows for k in range(0, len(data), step)]
    )
    file[SUMS] = sums
    write_attributes(file, {SUMS: hashlib.sha256(sums.data).hexdigest()})


def read_sums(
    file: h5py.File, path: Path, columns: Sequence[h5py.Dataset]
) -> list[NDArray[np.uint8]] | None:
    """The checksums (chunks, 32) of the chunks of each; None where the shard has none."""
    if SUMS not in file and SUMS not in file.attrs:
        return None
    chunks = [math.ceil(len(data) / data.chunks[0]) for data in columns]
    sums = read_array(file, path, SUMS, "|u1", (sum(chunks), 32))[:]
    if hashlib.sha256(sums.data).hexdigest() != read_attribute(file, path, SUMS, ""):
        raise fault(path, "is damaged (its table of checksums)")
    return np.split(sums, np.cumsum(chunks)[:-1])
