"""Minibatches: every sample once a pass, the same number on every rank."""

from __future__ import annotations

import math
import tracemalloc
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apts_mpi.data.minibatches.batches import Batches, Leg, Place, _pieces
from apts_mpi.data.minibatches.grouped import GROUP
from apts_mpi.data.shards.partitioning import part

repeatable = settings(max_examples=80, deadline=None, derandomize=True)
sizes = st.integers(1, 200)
windows = st.sampled_from([None, 1, 2, 7])


@repeatable
@given(samples=sizes, more=st.integers(0, 50), batch=sizes, seed=st.integers(0, 99), window=windows)
def test_a_pass_covers_every_sample_exactly_once(
    samples: int, more: int, batch: int, seed: int, window: int | None
) -> None:
    batches = Batches(samples, largest=samples + more, batch=batch, seed=seed, window=window)
    for number in range(3):
        parts = list(batches.one_pass(number))
        assert len(parts) == batches.per_pass
        assert sorted(np.concatenate(parts).tolist()) == list(range(samples))
        lengths = list(map(len, parts))
        assert max(lengths) <= batch or batches.per_pass == 1
        assert max(lengths) - min(lengths) <= 1


@repeatable
@given(parts=st.lists(sizes, min_size=1, max_size=6), batch=sizes)
def test_unequal_parts_have_the_same_number_of_batches(parts: list[int], batch: int) -> None:
    largest = max(parts)
    numbers = {
        len(list(Batches(samples, largest=largest, batch=batch, rank=rank).one_pass(0)))
        for rank, samples in enumerate(parts)
    }
    assert numbers == {math.ceil(largest / batch)}


@repeatable
@given(
    samples=st.integers(2, 200),
    batch=sizes,
    overlap=st.floats(0, 100),
    seed=st.integers(0, 99),
    number=st.integers(0, 3),
    window=windows,
)
def test_overlap_adds_its_percentage_from_the_next_batch(
    samples: int, batch: int, overlap: float, seed: int, number: int, window: int | None
) -> None:
    plain = Batches(samples, largest=samples, batch=batch, seed=seed, window=window)
    wide = Batches(samples, largest=samples, batch=batch, seed=seed, overlap=overlap, window=window)
    own, both = list(plain.one_pass(number)), list(wide.one_pass(number))
    assert len(own) == len(both) == plain.per_pass
    assert max(map(len, own)) <= plain.widest
    assert max(map(len, both)) <= wide.widest
    if plain.per_pass == 1:
        assert both[0].tolist() == own[0].tolist()
        return
    for i, (narrow, widened) in enumerate(zip(own, both, strict=True)):
        following = own[(i + 1) % len(own)]
        extra = min(round(overlap / 100.0 * len(narrow)), len(following))
        assert widened[: len(narrow)].tolist() == narrow.tolist()
        assert widened[len(narrow) :].tolist() == following[:extra].tolist()
        assert len(set(widened.tolist())) == len(widened), "no sample twice in a batch"


@repeatable
@given(samples=st.integers(20, 200), seed=st.integers(0, 99), rank=st.integers(0, 99))
def test_the_order_depends_on_seed_rank_and_pass_only(samples: int, seed: int, rank: int) -> None:
    def order(seed: int, rank: int, number: int, batch: int = 7) -> list[int]:
        batches = Batches(samples, largest=samples, batch=batch, seed=seed, rank=rank)
        return np.concatenate(list(batches.one_pass(number))).tolist()

    first = order(seed, rank, 2)
    np.random.seed(samples)
    assert order(seed, rank, 2) == first
    assert order(seed, rank, 2, batch=5) == first
    others = [order(seed + 1, rank, 2), order(seed, rank + 1, 2), order(seed, rank, 3)]
    assert len({tuple(other) for other in (first, *others)}) == 4, "each of the three matters"


def test_iterating_goes_through_the_passes() -> None:
    batches = Batches(10, largest=10, batch=4, seed=3)
    expected = [b.tolist() for number in range(3) for b in batches.one_pass(number)]
    assert [b.tolist() for b in islice(batches, 9)] == expected
    assert len({tuple(b) for b in expected}) == 9, "every pass is shuffled anew"


@pytest.mark.parametrize("batch", [None, 10, 1000])
def test_the_whole_part_comes_in_its_own_order_every_time(batch: int | None) -> None:
    batches = Batches(10, largest=10, batch=batch, overlap=50.0)
    assert batches.whole
    for indices in islice(batches, 3):
        assert indices.tolist() == list(range(10))
    assert not Batches(10, largest=11, batch=10).whole, "another rank needs two batches"


def test_a_part_smaller_than_its_number_of_batches_has_empty_ones() -> None:
    parts = list(Batches(2, largest=10, batch=2, overlap=100.0).one_pass(0))
    assert len(parts) == 5
    assert sum(map(len, parts)) >= 2
    assert any(len(part) == 0 for part in parts)
    assert set(np.concatenate(parts).tolist()) == {0, 1}


def ranks_of(
    ranks: int, shards: list[int], batch: int, place: Place | None, window: int | None = None
) -> list[Batches]:
    """The sequences of all ranks, at a place of an earlier run or at the start."""
    edges = [part(shards, rank, ranks) for rank in range(ranks)]
    largest = max(stop - start for start, stop in edges)
    made = [
        Batches(stop - start, largest=largest, batch=batch, seed=7, rank=rank, window=window)
        for rank, (start, stop) in enumerate(edges)
    ]
    for batches in made if place else ():
        assert place is not None
        batches.go_to(place, shards, ranks)
    return made


@repeatable
@given(
    shards=st.lists(st.integers(1, 40), min_size=1, max_size=5),
    batch=st.integers(1, 20),
    runs=st.lists(st.tuples(st.integers(1, 6), st.integers(0, 9)), min_size=1, max_size=4),
    window=windows,
)
def test_a_pass_resumed_on_other_numbers_of_ranks_draws_every_sample_once(
    shards: list[int], batch: int, runs: list[tuple[int, int]], window: int | None
) -> None:
    place: Place | None = None
    drawn: list[int] = []
    for ranks, draws in [*runs, (2, 10**6)]:  # the last run draws to the end of the pass
        made = ranks_of(ranks, shards, batch, place, window)
        for _ in range(draws):
            if place is not None and place.number > 0:
                break
            for rank, batches in enumerate(made):
                drawn += (part(shards, rank, ranks)[0] + next(batches)).tolist()
            places = {batches.place(ranks) for batches in made}
            assert len(places) == 1, "all ranks are at the same place"
            place = places.pop()
    assert place == Place(1), "the pass has ended on all ranks"
    assert sorted(drawn) == list(range(sum(shards)))


@repeatable
@given(
    shards=st.lists(st.integers(1, 40), min_size=2, max_size=2),
    draws=st.integers(0, 30),
    window=windows,
)
def test_on_as_many_ranks_the_sequence_goes_on_as_it_would_have(
    shards: list[int], draws: int, window: int | None
) -> None:
    count = ranks_of(3, shards, 3, None)[0].per_pass
    for begun in (None, Place(2, (Leg(3, count, 1),))):  # also a pass that three ranks began
        if begun is not None and count == 1:
            continue
        uninterrupted = ranks_of(2, shards, 3, begun, window)
        for batches in uninterrupted:
            for _ in range(draws):
                next(batches)
        resumed = ranks_of(2, shards, 3, uninterrupted[0].place(2), window)
        for one, other in zip(uninterrupted, resumed, strict=True):
            ahead = one.ahead()
            for _ in range(20):
                assert next(one).tolist() == next(other).tolist() == next(ahead).tolist()


def test_a_place_of_other_settings_is_refused() -> None:
    batches = Batches(10, largest=10, batch=3)
    for leg in (Leg(1, 5, 1), Leg(1, 4, 4), Leg(1, 4, 9)):
        with pytest.raises(ValueError, match="place in the data"):
            batches.go_to(Place(0, (leg,)), [10], 1)


@pytest.mark.parametrize(
    "legs",
    [
        [Leg(10**12, 3, 1)],
        [Leg(2, 10**12, 1)],
        [Leg(2, 30, 1)],
        [Leg(0, 3, 1)],
        [Leg(-1, 3, 1)],
        [Leg(2, 3, 4)],
        [Leg(2, 3, -1)],
        [Leg(1, 40, 40), Leg(2, 1, 1)],
        [Leg(1, 40, 0)] * 10_000 + [Leg(2, 3, 4)],
    ],
)
def test_a_way_that_no_run_can_have_gone_is_refused_at_once(legs: list[Leg]) -> None:
    with pytest.raises(ValueError, match=r"a pass on|batches of"):
        Place(0, tuple(legs)).unseen([20, 20], 0)


# --- the order of a pass that is streamed ---


@repeatable
@given(
    samples=st.integers(2, 400),
    batch=st.integers(1, 50),
    window=st.integers(1, 30),
    seed=st.integers(0, 99),
)
def test_a_group_is_drawn_before_the_next(samples: int, batch: int, window: int, seed: int) -> None:
    batches = Batches(samples, largest=samples, batch=batch, seed=seed, rank=3, window=window)
    if batches.whole:
        return
    order = np.concatenate(batches.one_pass(1))
    # The windows in the order in which they come up: whole groups of them, one after another.
    numbers = order // window
    _, first = np.unique(numbers, return_index=True)
    coming = numbers[np.sort(first)]
    assert len(coming) == math.ceil(samples / window)
    start = 0
    for k in range(0, len(coming), GROUP):
        group = set(coming[k : k + GROUP].tolist())
        size = sum(min((number + 1) * window, samples) - number * window for number in group)
        assert set(numbers[start : start + size].tolist()) == group
        start += size
    assert start == samples


def test_windows_and_samples_come_in_an_order_of_their_own_in_every_pass() -> None:
    batches = Batches(4000, largest=4000, batch=50, seed=1, window=100)
    passes = [np.concatenate(batches.one_pass(number)) for number in range(2)]
    group = slice(0, GROUP * 100)
    for order in passes:
        assert np.abs(np.corrcoef(np.arange(800), order[group])[0, 1]) < 0.2
        inside = order[group][order[group] // 100 == order[0] // 100]
        assert inside.tolist() != sorted(inside.tolist())
    assert set(passes[0][group]) != set(passes[1][group])
    again = Batches(4000, largest=4000, batch=50, seed=1, window=100)
    assert np.array_equal(np.concatenate(again.one_pass(1)), passes[1])


@pytest.mark.parametrize("leg", [0, 2])
def test_without_windows_the_order_is_one_permutation(leg: int) -> None:
    own = np.arange(3, 50)
    key = (5, 2, 7, 2) if leg else (5, 2, 7)
    expected = np.array_split(np.random.default_rng(key).permutation(own), 4)
    for found, piece in zip(_pieces(own, 4, 5, 2, 7, leg), expected, strict=True):
        assert found.tolist() == piece.tolist()


def test_the_order_of_a_streamed_pass_takes_no_room() -> None:
    batches = Batches(10**9, largest=10**9, batch=64, window=10**5)
    tracemalloc.start()
    for index in islice(batches, 30):
        assert len(index) == 64
    assert tracemalloc.get_traced_memory()[1] < 60e6
    tracemalloc.stop()
