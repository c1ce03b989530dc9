"""Texts in shards: pieces, windows, damage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apts_mpi.data import (
    describe,
    load_source,
    read_info,
    read_partition,
    windowed,
    write_shards,
)
from apts_mpi.data.shards import index as layout
from apts_mpi.errors import InputError
from tests.data.helpers import refused
from tests.data.sources.test_text import written


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("sizes", [None, [5.0, 1.0, 2.0]])
def test_shards_are_pieces_in_order(tmp_path: Path, wide: bool, sizes: Any) -> None:
    source = written(wide=wide)
    info = write_shards(source, tmp_path / "d", shards=3, sizes=sizes)
    assert (info.task, info.format_version, info.outputs) == ("language", 2, 700 if wide else 8)
    for split, tokens in (("train", source.train), ("test", source.test)):
        pieces = []
        for shard in range(3):
            with h5py.File(tmp_path / "d" / info.filename(split, shard)) as file:
                assert file["tokens"].fletcher32
                pieces.append(file["tokens"][:])
        assert tuple(map(len, pieces)) == info.splits[split].sizes
        assert np.array_equal(np.concatenate(pieces), tokens)
        with h5py.File(tmp_path / "d" / "index.h5") as file:
            assert np.array_equal(file[f"{split}/tokens"][:], tokens)
    assert read_info(tmp_path / "d") == info
    expected = (125, 25, 50) if sizes else (67, 67, 66)
    assert info.splits["train"].sizes == expected


def test_what_is_not_for_texts(tmp_path: Path) -> None:
    for options, words in (
        ({"shards": 34}, ["66 tokens", "between 1 and 33"]),
        ({"shards": 2, "stratified": True}, ["--stratified", "poem.txt"]),
        ({"shards": 2, "dirichlet": 1.0}, ["--dirichlet", "poem.txt"]),
    ):
        with refused(*words):
            write_shards(written(), tmp_path / "d", **options)
    write_shards(written(), tmp_path / "d", shards=33)
    assert min(read_info(tmp_path / "d").splits["test"].sizes) == 2


def test_shards_of_classes_are_as_they_were(tmp_path: Path) -> None:
    info = write_shards(load_source("digits"), tmp_path / "d", shards=3)
    assert info.digest == "10311f8b06f2b040ece9a0e88deac8b8734ea43eb1ff12c796d695c7f1c615b4"
    assert (info.format_version, info.outputs) == (1, 10)


def test_inspect(tmp_path: Path) -> None:
    source = written()
    write_shards(source, tmp_path / "d", shards=2)
    lines = describe(tmp_path / "d").splitlines()
    assert "tokens         200 train, 66 test, in 2 shards" in lines
    assert "vocabulary     8: t0, t1, t2, t3, t4, t5, t6, t7" in lines
    row = next(line.split() for line in lines if "train-00001" in line)
    counts = np.bincount(source.train[100:], minlength=8)
    assert list(map(int, row[1:3])) == [100, 100]
    assert list(map(int, row[4:])) == counts.tolist()
    write_shards(written(wide=True), tmp_path / "wide", shards=2)
    row = next(
        line.split() for line in describe(tmp_path / "wide").splitlines() if "train-00001" in line
    )
    assert int(row[4]) == len(np.unique(written(wide=True).train[100:]))


@settings(max_examples=15, deadline=None)
@given(
    tokens=st.integers(30, 200),
    shards=st.integers(1, 4),
    ranks=st.integers(1, 5),
    context=st.integers(1, 12),
    chunk=st.sampled_from([7, 10**6]),
)
def test_ranks_read_the_windows_of_every_shard(
    tmp_path_factory: pytest.TempPathFactory,
    tokens: int,
    shards: int,
    ranks: int,
    context: int,
    chunk: int,
) -> None:
    from apts_mpi.data.shards import writing

    source, directory = written(tokens), tmp_path_factory.mktemp("windows") / "d"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writing, "CHUNK", chunk)
        info = write_shards(source, directory, shards=shards)
    for split, text in (("train", source.train), ("test", source.test)):
        table, expected = info.splits[split], []
        for start, size in zip(table.starts[:-1], table.sizes, strict=True):
            piece = text[start : start + size].tolist()
            begins = range(0, size - context, context)
            expected += [piece[at : at + context + 1] for at in begins]
        if not expected or (split == "train" and min(table.sizes) <= context):
            with refused(str(directory), f"context of {context} tokens is longer"):
                read_partition(directory, split, 0, ranks, context=context)
            return
        try:
            shown = windowed(info, context)
        except InputError:  # the test text is too short
            return
        if split == "train" and ranks > len(expected):
            with refused(f"{ranks} subdomains for {len(expected)} training windows"):
                read_partition(directory, split, 0, ranks, context=context)
            return
        parts = [read_partition(directory, split, rank, ranks, context) for rank in range(ranks)]
        assert np.concatenate([part.x for part in parts]).tolist() == [w[:-1] for w in expected]
        assert np.concatenate([part.y for part in parts]).tolist() == [w[1:] for w in expected]
        assert parts[0].total == shown.splits[split].total == len(expected)
        assert [part.start for part in parts] == np.cumsum([0, *map(lambda p: len(p.x), parts)])[
            :-1
        ].tolist()
        if ranks == shards:
            assert tuple(len(part.x) for part in parts) == shown.splits[split].sizes
        assert parts[0].x.base is parts[0].y.base is not None


def test_windows_are_samples(tmp_path: Path) -> None:
    info = write_shards(written(), tmp_path / "d", shards=2)
    shown = windowed(read_info(tmp_path / "d"), 9)
    assert (shown.sample_shape, shown.samples, shown.splits["test"].total) == ((9,), 22, 6)
    assert shown.outputs == info.outputs
    assert len({shown.digest, info.digest, windowed(info, 8).digest}) == 3
    for call in (lambda: windowed(shown, 3), lambda: windowed(info, 0)):
        with pytest.raises(ValueError, match=r"windows to be cut|context of 0"):
            call()
    with refused("poem", "context of 100", "train text (100 tokens", "--context"):
        windowed(info, 100)
    with refused("poem", "context of 33", "test text (33 tokens"):
        windowed(info, 33)
    with pytest.raises(ValueError, match="context of None"):
        read_partition(tmp_path / "d", "train", 0, 1)
    write_shards(load_source("digits"), tmp_path / "digits", shards=1)
    with pytest.raises(ValueError, match="context of 3"):
        read_partition(tmp_path / "digits", "train", 0, 1, context=3)


def test_damage_is_noticed(tmp_path: Path) -> None:
    write_shards(written(), tmp_path / "d", shards=2)
    path = tmp_path / "d" / "train-00000-of-00002.h5"
    with h5py.File(path, "r+") as file:
        place = file["tokens"].id.get_chunk_info(0).byte_offset
        file["tokens"][3] = 99
    with refused(path.name, "token 99 is not in 0..7"):
        describe(tmp_path / "d")
    with refused(path.name, "is damaged (tokens[0] to tokens[99])"):
        read_partition(tmp_path / "d", "train", 0, 5, 5)
    with path.open("r+b") as raw:
        raw.seek(place)
        raw.write(b"\0" * 8)
    with refused(path.name, "is damaged"):
        read_partition(tmp_path / "d", "train", 0, 2, 5)


def test_an_index_of_something_else(tmp_path: Path) -> None:
    write_shards(written(), tmp_path / "d", shards=2)
    for name, value, word in (
        ("dtype", "<f4", "dtype '<f4' is not one of"),
        ("shards", 0, "shards 0"),
        ("task", "classification", "format version 2 is not 1"),
    ):
        path = tmp_path / "d" / "index.h5"
        with h5py.File(path, "r+") as file:
            good = file.attrs[name]
            file.attrs[name] = np.bytes_(value) if isinstance(value, str) else value
        layout.seal(path)
        with refused("index.h5", word):
            read_info(tmp_path / "d")
        with h5py.File(path, "r+") as file:
            file.attrs[name] = good
        layout.seal(path)
