"""Shards of what is larger than the memory that is used: buckets, one reading, no file left."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apts_mpi.data import Source, load_source, load_text, write_shards
from apts_mpi.data.shards import spooling
from apts_mpi.data.sources import stored
from apts_mpi.data.sources.stored import Stored
from tests.data.helpers import refused

N = 400


def in_blocks(x: np.ndarray, block: int, opened: list[int]) -> Stored:
    def read() -> Iterator[np.ndarray]:
        opened.append(1)
        for start in range(0, len(x), block):
            yield x[start : start + block]

    return Stored(x.shape, x.dtype, read)


@settings(max_examples=30, deadline=None)
@given(
    samples=st.integers(8, 90),
    block=st.integers(1, 100),
    bucket=st.integers(1, 400),
    shards=st.integers(1, 4),
    seed=st.integers(0, 9),
)
def test_shards_are_those_of_arrays_in_memory(
    tmp_path_factory: pytest.TempPathFactory,
    samples: int,
    block: int,
    bucket: int,
    shards: int,
    seed: int,
) -> None:
    """Bit for bit, in whatever pieces they come, and the file is read once for all splits."""
    rng, folder = np.random.default_rng(seed), tmp_path_factory.mktemp("spool")
    x = rng.normal(size=(samples, 3)).astype("<f4")
    y = rng.integers(0, 2, samples)
    cuts = sorted(rng.choice(np.arange(1, samples), 2, replace=False))
    train, val, test = np.split(rng.permutation(samples), cuts)
    train, val, test = np.sort(train), np.sort(val), np.sort(test)
    shards = min(shards, len(train))
    opened: list[int] = []
    infos = []
    for name, whole in (("files", in_blocks(x, block, opened)), ("memory", x)):
        parts: Any = {"train": train, "test": test, "val": val}
        columns: Any = {f"x_{split}": whole[rows] for split, rows in parts.items()}
        columns |= {f"y_{split}": y[rows] for split, rows in parts.items()}
        source = Source("own", classes=("a", "b"), **columns)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(spooling, "BUCKET", bucket)
            infos.append(write_shards(source, folder / name, shards=shards, seed=seed))
    assert infos[0] == infos[1]
    assert len(opened) == 1
    for path in (folder / "memory").glob("t*.h5"):
        assert path.read_bytes() == (folder / "files" / path.name).read_bytes()
    assert sorted(p.name for p in folder.iterdir()) == ["files", "memory"]


def test_memory_is_bounded_whatever_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """32 MB of samples in every kind of file, in blocks and buckets of 1 MiB."""
    monkeypatch.setattr(stored, "BLOCK", 2**20)
    monkeypatch.setattr("apts_mpi.data.sources.npy.BLOCK", 2**20)
    monkeypatch.setattr(spooling, "BUCKET", 2**20)
    x = np.arange(N * 80_000, dtype=np.uint8).reshape(N, 80_000)  # is compressed quickly
    y = np.arange(N) % 2
    text = tmp_path / "own.txt"
    text.write_bytes((b"to be or not to be " * 2600 + b"\n") * 650)
    np.savez(tmp_path / "plain.npz", x=x, y=y)
    np.savez_compressed(tmp_path / "packed.npz", x=x, y=y)
    turned = np.asfortranarray(x[:, :4000].repeat(20, 0))
    np.savez(tmp_path / "turned.npz", x=turned, y=y.repeat(20))
    with h5py.File(tmp_path / "chunked.h5", "w") as file:
        file.create_dataset("x", data=x, chunks=(3, 80_000), compression="gzip")
        file["y"] = y
    with h5py.File(tmp_path / "plain.h5", "w") as file:
        file["x"], file["y"] = x, y
    del x, turned
    for path in sorted(tmp_path.iterdir()):
        tracemalloc.start()
        source: Any = load_text(path) if path == text else load_source("arrays", path=path)
        write_shards(source, tmp_path / f"{path.stem}-{path.suffix[1:]}", shards=2)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        # Of a text the table of all code points besides; of the writing some chunks.
        assert peak < 24e6, (path.name, peak)


def test_a_fault_in_the_last_sample_leaves_nothing(tmp_path: Path) -> None:
    x = np.ones((N, 4))
    x[-1, 2] = np.inf
    path = tmp_path / "own.npz"
    np.savez(path, x=x, y=np.arange(N) % 2)
    source = load_source("arrays", path=path)
    with refused(str(path), f"x[{N - 1}, 2] is inf"):
        write_shards(source, tmp_path / "d", shards=2)
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "own.npz"
    np.savez(path, x=np.ones((N, 4)), y=np.arange(N) % 2)
    source = load_source("arrays", path=path)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(spooling._Spool, "fill", full)
    with refused(str(tmp_path / "d"), "No space left", "choose another folder"):
        write_shards(source, tmp_path / "d", shards=2)
    assert list(tmp_path.iterdir()) == [path]
