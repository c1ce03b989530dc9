"""Vectors summed in few bits: the arithmetic against NumPy's, what rounding loses, its state."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apts_mpi.comm.communicator import Comm
from apts_mpi.comm.compression import COMPRESSIONS, CompressedMessage, message_for
from apts_mpi.comm.message import DIGITS, FLAGS, MOST_RANKS, FusedMessage
from tests.comm.few_bits import BLOCKS, FORMS, LOST, rounded

torch.set_num_threads(1)
repeatable = settings(max_examples=30, deadline=None, derandomize=True)
SCALARS = 3


def made(n: int, parts: int, form: str) -> list[CompressedMessage]:
    """Messages of as many ranks."""
    return [CompressedMessage(n, SCALARS, form=form, parts=parts) for _ in range(parts)]


def exchange(messages: list[CompressedMessage]) -> None:
    """What Alltoall and Allgather do between ``pack``, ``combine`` and ``unpack``."""
    for message in messages:
        message.pack()
    for i, message in enumerate(messages):
        for j, other in enumerate(messages):
            message.incoming[j] = other.outgoing[i]
    for message in messages:
        message.combine()
    rows = np.stack([message.own for message in messages])
    for message in messages:
        message.everyone[:] = rows
        message.unpack()


def summed(messages: list[CompressedMessage], vectors: np.ndarray) -> np.ndarray:
    """The sum of (ranks, n) vectors, the same on all ranks bit for bit."""
    for message, vector in zip(messages, vectors, strict=True):
        message.vector.copy_(torch.from_numpy(vector))
        message.load((0.0,))
    exchange(messages)
    for message in messages:
        assert np.array_equal(message.host.view(np.uint32), messages[0].host.view(np.uint32))
    return messages[0].payload.numpy().copy()


class Reference:
    """The formulas of compression.py in NumPy, all ranks in one place."""

    def __init__(self, n: int, parts: int, form: str) -> None:
        self.form, unit = form, {"int8": 64, "int4": 128}.get(form, 1)
        piece = -(-n // parts // unit) * unit
        self.pieces = [slice(min(i * piece, n), min((i + 1) * piece, n)) for i in range(parts)]
        self.e = np.zeros((parts, n), dtype=np.float32)
        self.d = np.zeros(n, dtype=np.float32)

    def sum(self, vectors: np.ndarray) -> np.ndarray:
        u = vectors + self.e
        sent = np.stack([rounded(row, self.form) for row in u])
        self.e = u - sent
        result = np.zeros_like(self.d)
        for piece in self.pieces:
            total = self.d[piece].copy()
            for row in sent:
                total += row[piece]
            result[piece] = rounded(total, self.form)
            self.d[piece] = total - result[piece]
        return result


sizes = st.integers(0, 40) | st.integers(41, 700)
rank_counts = st.integers(2, 6)
seeds = st.integers(0, 10**6)
scales = st.sampled_from([1e-30, 1e-6, 1.0, 1e6, 1e30])


@repeatable
@given(n=sizes, parts=rank_counts, form=st.sampled_from(FORMS), seed=seeds, scale=scales)
def test_the_arithmetic_is_that_of_the_formulas(
    n: int, parts: int, form: str, seed: int, scale: float
) -> None:
    random = np.random.default_rng(seed)
    messages, reference = made(n, parts, form), Reference(n, parts, form)
    for _ in range(4):
        spread = random.normal(size=(parts, n)) * 10.0 ** random.integers(-6, 1, size=(parts, 1))
        vectors = (scale * spread).astype(np.float32)
        assert np.array_equal(summed(messages, vectors), reference.sum(vectors))
        for message in messages:
            message.keep()


@repeatable
@given(
    n=st.integers(1, 300), parts=rank_counts, form=st.sampled_from(FORMS), seed=seeds, scale=scales
)
def test_what_was_applied_differs_from_the_exact_sum_by_the_residuals_alone(
    n: int, parts: int, form: str, seed: int, scale: float
) -> None:
    random = np.random.default_rng(seed)
    messages = made(n, parts, form)
    applied, exact, magnitude = np.zeros(n), np.zeros(n), np.zeros(n)
    for _ in range(30):
        vectors = (scale * random.normal(size=(parts, n))).astype(np.float32)
        result = summed(messages, vectors)
        if random.random() < 0.3:
            for message in messages:
                message.drop()
            continue
        for message in messages:
            message.keep()
        applied += result
        exact += vectors.sum(axis=0, dtype=np.float64)
        magnitude += np.abs(vectors).sum(axis=0, dtype=np.float64)
    lost = np.zeros(n)
    states = [message.state_dict() for message in messages]
    piece = len(states[0]["piece"])
    for state in states:
        lost += state["vector"].numpy()
    lost += torch.cat([state["piece"] for state in states]).numpy()[:n]
    assert len(states) * piece >= n
    # All but what float32 itself rounds, in vector plus residual and in the sums of pieces.
    assert np.abs(applied + lost - exact).max() <= 3 * parts * 2.0**-24 * magnitude.max()
    # And they stay as small as one rounding is.
    one = 2 * LOST[form]
    assert np.abs(lost).max() <= 2 * parts * one * 6 * scale * (1 + one) * parts


def test_residuals_of_random_corrections_stay_bounded_in_every_block() -> None:
    random, parts, n = np.random.default_rng(0), 3, 64 * 12
    layers = 10.0 ** random.uniform(-6, 0, size=n // 64)
    for form in BLOCKS:
        messages, worst = made(n, parts, form), LOST[form] / (1 - LOST[form])
        most, joined = np.zeros(n // 64), np.zeros(n // 64)
        for _ in range(300):
            tails = random.standard_t(2, size=(parts, n // 64, 64))
            vectors = (tails * layers[:, None]).astype(np.float32).reshape(parts, n)
            summed(messages, vectors)
            sent = vectors + np.stack([m.state_dict()["vector"].numpy() for m in messages])
            for message in messages:
                message.keep()
            states = [message.state_dict() for message in messages]
            e = np.stack([state["vector"].numpy() for state in states])
            d = torch.cat([state["piece"] for state in states]).numpy()[:n]
            most = np.maximum(most, np.abs(vectors).reshape(parts, -1, 64).max(axis=(0, 2)))
            joined = np.maximum(joined, np.abs((sent - e).sum(axis=0)).reshape(-1, 64).max(axis=1))
            assert (np.abs(e).reshape(parts, -1, 64).max(axis=(0, 2)) <= worst * most).all()
            assert (np.abs(d).reshape(-1, 64).max(axis=1) <= worst * joined).all()


def test_a_small_layer_is_rounded_by_its_own_measure() -> None:
    random = np.random.default_rng(0)
    for form in BLOCKS:
        vectors = random.normal(size=(2, 256)).astype(np.float32)
        vectors[:, 64:] *= np.float32(1e-5)
        off = np.abs(summed(made(256, 2, form), vectors) - vectors.sum(axis=0))
        assert off[64:].max() < 1e-5 * 3 * 8 * LOST[form]


@pytest.mark.parametrize("form", ["fp16", "int4"])
def test_a_sum_that_is_dropped_leaves_no_trace(form: str) -> None:
    random = np.random.default_rng(0)
    vectors = random.normal(size=(4, 3, 17)).astype(np.float32)
    one, other = made(17, 3, form), made(17, 3, form)
    for messages in (one, other):
        summed(messages, vectors[0])
        for message in messages:
            message.keep()
    summed(other, vectors[1] * 1e6)
    for message in other:
        message.drop()
        message.keep()  # of nothing
    summed(other, vectors[2])  # neither kept nor dropped
    assert np.array_equal(summed(one, vectors[3]), summed(other, vectors[3]))


@repeatable
@given(
    table=st.lists(
        st.lists(st.floats(-(2.0**67), 2.0**67) | st.just(math.nan), min_size=3, max_size=3),
        min_size=2,
        max_size=6,
    ),
    form=st.sampled_from(FORMS),
    copies=st.sampled_from([1, 5, 600]),
)
def test_scalars_are_those_of_a_float32_message(
    table: list[list[float]], form: str, copies: int
) -> None:
    assert len(table) * copies <= MOST_RANKS
    messages, plain = made(2, len(table), form), FusedMessage(2, SCALARS)
    total = np.zeros_like(plain.host)
    for rank, (message, row) in enumerate(zip(messages, table, strict=True)):
        for each in (message, plain):
            each.load(*[row] * copies)
            each.flags[:] = (rank % 2, 0.0)
        total += plain.host
    plain.host[:] = total
    exchange(messages)
    for message in messages:
        assert message.flags.tolist() == plain.flags.tolist()
        assert np.array_equal(message.unload(3), plain.unload(3), equal_nan=True)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_reaches_all_and_stays_in_its_place(form: str, bad: float) -> None:
    messages = made(300, 3, form)
    vectors = np.ones((3, 300), dtype=np.float32)
    vectors[1, 70] = bad
    expected = np.full(300, 3.0)
    if form in BLOCKS:
        expected[64:128] = math.nan
    else:
        expected[70] = bad
    result = summed(messages, vectors)
    assert np.allclose(result, expected, rtol=0.01, equal_nan=True)
    for message in messages:
        message.keep()  # no method does, but nothing is poisoned for good
    assert np.allclose(summed(messages, np.ones((3, 300), dtype=np.float32)), 3.0, rtol=0.02)


@pytest.mark.parametrize("largest", [1e-44, 1e-38, 1.0, 65504.0, 3e38])
def test_no_magnitude_is_lost_to_the_range_of_float16(largest: float) -> None:
    vectors = np.array([[largest, -largest / 3], [0.0, 0.0]], dtype=np.float32)
    result = summed(made(2, 2, "fp16"), vectors)
    assert np.allclose(result, vectors[0], rtol=2.0**-10, atol=1.5e-45)


@pytest.mark.parametrize("form", BLOCKS)
@pytest.mark.parametrize("largest", [1e-35, 3e38])
def test_scales_have_the_range_of_float32(form: str, largest: float) -> None:
    vectors = np.array([[largest, -largest / 3], [0.0, 0.0]], dtype=np.float32)
    off = np.abs(summed(made(2, 2, form), vectors) - vectors[0])
    assert off.max() <= 2 * LOST[form] * largest


@pytest.mark.parametrize(("form", "fewer"), [("bf16", 1.99), ("int8", 3.85), ("int4", 7.5)])
def test_so_many_times_fewer_bytes(form: str, fewer: float) -> None:
    message = CompressedMessage(118_282, SCALARS, form=form, parts=4)
    assert message.host.nbytes / message.nbytes > fewer
    sent = message.outgoing.nbytes + message.own.nbytes - message.outgoing[0].nbytes
    assert message.nbytes <= sent < 1.01 * message.nbytes


def test_half_the_bytes_and_the_buffers_of_the_calls() -> None:
    message = CompressedMessage(10, SCALARS, form="bf16", parts=4)
    tail = SCALARS * (DIGITS + 1) + FLAGS
    assert message.nbytes == 2 * (10 + tail)
    assert message.outgoing.shape == message.incoming.shape == (4, 3)
    assert message.own.shape == (3 + tail,)
    assert message.everyone.shape == (4, 3 + tail)
    for buffer in (message.outgoing, message.incoming, message.own, message.everyone):
        assert buffer.dtype == np.int16
        assert buffer.flags.c_contiguous


@pytest.mark.parametrize("form", FORMS)
def test_a_state_restores_the_residuals_and_nothing_starts_without(form: str) -> None:
    random = np.random.default_rng(0)
    vectors = random.normal(size=(2, 2, 9)).astype(np.float32)
    one, other, fresh = (made(9, 2, form) for _ in range(3))
    summed(one, vectors[0])
    for message, restored in zip(one, other, strict=True):
        message.keep()
        restored.load_state_dict(message.state_dict())
    expected = summed(one, vectors[1])
    assert np.array_equal(summed(other, vectors[1]), expected)
    for message in other:
        message.load_state_dict({})
    without = summed(fresh, vectors[1])
    assert np.array_equal(summed(other, vectors[1]), without)
    assert not np.array_equal(expected, without)
    with pytest.raises(ValueError, match=r"residual vector has shape \(8,\)"):
        one[0].load_state_dict({"vector": torch.zeros(8), "piece": torch.zeros(5)})


def test_one_rank_has_nothing_to_round() -> None:
    comm, device = Comm(), torch.device("cpu")
    for compress in COMPRESSIONS:
        message = message_for(compress, 3, 1, device, comm)
        assert type(message) is FusedMessage
        message.vector.copy_(torch.tensor([0.1, 1e-30, 3.0]))
        assert comm.sum_message(message, (1.0,)) == [1.0]
        assert torch.equal(message.vector, torch.tensor([0.1, 1e-30, 3.0]))
        message.keep()
        message.drop()
        assert message.state_dict() == {}
        message.load_state_dict({})
    with pytest.raises(ValueError, match="compress 'int2' is none of none, bf16, fp16, int8"):
        message_for("int2", 3, 1, device, comm)
    with pytest.raises(ValueError, match="1 cannot exchange"):
        CompressedMessage(3, 1, form="bf16", parts=1)
