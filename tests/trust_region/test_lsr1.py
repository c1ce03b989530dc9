"""The compact L-SR1 matrix is the dense SR1 recursion over the pairs it keeps."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from apts_mpi.trust_region.lsr1 import LSR1
from tests.devices import DEVICE

torch.set_num_threads(1)
repeatable = settings(max_examples=60, deadline=None, derandomize=True)
seeds = st.integers(0, 10**6)
Matrix = NDArray[np.float64]
Pair = tuple[Tensor, Tensor]


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def dense(model: LSR1) -> Matrix:
    """B, column by column from its products with the unit vectors."""
    eye = torch.eye(model.n, dtype=model.product(torch.zeros(model.n).double()).dtype)
    return np.stack([model.product(column).cpu().numpy() for column in eye], axis=1)


def double_model(n: int, memory: int, *, tolerance: float = 1e-8) -> LSR1:
    return LSR1(n, memory=memory, device=DEVICE, dtype=torch.float64, tolerance=tolerance)


def recursion(gamma: float, pairs: list[Pair]) -> tuple[Matrix, float]:
    """Dense SR1 from gamma I, and the largest norm on its way: the scale of its rounding."""
    b = gamma * np.eye(len(pairs[0][0]))
    largest = gamma
    for s_tensor, y_tensor in pairs:
        s, y = s_tensor.cpu().numpy(), y_tensor.cpu().numpy()
        r = y - b @ s
        explained = r @ r <= 1e-11 * (y @ y + gamma**2 * (s @ s))
        if explained or abs(s @ r) <= 1e-8 * np.linalg.norm(s) * np.linalg.norm(r):
            continue
        b = b + np.outer(r, r) / (s @ r)
        largest = max(largest, float(np.linalg.norm(b, 2)))
    return b, largest


def random_pairs(rng: np.random.Generator, n: int, count: int) -> list[Pair]:
    """Pairs of a changing symmetric matrix: curvature of both signs, inconsistent with another."""
    pairs = []
    for _ in range(count):
        a = rng.normal(size=(n, n))
        s = rng.normal(size=n) * 10 ** rng.uniform(-2, 2)
        pairs.append((torch.as_tensor(s), torch.as_tensor((a + a.T) @ s)))
    return pairs


@repeatable
@given(n=st.integers(2, 15), memory=st.integers(1, 10), count=st.integers(1, 25), seed=seeds)
def test_b_is_the_dense_recursion_over_the_newest_pairs_kept(
    n: int, memory: int, count: int, seed: int
) -> None:
    model = double_model(n, memory)
    kept: list[Pair] = []
    offered = random_pairs(np.random.default_rng(seed), n, count)
    for s, y in offered:
        if model.update(s, y):
            kept = [*kept, (s, y)][-memory:]
            b, scale = recursion(model.spectrum.gamma, kept)
            assert np.abs(dense(model) - b).max() <= 1e-8 * scale
            residual = float((model.product(s) - y).norm())
            assert residual <= 1e-8 * scale * float(s.norm()), "the secant equation"
    assert model.pairs == len(kept)
    assert kept
    # the spectrum is that of B: its own values and gamma on the rest
    r = len(model.spectrum.eigenvalues)
    everything = np.sort(np.append(model.spectrum.eigenvalues, [model.spectrum.gamma] * (n - r)))
    assert np.abs(np.linalg.eigvalsh(dense(model)) - everything).max() <= 1e-8 * scale


@repeatable
@given(n=st.integers(1, 10), extra=st.integers(0, 2), seed=seeds)
def test_n_independent_pairs_of_a_quadratic_give_its_hessian(n: int, extra: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    q = np.linalg.qr(rng.normal(size=(n, n)))[0]
    hessian = q * rng.choice([-1.0, 1.0], size=n) * rng.uniform(0.5, 3.0, size=n) @ q.T
    model = double_model(n, min(n + extra, 10))
    steps = np.linalg.qr(rng.normal(size=(n, n)))[0] * rng.uniform(0.1, 10, size=n)
    kept = [model.update(torch.as_tensor(s), torch.as_tensor(hessian @ s)) for s in steps.T]
    assert sum(kept) + model.skipped == n
    pairs = [(torch.as_tensor(s), torch.as_tensor(hessian @ s)) for s in steps.T]
    growth = recursion(model.spectrum.gamma, pairs)[1]
    assume(all(kept) and growth < 1e4)  # else a safeguard was at work, or rounding
    assert np.abs(dense(model) - hessian).max() <= 1e-8 * growth


@pytest.mark.parametrize("memory", range(1, 11))
def test_the_oldest_pair_leaves_first(memory: int) -> None:
    n = 14
    rng = np.random.default_rng(memory)
    model = double_model(n, memory)
    offered = random_pairs(rng, n, memory + 4)
    assert all(model.update(s, y) for s, y in offered)
    state = model.state_dict()
    assert model.pairs == memory
    for slot, (s, y) in zip(state["order"], offered[-memory:], strict=True):
        assert torch.equal(state["s"][slot], s)
        assert torch.equal(state["y"][slot], y)
    b, scale = recursion(model.spectrum.gamma, offered[-memory:])
    assert np.abs(dense(model) - b).max() <= 1e-8 * scale
    longer = recursion(model.spectrum.gamma, offered[-memory - 1 :])[0]
    assert np.abs(dense(model) - longer).max() > 1e-3


def test_a_new_model_is_the_identity_and_memory_is_one_to_ten() -> None:
    model = double_model(3, 2)
    v = tensor(1.0, -2.0, 3.0)
    assert torch.equal(model.product(v), v)
    assert model.project(v).size == 0
    for memory in (0, 11):
        with pytest.raises(ValueError, match=f"memory {memory} is outside 1 to 10"):
            LSR1(3, memory=memory)


def learned(n: int = 5) -> LSR1:
    """B = [[1, 2], [2, 4]], then [[-3, 1], [1, *]] on the next two axes; gamma = 5."""
    model = double_model(n, 4)
    eye = torch.eye(n, dtype=torch.float64)
    assert model.update(eye[0], eye[0] + 2 * eye[1])
    assert model.update(eye[2], -3 * eye[2] + eye[3])
    assert model.spectrum.gamma == pytest.approx(5.0)
    return model


def test_the_curvature_test_skips_a_pair_without_curvature_along_its_step() -> None:
    model = learned()
    before = dense(model)
    eye = torch.eye(5, dtype=torch.float64)
    assert not model.update(eye[0], eye[4])
    assert not model.update(eye[0], eye[4] + 1e-9 * eye[0])
    assert not model.update(eye[0], torch.zeros(5, dtype=torch.float64))
    assert not model.update(torch.zeros(5, dtype=torch.float64), eye[0])
    assert (model.pairs, model.skipped) == (2, 4)
    assert np.array_equal(dense(model), before)
    assert model.update(eye[0], eye[4] + 1e-3 * eye[0])


def test_the_denominator_test_skips_a_residual_orthogonal_to_its_step() -> None:
    model = learned()
    before = dense(model)
    eye = torch.eye(5, dtype=torch.float64)
    y = model.product(eye[2])
    assert float(y @ eye[2]) == pytest.approx(-3.0), "the curvature test is not the one at work"
    assert not model.update(eye[2], y + eye[4])
    assert not model.update(eye[2], y + eye[4] + 1e-10 * eye[2])
    assert (model.pairs, model.skipped) == (2, 2)
    assert np.array_equal(dense(model), before)
    assert model.update(eye[2], y + eye[4] - 1e-2 * eye[2])


def test_a_pair_the_model_explains_takes_no_memory() -> None:
    model = learned()
    s = tensor(0.0, 0.0, 2.0, 0.0, 0.0)
    assert not model.update(s, model.product(s))
    assert model.pairs == 2


@pytest.mark.parametrize("curvature", [0.01, 5.0, 300.0])
@pytest.mark.parametrize("earlier", [0, 2])
def test_a_gradient_difference_parallel_to_its_step_is_learned(
    curvature: float, earlier: int
) -> None:
    """Steps along an eigenvector, as on 1-D and isotropic losses: B s = y must still hold."""
    model = learned() if earlier else double_model(5, 4)
    s = tensor(0.0, 0.0, 0.0, 0.0, 2.0)
    model.update(s, curvature * s)
    assert float((model.product(s) - curvature * s).norm()) <= 1e-8 * curvature


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pairs_that_are_not_finite_are_refused(bad: float, dtype: torch.dtype) -> None:
    model = LSR1(3, memory=2, device=DEVICE, dtype=dtype)
    good_s = torch.tensor([1.0, 0.0, 1.0], dtype=dtype)
    good_y = torch.tensor([1.0, 1.0, 0.0], dtype=dtype)
    assert model.update(good_s, good_y)
    before = model.product(good_s)
    poisoned = torch.tensor([1.0, bad, 1.0], dtype=dtype)
    assert not model.update(poisoned, good_y)
    assert not model.update(good_s, poisoned)
    assert (model.pairs, model.skipped) == (1, 2)
    assert torch.equal(model.product(good_s), before)


def test_a_float32_pair_whose_square_overflows_is_refused() -> None:
    model = LSR1(2, memory=2, device=DEVICE)
    assert not model.update(torch.tensor([1.0, 0.0]), torch.tensor([1e30, 1e30]))
    assert model.pairs == 0


@repeatable
@given(memory=st.integers(1, 10), count=st.integers(0, 14), seed=seeds, single=st.booleans())
def test_a_restored_model_has_the_same_spectrum_bit_for_bit_and_goes_on_alike(
    memory: int, count: int, seed: int, single: bool
) -> None:
    n, dtype = 12, torch.float32 if single else torch.float64
    rng = np.random.default_rng(seed)
    model, copy = (LSR1(n, memory=memory, device=DEVICE, dtype=dtype) for _ in range(2))
    pairs = [(s.to(dtype), y.to(dtype)) for s, y in random_pairs(rng, n, count + 3)]
    for s, y in pairs[:count]:
        model.update(s, y)
    copy.load_state_dict(model.state_dict())
    for more in range(4):
        assert copy.spectrum.gamma == model.spectrum.gamma
        assert np.array_equal(copy.spectrum.eigenvalues, model.spectrum.eigenvalues)
        assert np.array_equal(copy.spectrum.mixing, model.spectrum.mixing)
        assert (copy.pairs, copy.skipped) == (model.pairs, model.skipped)
        if more < 3:
            s, y = pairs[count + more]
            assert copy.update(s, y) == model.update(s, y)


def test_a_state_is_its_own_copy_and_fits_no_other_shape() -> None:
    model = learned()
    state = model.state_dict()
    before = dense(model)
    model.update(tensor(1, 1, 1, 1, 1), tensor(3, 1, 2, 1, 0))
    assert not np.array_equal(dense(model), before)
    model.load_state_dict(state)
    assert np.array_equal(dense(model), before)
    for other in (double_model(6, 4), double_model(5, 3)):
        with pytest.raises(ValueError, match="state is for"):
            other.load_state_dict(state)


def test_reset_forgets_every_pair() -> None:
    model = learned()
    model.reset()
    assert model.pairs == 0
    assert np.array_equal(dense(model), np.eye(5))
    assert model.update(tensor(1, 0, 0, 0, 0), tensor(2, 1, 0, 0, 0))
    assert model.spectrum.gamma == pytest.approx(2.5), "nothing of the old gamma is left"


@repeatable
@given(seed=seeds)
def test_float32_pairs_of_a_quadratic_give_its_products_to_float32(seed: int) -> None:
    n, count = 40, 5
    rng = np.random.default_rng(seed)
    q = np.linalg.qr(rng.normal(size=(n, n)))[0]
    hessian = q * rng.uniform(0.5, 3.0, size=n) @ q.T
    model = LSR1(n, memory=count, device=DEVICE)
    steps = [rng.normal(size=n) for _ in range(count)]
    for s in steps:
        assert model.update(torch.as_tensor(s).float(), torch.as_tensor(hessian @ s).float())
    for s in steps:
        product = model.product(torch.as_tensor(s).float()).cpu().numpy()
        assert np.linalg.norm(product - hessian @ s) <= 2e-3 * np.linalg.norm(hessian @ s)
