"""Shards read back, whole and in parts, normalised."""

from __future__ import annotations

import dataclasses
import tracemalloc
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apts_mpi.data import Source, Stream, describe, read_info, read_partition, write_shards
from apts_mpi.data.shards import identity
from apts_mpi.data.sources.moments import NORMALIZE, nonzero
from tests.data.helpers import refused
from tests.data.shards.toys import raw, toy


@settings(max_examples=12, deadline=None)
@given(
    samples=st.integers(6, 40),
    shards=st.integers(1, 6),
    ranks=st.integers(1, 6),
    skewed=st.booleans(),
)
def test_parts_tile_the_global_order(
    tmp_path_factory: pytest.TempPathFactory, samples: int, shards: int, ranks: int, skewed: bool
) -> None:
    directory = tmp_path_factory.mktemp("tile") / "d"
    info = write_shards(
        toy(samples, 4), directory, shards=shards, dirichlet=0.5 if skewed else None
    )
    for split, total in (("train", samples), ("test", 4)):
        parts = [read_partition(directory, split, rank, ranks) for rank in range(ranks)]
        ends = [part.start + len(part.y) for part in parts]
        assert [part.start for part in parts] == [0, *ends[:-1]]
        assert ends[-1] == total == parts[0].total
        x = np.concatenate([part.x for part in parts])
        assert np.array_equal(x, ((raw(directory, split, "x") - info.mean) / info.std).astype("f4"))
        assert np.array_equal(np.concatenate([p.y for p in parts]), raw(directory, split, "y"))
        if ranks == shards:
            assert tuple(len(part.y) for part in parts) == info.splits[split].sizes
        else:
            assert max(len(p.y) for p in parts) - min(len(p.y) for p in parts) <= 1


def test_parts_are_normalised_by_training_data(tmp_path: Path) -> None:
    for images in (False, True):
        source = toy(images=images)
        directory = tmp_path / str(images)
        write_shards(source, directory, shards=2)
        x = read_partition(directory, "train", 0, 1).x
        axis = None if images else 0
        spread = x.std(axis=axis, dtype=np.float64)
        assert np.allclose(x.mean(axis=axis, dtype=np.float64), 0, atol=1e-6)
        assert np.allclose(spread, 1 if images else [1, 0, 1, 1], atol=1e-6)
        assert x.dtype == np.float32
        assert x.flags.c_contiguous
        test = read_partition(directory, "test", 0, 1).x
        mean = source.x_train.mean(axis=axis, dtype=np.float64)
        std = source.x_train.std(axis=axis, dtype=np.float64)
        expected = (source.x_test - mean) / np.where(std > 0, std, 1)
        assert np.allclose(np.sort(test, axis=0), np.sort(expected, axis=0), atol=1e-5)


def validated(**changes: Any) -> Source:
    source = toy(**changes)
    return dataclasses.replace(source, x_val=source.x_train[:7] + 1, y_val=source.y_train[:7])


def test_validation_is_a_split_of_its_own(tmp_path: Path) -> None:
    source, directory = validated(), tmp_path / "d"
    info = write_shards(source, directory, shards=3)
    plain = write_shards(toy(), tmp_path / "plain", shards=3)
    assert [split.total for split in info.splits.values()] == [40, 7, 9]
    assert info.splits["val"].sizes == (3, 2, 2)
    assert (info.format_version, plain.format_version) == (3, 1)
    assert set(plain.splits) == {"train", "test"}
    # The rest is as it is without one.
    assert all(info.splits[name] == plain.splits[name] for name in plain.splits)
    assert read_info(directory) == info != plain
    assert "40 train, 7 val, 9 test, in 3 shards" in describe(directory)
    parts = [read_partition(directory, "val", rank, 2) for rank in range(2)]
    assert source.x_val is not None
    assert source.y_val is not None
    assert sorted(np.concatenate([p.y for p in parts])) == sorted(source.y_val)
    expected = (source.x_val - info.mean) / info.std  # by the training data's
    found = np.concatenate([part.x for part in parts])
    assert np.allclose(found[np.argsort(found[:, 0])], expected, atol=1e-5)
    assert np.array_equal(Stream(directory, "val", 0, 1).take(np.arange(7))[0], found)
    with refused(str(tmp_path / "plain"), "no validation split", "--val-fraction"):
        read_partition(tmp_path / "plain", "val", 0, 1)
    # `shard` replaces what it has made.
    write_shards(toy(), directory, shards=2, overwrite=True)
    assert len(list(directory.iterdir())) == 5


def test_a_validation_split_cannot_get_lost(tmp_path: Path) -> None:
    write_shards(validated(), tmp_path / "d", shards=2)
    with h5py.File(tmp_path / "d" / "index.h5", "r+") as file:
        del file["val"]
    with refused("index.h5", "does not match its contents"):
        read_info(tmp_path / "d")
    write_shards(validated(), tmp_path / "e", shards=2)
    (tmp_path / "e" / "val-00001-of-00002.h5").unlink()
    with refused("val-00001-of-00002.h5", "is missing"):
        describe(tmp_path / "e")


KINDS = [
    *((np.uint8, shape) for shape in [(5,), (3, 4, 2), (1, 3, 2)]),
    *((np.float32, shape) for shape in [(3, 4, 2), (4, 5), (2, 3, 2, 2)]),
]


@pytest.mark.parametrize(("kind", "shape"), KINDS)
@pytest.mark.parametrize("how", NORMALIZE)
def test_what_is_normalised_by_moments_of_its_own(
    tmp_path: Path, kind: Any, shape: tuple[int, ...], how: str
) -> None:
    rng = np.random.default_rng(3)
    scale = rng.uniform(2, 60, size=shape)
    x = (rng.uniform(1, 4, size=(60, *shape)) * scale).astype(kind)
    source = Source("any", x, np.arange(60) % 2, x[:6] // 2, np.arange(6) % 2, ("a", "b"))
    info = write_shards(source, tmp_path / "d", shards=2, normalize=how)
    rule = how if how != "auto" else {1: "feature", 3: "channel"}.get(len(shape), "one")
    axes = {"feature": (0,), "channel": (0, *range(2, len(shape) + 1))}.get(rule)
    found = read_partition(tmp_path / "d", "train", 0, 1).x
    if how == "off":
        assert sorted(found.ravel()) == sorted(x.ravel().astype("f4"))
    else:
        assert np.allclose(found.mean(axis=axes), 0, atol=1e-5)
        assert np.allclose(found.std(axis=axes), 1, atol=1e-5)
    mean, std = x.mean(axis=axes, keepdims=True, dtype=float)[0], x.std(axis=axes, dtype=float)
    std = np.reshape(std, np.shape(mean))
    test = (source.x_test - (0 if how == "off" else mean)) / (1 if how == "off" else std)
    found = read_partition(tmp_path / "d", "test", 0, 1).x
    assert np.allclose(np.sort(found, axis=0), np.sort(test, axis=0), atol=1e-4)
    assert np.array_equal(Stream(tmp_path / "d", "test", 0, 1).take(np.arange(6))[0], found)
    words = {"off": "none: values as they are", "feature": "per feature", "channel": "per channel"}
    if rule != "channel" or (shape[0] > 1 and len(shape) > 1):
        assert words.get(rule, "one for all features") in describe(tmp_path / "d")
    # Programs of before take what they know, and refuse the rest by its version.
    before = () if kind == np.uint8 else shape
    assert info.format_version == (1 if info.mean.shape == before else 3)


def test_what_is_constant_in_training_is_harmless(tmp_path: Path) -> None:
    """Nothing is blown up, neither rounding in training nor another value in the test data."""
    rng = np.random.default_rng(0)
    x = rng.normal(50, 20, size=(200, 6)).astype("f4")
    x[:, 0], x[:, 1], x[:, 2], x[:, 3] = 0, 1e6, 1e6, 1e-3
    x[7, 2] = np.nextafter(np.float32(1e6), np.float32(2e6))
    test = x[:20].copy()
    test[:, 0], test[:, 1], test[:, 2], test[:, 3] = 90, 1.1e6, 1.1e6, 4
    y = np.arange(200) % 2
    write_shards(Source("any", x, y, test, y[:20], ("a", "b")), tmp_path / "d", shards=2)
    describe(tmp_path / "d")
    for split in ("train", "test"):
        assert np.abs(read_partition(tmp_path / "d", split, 0, 1).x).max() < 6
    bytes_ = rng.integers(0, 256, size=(200, 4)).astype(np.uint8)
    bytes_[:, 1] = 0
    other = bytes_.copy()
    other[:, 1] = 255
    write_shards(Source("any", bytes_, y, other, y, ("a", "b")), tmp_path / "b", shards=2)
    assert np.abs(read_partition(tmp_path / "b", "test", 0, 1).x).max() < 6


@pytest.mark.parametrize("shape", [(5,), (3, 4, 4)])
def test_earlier_shards_are_read_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]
) -> None:
    """They have moments of every number, and 1 for a constant."""
    x = np.random.default_rng(0).normal(3, 2, size=(60, *shape)).astype("f4")
    x[:, 0] = 1e6
    x[3, 0] += 0.0625
    x[:, 1] = 7
    y = np.arange(60) % 2
    monkeypatch.setattr(identity, "divisors", lambda mean, std: nonzero(std))
    info = write_shards(
        Source("old", x, y, x, y, ("a", "b")), tmp_path / "d", shards=2, normalize="feature"
    )
    assert (info.format_version, info.mean.shape) == (1, shape)
    describe(tmp_path / "d")
    found = read_partition(tmp_path / "d", "train", 0, 1).x
    std = x.std(axis=0, dtype=float)
    expected = (raw(tmp_path / "d", "train", "x") - info.mean) / np.where(std > 0, std, 1)
    assert np.allclose(found, expected, atol=1e-5)


def test_a_rank_opens_only_the_shards_of_its_part(sharded: Path) -> None:
    expected = read_partition(sharded, "train", 1, 8)
    for path in sharded.iterdir():
        if path.name not in ("index.h5", "train-00000-of-00004.h5"):
            path.unlink()
    found = read_partition(sharded, "train", 1, 8)
    assert np.array_equal(found.x, expected.x)
    with refused("train-00001-of-00004.h5", "missing"):
        read_partition(sharded, "train", 2, 8)


def test_a_rank_holds_only_its_part(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, size=(6000, 40, 100), dtype=np.uint8)  # 24 MB, 96 MB as float32
    y = np.arange(6000) % 2
    write_shards(Source("big", x, y, x[:10], y[:10], ("a", "b")), tmp_path / "d", shards=2)
    tracemalloc.start()
    part = read_partition(tmp_path / "d", "train", 5, 24)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # Besides the part: one block of raw data and its float64 intermediates.
    assert part.x.nbytes == 4_000_000
    assert peak < part.x.nbytes + 30_000_000


def test_empty_test_parts_and_too_many_ranks(tmp_path: Path) -> None:
    write_shards(toy(12, 3), tmp_path / "d", shards=5)
    sizes = [len(read_partition(tmp_path / "d", "test", rank, 12).y) for rank in range(12)]
    assert sizes == [1] * 3 + [0] * 9
    part = read_partition(tmp_path / "d", "test", 4, 5)
    assert part.x.shape == (0, 4)
    describe(tmp_path / "d")
    with refused("d", "13 subdomains", "12"):
        read_partition(tmp_path / "d", "train", 0, 13)
    with pytest.raises(ValueError, match="rank 5"):
        read_partition(tmp_path / "d", "train", 5, 5)


def test_index_works_from_any_folder(sharded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = raw(sharded, "train", "x")
    moved = sharded.rename(sharded.with_name("moved"))
    monkeypatch.chdir("/")
    assert np.array_equal(raw(moved, "train", "x"), before)
    assert before[:, 2].all()  # a map to a missing file would read as zeros
