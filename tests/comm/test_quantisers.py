"""A vector's numbers in few bits and back: against NumPy's rounding, and what is lost."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apts_mpi.comm.quantisers import QUANTISERS
from tests.comm.few_bits import BLOCKS, FORMS, LOST, rounded

torch.set_num_threads(1)
repeatable = settings(max_examples=60, deadline=None, derandomize=True)


@repeatable
@given(
    n=st.integers(1, 200),
    form=st.sampled_from(FORMS),
    seed=st.integers(0, 10**6),
    scale=st.sampled_from([1e-30, 1e-6, 1.0, 1e6, 1e30]),
)
def test_numbers_come_back_as_numpy_rounds_them(n: int, form: str, seed: int, scale: float) -> None:
    quantiser = QUANTISERS[form]
    size = -(-n // quantiser.unit) * quantiser.unit
    exact = np.zeros((2, size), dtype=np.float32)
    exact[:, :n] = scale * np.random.default_rng(seed).normal(size=(2, n))
    values, back = torch.from_numpy(exact.copy()), torch.zeros(2, size)
    coded = torch.zeros((2, quantiser.words(size)), dtype=torch.int16)
    quantiser.encode(values, coded)
    for row, out in zip(coded, back, strict=True):
        quantiser.decode(row, out)
    assert np.array_equal(back.numpy().ravel(), rounded(exact.ravel(), form))
    assert np.array_equal(values.numpy(), exact - back.numpy())


@repeatable
@given(
    block=st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=64),
    form=st.sampled_from(BLOCKS),
)
def test_a_rounding_loses_little_of_its_blocks_largest_number(
    block: list[float], form: str
) -> None:
    quantiser = QUANTISERS[form]
    values = torch.zeros(2, 2 * quantiser.unit)
    values[1, quantiser.unit : quantiser.unit + len(block)] = torch.tensor(block)
    exact = values.clone()
    coded = torch.zeros((2, quantiser.words(values.shape[1])), dtype=torch.int16)
    quantiser.encode(values, coded)
    back = torch.full_like(values[1], 5.0)
    quantiser.decode(coded[1], back)
    assert torch.equal(exact[1] - back, values[1])
    quantiser.decode(coded[1], back, add=True)
    assert torch.equal(exact[1] - back / 2, values[1])
    assert not values[0].any()
    smallest = 2.0**-126 * 127
    assert float(values.abs().max()) <= max(LOST[form] * float(exact.abs().max()), smallest)
