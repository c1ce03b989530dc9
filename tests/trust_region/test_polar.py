"""Polar factors: against the iteration's polynomial on singular values, by numpy in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from apts_mpi.trust_region.polar import COEFFICIENTS, TURNS, in_blocks, polar_factors

torch.set_num_threads(1)
SIDES = st.integers(1, 24)


def matrix(rows: int, columns: int, *, seed: int = 0, decades: float = 1.0) -> Tensor:
    """Random, its singular values spread over so many decades."""
    rng = np.random.default_rng(seed)
    u, s, v = np.linalg.svd(rng.normal(size=(rows, columns)), full_matrices=False)
    return torch.as_tensor(u * 10.0 ** -np.linspace(0.0, decades, len(s)) @ v).float()


def reference(x: Tensor) -> NDArray[np.float64]:
    """The quintic, iterated on each singular value."""
    u, s, v = np.linalg.svd(x.double().numpy(), full_matrices=False)
    s = s / np.linalg.norm(s)
    a, b, c = COEFFICIENTS
    for _ in range(TURNS):
        s = a * s + b * s**3 + c * s**5
    return np.asarray(u * s @ v)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(SIDES, SIDES), min_size=1, max_size=6), st.floats(0.0, 3.0))
def test_each_is_the_iteration_on_its_singular_values(
    shapes: list[tuple[int, int]], decades: float
) -> None:
    matrices = [matrix(*shape, seed=k, decades=decades) for k, shape in enumerate(shapes)]
    for x, found in zip(matrices, polar_factors(matrices), strict=True):
        assert found.shape == x.shape
        assert np.allclose(found.numpy(), reference(x), atol=2e-3)


@pytest.mark.parametrize("shape", [(6, 40), (40, 6), (12, 12)])
def test_it_descends_nearly_as_steeply_as_the_spectral_norm_lets_it(
    shape: tuple[int, int],
) -> None:
    x = matrix(*shape)
    (found,) = polar_factors([x])
    assert float(torch.linalg.matrix_norm(found, 2)) < 1.25
    steepest = float(torch.linalg.svdvals(x).sum())  # the nuclear norm is dual to the spectral one
    assert float((x * found).sum()) > 0.75 * steepest


def test_lengths_do_not_count() -> None:
    x = matrix(5, 9)
    for factor in (1e-12, 1e12):
        assert torch.allclose(polar_factors([factor * x])[0], polar_factors([x])[0], atol=1e-5)


def test_of_zeros_there_are_zeros() -> None:
    zeros, other = polar_factors([torch.zeros(3, 4), matrix(3, 4)])
    assert not bool(zeros.any())
    assert bool(other.any())


def test_small_singular_values_that_rounding_hides_are_not_blown_up() -> None:
    found = polar_factors([matrix(64, 256, decades=8.0)])[0]
    assert float(torch.linalg.matrix_norm(found, 2)) < 1.25


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(SIDES, SIDES), min_size=1, max_size=4), st.integers(1, 12))
def test_blocks_of_the_shorter_side_have_polar_factors_of_their_own(
    shapes: list[tuple[int, int]], most: int
) -> None:
    matrices = [matrix(*shape, seed=k) for k, shape in enumerate(shapes)]
    for x, found in zip(matrices, in_blocks(matrices, most), strict=True):
        side = int(x.shape[1] < x.shape[0])
        blocks = np.array_split(x.double().numpy(), -(-min(x.shape) // most), axis=side)
        assert max(block.shape[side] for block in blocks) <= most
        parts = [reference(torch.as_tensor(block)) for block in blocks]
        assert np.allclose(found.numpy(), np.concatenate(parts, axis=side), atol=2e-3)


@pytest.mark.parametrize("shape", [(48, 40), (40, 96), (96, 16), (36, 36)])
def test_entries_are_as_large_in_blocks_as_in_the_whole(shape: tuple[int, int]) -> None:
    x = matrix(*shape, decades=0.2)
    whole, blocks = polar_factors([x])[0], in_blocks([x], 12)[0]
    assert not torch.allclose(whole, blocks, atol=1e-2)
    for found in (whole, blocks):  # all singular values near 1
        assert 0.7 < float(found.norm()) / min(shape) ** 0.5 < 1.2
