"""Who gets which samples."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apts_mpi.data.shards.partitioning import part, shard_indices, skewed_indices, spread
from apts_mpi.data.sources.splits import apportion, split_indices
from apts_mpi.errors import InputError

sizes = st.lists(st.integers(1, 50), min_size=1, max_size=12)


@given(sizes=sizes, ranks=st.integers(1, 70))
def test_parts_tile(sizes: list[int], ranks: int) -> None:
    parts = [part(sizes, rank, ranks) for rank in range(ranks)]
    assert [sample for lo, hi in parts for sample in range(lo, hi)] == list(range(sum(sizes)))
    lengths = [hi - lo for lo, hi in parts]
    if ranks == len(sizes):
        assert lengths == sizes
    else:
        assert max(lengths) - min(lengths) <= 1


@given(
    weights=st.lists(st.floats(1e-3, 1e300), min_size=1, max_size=20),
    total=st.integers(20, 10_000),
    least=st.integers(0, 1),
)
def test_apportionment(weights: list[float], total: int, least: int) -> None:
    counts = apportion(total, weights, least=least)
    assert sum(counts) == total
    assert min(counts) >= least
    scale = max(weights)
    share = math.fsum(weight / scale for weight in weights)
    if least == 0:
        for count, weight in zip(counts, weights, strict=True):
            assert abs(count - total * (weight / scale) / share) < 1 + 1e-6


@given(
    counts=st.lists(st.integers(1, 40), min_size=2, max_size=6),
    fraction=st.floats(0.05, 0.95),
    seed=st.integers(0, 9),
)
def test_split_is_stratified(counts: list[int], fraction: float, seed: int) -> None:
    y = np.repeat(np.arange(len(counts)), counts)
    train, test = split_indices(y, fraction, seed)
    assert sorted([*train, *test]) == list(range(len(y)))
    assert set(y[train]) == set(range(len(counts)))
    for label, count in enumerate(counts):
        taken = int(np.sum(y[test] == label))
        share = math.ceil(len(y) * fraction) * count / len(y)
        assert taken <= count - 1
        assert taken == count - 1 or abs(taken - share) < 1 + 1e-9


def test_bad_fraction() -> None:
    with pytest.raises(InputError, match="fraction 1"):
        split_indices(np.arange(4), 1.0, 0)


@given(seed=st.integers(0, 99), parts=st.integers(1, 9))
def test_any_cut_of_a_spread_is_stratified(seed: int, parts: int) -> None:
    y = np.repeat([0, 1, 2], [300, 90, 10])
    order = spread(y, np.random.default_rng(seed))
    assert sorted(order) == list(range(400))
    for piece in np.array_split(order, parts):
        found = np.bincount(y[piece], minlength=3) / len(piece)
        assert np.abs(found - [0.75, 0.225, 0.025]).max() <= 3 / len(piece)


@pytest.mark.parametrize("stratified", [False, True])
def test_shards_follow_sizes(stratified: bool) -> None:
    y = np.arange(100) % 4
    pieces = shard_indices(y, 3, 0, stratified=stratified, sizes=[6, 3, 1])
    assert [len(piece) for piece in pieces] == [60, 30, 10]
    assert sorted(np.concatenate(pieces)) == list(range(100))
    assert not np.array_equal(np.concatenate(pieces), np.arange(100))


@given(
    seed=st.integers(0, 99),
    shards=st.integers(1, 12),
    concentration=st.sampled_from([1e-300, 1e-3, 0.1, 1.0, 1e3, 1e9]),
)
def test_skewed_shards_share_everything(seed: int, shards: int, concentration: float) -> None:
    pieces = skewed_indices(np.arange(12) % 3, shards, seed, concentration)
    assert sorted(np.concatenate(pieces)) == list(range(12))
    assert min(map(len, pieces)) >= 1


def test_skew_falls_with_the_concentration() -> None:
    y = np.arange(4000) % 10

    def skew(concentration: float) -> float:
        whole = []
        for piece in skewed_indices(y, 8, 0, concentration):
            found = np.bincount(y[piece], minlength=10) / len(piece)
            whole.append(np.abs(found - 0.1).sum() / 2)
        return float(np.mean(whole))

    assert skew(0.05) > 0.6
    assert 0.2 < skew(1.0) < 0.6
    assert skew(1000.0) < 0.05
