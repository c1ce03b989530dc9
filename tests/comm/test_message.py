"""Scalars that ride behind a float32 vector: exact sums, the same in any order."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apts_mpi.comm.communicator import Comm
from apts_mpi.comm.message import (
    DIGIT_BITS,
    DIGITS,
    FLAGS,
    FRACTION_BITS,
    MOST_RANKS,
    FusedMessage,
    decode,
    encode,
)

torch.set_num_threads(1)
repeatable = settings(max_examples=80, deadline=None, derandomize=True)
QUANTUM = 2.0**-FRACTION_BITS
LARGEST = math.nextafter(2.0 ** (DIGITS * DIGIT_BITS - FRACTION_BITS), 0.0)
values = st.floats(-LARGEST, LARGEST)


def digits_of(value: float) -> np.ndarray:
    """As a message carries them."""
    return np.array(encode(value), dtype=np.float32)


def value_of(digits: np.ndarray) -> float:
    return decode(digits.tolist())


def truncated(value: float) -> Fraction:
    """The value cut to whole quanta, towards zero."""
    return Fraction(int(Fraction(value) / Fraction(QUANTUM))) * Fraction(QUANTUM)


@repeatable
@given(value=values | st.floats(-1e-10, 1e-10) | st.integers(-(2**43), 2**43).map(float))
def test_a_value_comes_back_to_within_a_quantum(value: float) -> None:
    digits = digits_of(value)
    back = value_of(digits)
    assert abs(Fraction(back) - Fraction(value)) < Fraction(QUANTUM)
    assert Fraction(back) == truncated(value)
    assert np.abs(digits).max() < 2**DIGIT_BITS
    assert value_of(digits_of(-value)) == -back


def test_the_ends_of_the_range_come_back_exactly() -> None:
    for value in (0.0, QUANTUM, -QUANTUM, 1.0, LARGEST, -LARGEST, 2.0**43 + 2.0**-9):
        assert value_of(digits_of(value)) == value
    assert value_of(digits_of(QUANTUM / 2)) == 0.0


@repeatable
@given(
    summands=st.lists(values, min_size=1, max_size=40),
    copies=st.sampled_from([1, 3, 100]),
    seed=st.integers(0, 10**6),
)
def test_a_float32_sum_of_encoded_values_is_exact_in_every_order(
    summands: list[float], copies: int, seed: int
) -> None:
    rows = np.stack([digits_of(value) for value in summands * copies])
    assert len(rows) <= MOST_RANKS
    exact = copies * sum(map(truncated, summands), Fraction(0))
    expected = float(exact)
    order = np.random.default_rng(seed).permutation(len(rows))
    for arranged in (rows, rows[::-1], rows[order]):
        total = np.zeros(DIGITS, dtype=np.float32)
        for row in arranged:
            total += row
        assert value_of(total) == expected


@pytest.mark.parametrize("value", [LARGEST, -LARGEST, 0.1, -1e-15, 1 / 3])
def test_4096_ranks_sum_without_an_error_in_the_last_digit(value: float) -> None:
    assert MOST_RANKS == 4096
    total = np.zeros(DIGITS, dtype=np.float32)
    for _ in range(MOST_RANKS):
        total += digits_of(value)
    assert value_of(total) == float(MOST_RANKS * truncated(value))


@repeatable
@given(
    bad=st.sampled_from([math.nan, math.inf, -math.inf, LARGEST * 2, -LARGEST * 1.01, 1e300]),
    others=st.lists(values, max_size=5),
    at=st.integers(0, 5),
)
def test_one_value_without_a_code_poisons_the_sum(bad: float, others: list[float], at: int) -> None:
    summands = [*others[:at], bad, *others[at:]]
    total = np.stack([digits_of(value) for value in summands]).sum(axis=0, dtype=np.float32)
    assert math.isnan(value_of(total))


@repeatable
@given(
    n=st.integers(0, 9),
    scalars=st.lists(st.floats(-1e6, 1e6) | st.just(math.nan), max_size=4),
    seed=st.integers(0, 10**6),
)
def test_a_message_carries_scalars_without_touching_its_vector(
    n: int, scalars: list[float], seed: int
) -> None:
    message = FusedMessage(n, 4)
    vector = torch.from_numpy(np.random.default_rng(seed).normal(size=n)).float()
    message.load([1e5, -1.0, math.inf, 3.0])  # leftovers of the message before
    message.vector.copy_(vector)
    message.load(scalars)
    assert message.host.dtype == np.float32
    assert message.host.shape == (n + 4 * DIGITS + FLAGS,)
    assert np.array_equal(message.host[:n], vector.numpy())
    back = message.unload(4)
    assert torch.equal(message.vector, vector)
    expected = [*(float(truncated(x)) if x == x else math.nan for x in scalars), 0.0, 0.0, 0.0, 0.0]
    assert np.array_equal(back, expected[:4], equal_nan=True)


def test_the_vector_is_the_message_itself_on_the_cpu() -> None:
    message = FusedMessage(3, 1)
    message.vector.fill_(5.0)
    assert message.host[:3].tolist() == [5.0, 5.0, 5.0]
    message.host[:3] *= 2
    assert message.vector.tolist() == [10.0, 10.0, 10.0]


def test_more_scalars_than_the_message_was_made_for_are_refused() -> None:
    with pytest.raises(ValueError, match="3 scalars do not fit a message made for 2"):
        FusedMessage(1, 2).load([1.0, 2.0, 3.0])


@repeatable
@given(
    table=st.integers(1, 4).flatmap(
        lambda width: st.lists(
            st.lists(
                values | st.floats(-1.0, 1.0) | st.just(math.nan), min_size=width, max_size=width
            ),
            min_size=1,
            max_size=12,
        )
    ),
    cuts=st.sets(st.integers(1, 11)),
)
def test_subdomains_sum_alike_however_they_are_spread_over_ranks(
    table: list[list[float]], cuts: set[int]
) -> None:
    width = len(table[0])

    def over_ranks(ends: list[int]) -> list[float]:
        """As if every rank had the rows from one end to the next."""
        total = FusedMessage(0, width)
        for start, end in zip([0, *ends], [*ends, len(table)], strict=True):
            if start < end:
                message = FusedMessage(0, width)
                message.load(*table[start:end])
                total.host += message.host
        return total.unload(width)

    apart = over_ranks(list(range(1, len(table))))  # a rank each
    together = over_ranks([])
    mixed = over_ranks(sorted(cut for cut in cuts if cut < len(table)))
    assert np.array_equal(apart, together, equal_nan=True)
    assert np.array_equal(apart, mixed, equal_nan=True)
    for i, total in enumerate(together):
        column = [row[i] for row in table]
        if not any(map(math.isnan, column)):
            assert total == float(sum(map(truncated, column), Fraction(0)))


def test_the_most_subdomains_sum_exactly_and_no_more_are_taken() -> None:
    comm = Comm()
    assert comm.sum_scalars(*[(0.1, -LARGEST)] * MOST_RANKS) == [
        float(MOST_RANKS * truncated(0.1)),
        float(-MOST_RANKS * truncated(LARGEST)),
    ]
    with pytest.raises(ValueError, match="4097 rows of scalars on each of 1 ranks: no more than"):
        comm.sum_scalars(*[(1.0,)] * (MOST_RANKS + 1))


@pytest.mark.parametrize("rows", [(), ((1.0, 2.0), (1.0,)), ((1.0,), (1.0, 2.0))])
def test_rows_of_different_lengths_are_refused(rows: tuple[tuple[float, ...], ...]) -> None:
    with pytest.raises(ValueError, match="all need as many"):
        FusedMessage(1, 2).load(*rows)


def test_a_poisoned_scalar_leaves_its_neighbours_and_the_vector_alone() -> None:
    comm, message = Comm(), FusedMessage(2, 3)
    message.vector.copy_(torch.tensor([1.5, -2.5]))
    first, second, third = comm.sum_message(message, (0.25, math.nan, -4.0))
    assert (first, third) == (0.25, -4.0)
    assert math.isnan(second)
    assert message.vector.tolist() == [1.5, -2.5]
    assert comm.traffic.bytes_allreduced == 4 * (2 + 3 * DIGITS + FLAGS)
    assert (comm.traffic.vector_allreduces, comm.traffic.scalar_allreduces) == (1, 0)
