"""Minibatches of a stream are those of the part that is held."""

from __future__ import annotations

import itertools
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apts_mpi.data import read_partition, write_shards
from apts_mpi.data.minibatches.batches import Batches, Leg, Place
from apts_mpi.data.minibatches.streaming import Stream
from apts_mpi.data.shards import writing
from tests.data.helpers import refused
from tests.data.minibatches.streams import CONTEXT, check, followed, source_of, threads


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_minibatches_are_those_of_the_part(tmp_path: Path, kind: str, ranks: int) -> None:
    write_shards(source_of(kind), tmp_path / "d", shards=2)
    context = CONTEXT.get(kind)
    for rank in range(ranks):
        part = read_partition(tmp_path / "d", "train", rank, ranks, context)
        with Stream(tmp_path / "d", "train", rank, ranks, context=context, window=3) as stream:
            assert (stream.samples, stream.start, stream.total) == (
                len(part.x),
                part.start,
                part.total,
            )
            batches = followed(stream, 7, seed=5, rank=rank, overlap=30.0)
            assert batches.per_pass > 3
            check(stream, batches, part, 2 * batches.per_pass + 3)
            assert stream.missed == 0


def test_the_default_window(tmp_path: Path, kind: str) -> None:
    write_shards(source_of(kind), tmp_path / "d", shards=1)
    context = CONTEXT.get(kind)
    part = read_partition(tmp_path / "d", "train", 0, 1, context)
    with Stream(tmp_path / "d", "train", 0, 1, context=context) as stream:
        assert 4 <= stream.window < len(part.x)
        check(stream, followed(stream, 4), part, 60)


@settings(max_examples=20, deadline=None)
@given(
    shards=st.integers(1, 4),
    ranks=st.integers(1, 4),
    batch=st.integers(1, 40),
    window=st.integers(1, 20),
    began=st.integers(1, 5),
    draws=st.integers(1, 12),
)
def test_streams_go_on_where_a_run_was(
    tmp_path_factory: pytest.TempPathFactory,
    shards: int,
    ranks: int,
    batch: int,
    window: int,
    began: int,
    draws: int,
) -> None:
    """Also in a pass that another number of ranks began."""
    directory = tmp_path_factory.mktemp("stream") / "d"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writing, "CHUNK", 100)
        info = write_shards(source_of("bytes"), directory, shards=shards)
    sizes = info.splits["train"].sizes
    first = Batches(90 // began, largest=-(-90 // began), batch=batch, window=window)
    place = Place(1, (Leg(began, first.per_pass, 1),))
    part = read_partition(directory, "train", 0, ranks)
    with Stream(directory, "train", 0, ranks, window=window) as stream:
        batches = Batches(
            stream.samples, largest=max(90, stream.samples), batch=batch, window=window
        )
        try:
            batches.go_to(place, sizes, ranks)
        except ValueError:  # as many ranks, but another way to cut, or nothing is left
            return
        stream.follow(batches)
        check(stream, batches, part, draws)
        assert stream.missed == 0


def test_what_is_not_expected_is_read_at_once(tmp_path: Path, kind: str) -> None:
    write_shards(source_of(kind), tmp_path / "d", shards=2)
    context = CONTEXT.get(kind)
    part = read_partition(tmp_path / "d", "train", 0, 1, context)
    with Stream(tmp_path / "d", "train", 0, 1, context=context, window=4) as stream:
        any_order = np.array([70, 3, 3, 0, 89, 41])
        check(stream, iter([any_order, np.array([], dtype=int)]), part, 2)
        batches = followed(stream, 7)
        check(stream, batches, part, 3)
        check(stream, iter([any_order]), part, 1)
        check(stream, batches, part, 30)  # in step as before
        assert stream.missed == 3
        for wrong in (-1, stream.samples):
            with pytest.raises(IndexError, match=str(wrong)):
                stream.take(np.array([wrong]))


def test_blocks(tmp_path: Path, kind: str) -> None:
    write_shards(source_of(kind), tmp_path / "d", shards=2)
    context = CONTEXT.get(kind)
    for rank, rows in itertools.product(range(3), (1, 7, 1000)):
        part = read_partition(tmp_path / "d", "test", rank, 3, context)
        stream = Stream(tmp_path / "d", "test", rank, 3, context=context, window=4)
        for _ in range(2):
            blocks = list(stream.blocks(rows))
            assert [len(x) for x, _ in blocks[:-1]] == [rows] * (len(blocks) - 1)
            for k, name in enumerate("xy"):
                found = np.concatenate([block[k] for block in blocks])
                assert np.array_equal(found, getattr(part, name))
    assert threads() == 0


def test_an_empty_part_has_no_blocks(tmp_path: Path) -> None:
    write_shards(source_of("bytes"), tmp_path / "d", shards=1)
    with Stream(tmp_path / "d", "test", 25, 26) as stream:
        assert stream.samples == 0
        assert list(stream.blocks(5)) == []


def test_ranks_with_fewer_samples_than_minibatches(tmp_path: Path) -> None:
    write_shards(source_of("floats"), tmp_path / "d", shards=3, sizes=[1, 1, 20])
    part = read_partition(tmp_path / "d", "train", 0, 3)
    with Stream(tmp_path / "d", "train", 0, 3) as stream:
        batches = Batches(stream.samples, largest=80, batch=4, window=stream.window)
        stream.follow(batches)
        assert any(len(index) == 0 for index in batches.one_pass(0))
        check(stream, batches, part, 2 * batches.per_pass)


def test_shards_without_checksums_of_chunks(tmp_path: Path) -> None:
    write_shards(source_of("bytes"), tmp_path / "d", shards=1)
    path = tmp_path / "d" / "train-00000-of-00001.h5"
    with h5py.File(path, "r+") as file:
        del file["sums"], file.attrs["sums"]
    with refused(path.name, "no checksums", "shard"):
        Stream(tmp_path / "d", "train", 0, 1)


def test_chunks_too_large_to_be_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from apts_mpi.data.minibatches import chunks

    write_shards(source_of("bytes"), tmp_path / "d", shards=1)
    monkeypatch.setattr(chunks, "LARGEST", 50)
    with refused("train-00000-of-00001.h5", "x has chunks of shape (16, 2, 3)"):
        Stream(tmp_path / "d", "train", 0, 1)


def test_misuse(tmp_path: Path) -> None:
    write_shards(source_of("bytes"), tmp_path / "d", shards=1)
    with pytest.raises(ValueError, match="context of 3"):
        Stream(tmp_path / "d", "train", 0, 1, context=3)
    with refused("91 subdomains"):
        Stream(tmp_path / "d", "train", 0, 91)
    with refused("nowhere"):
        Stream(tmp_path / "nowhere", "train", 0, 1)
