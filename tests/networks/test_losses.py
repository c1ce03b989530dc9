"""Losses and figures against NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from apts_mpi.comm.communicator import Comm
from apts_mpi.errors import InputError
from apts_mpi.networks.custom import OwnLoss
from apts_mpi.networks.losses import balanced, criterion
from apts_mpi.networks.task import Task
from apts_mpi.training.evaluation import class_counts, evaluate
from apts_mpi.training.flat_network import FlatNetwork
from apts_mpi.training.samples import Held
from tests.devices import DEVICE

torch.set_num_threads(1)

LABELS = Task("classification", (4,), 3)
TEXT = Task("language", (5,), 6)
NUMBERS = Task("regression", (4,), 2)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


@given(
    smoothing=st.floats(0, 0.9),
    weights=st.none() | st.lists(st.floats(0.1, 5), min_size=3, max_size=3),
    seed=st.integers(0, 99),
)
def test_smoothed_and_weighted_cross_entropy(
    smoothing: float, weights: list[float] | None, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    logits, labels = rng.normal(size=(7, 3)), rng.integers(0, 3, 7)
    target = (1 - smoothing) * np.eye(3)[labels] + smoothing / 3
    wanted = -(target * log_softmax(logits)).sum(1)
    if weights is not None:
        wanted *= np.array(weights)[labels]
    judged = criterion(LABELS, smoothing=smoothing, weights=weights, device=DEVICE)
    outputs, targets = torch.as_tensor(logits).float(), torch.as_tensor(labels)
    assert np.allclose(judged.train(outputs, targets).cpu().numpy(), wanted, atol=1e-5)
    plain = -log_softmax(logits)[np.arange(7), labels]
    assert np.allclose(judged.plain(outputs, targets).cpu().numpy(), plain, atol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_token_losses_are_a_windows_mean(smoothing: float) -> None:
    rng = np.random.default_rng(0)
    logits, tokens = rng.normal(size=(4, 5, 6)), rng.integers(0, 6, (4, 5))
    target = (1 - smoothing) * np.eye(6)[tokens] + smoothing / 6
    wanted = -(target * log_softmax(logits)).sum(2).mean(1)
    judged = criterion(TEXT, smoothing=smoothing)
    outputs, targets = torch.as_tensor(logits).float(), torch.as_tensor(tokens.astype("u1"))
    assert np.allclose(judged.train(outputs, targets).cpu().numpy(), wanted, atol=1e-5)
    assert judged.right is not None
    share = (logits.argmax(2) == tokens).mean(1)
    assert np.allclose(judged.right(outputs, targets).cpu().numpy(), share)


def judged_by(task: Task, outputs: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
    """The figures of a network that gives these outputs."""

    class Given(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.nothing = nn.Parameter(torch.zeros(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.as_tensor(outputs).float()[x.long().flatten()]

    judged = criterion(task)
    network = FlatNetwork(Given(), judged.train, chunk=2)
    x = torch.arange(len(targets)).float()
    half = len(targets) // 2
    parts = [
        Held(x[part], torch.as_tensor(targets[part]), len(targets))
        for part in (slice(0, half), slice(half, None))
    ]
    return evaluate(network, parts, Comm(), task, judged)


def test_figures_of_each_task() -> None:
    rng = np.random.default_rng(1)
    logits, labels = rng.normal(size=(9, 3)), rng.integers(0, 3, 9)
    figures = judged_by(LABELS, logits, labels)
    loss = -log_softmax(logits)[np.arange(9), labels].mean()
    assert figures == pytest.approx({"loss": loss, "accuracy": (logits.argmax(1) == labels).mean()})
    logits, tokens = rng.normal(size=(9, 5, 6)), rng.integers(0, 6, (9, 5))
    figures = judged_by(TEXT, logits, tokens)
    loss = -np.take_along_axis(log_softmax(logits), tokens[..., None], 2).mean()
    assert figures["loss"] == pytest.approx(loss, rel=1e-5)
    assert figures["perplexity"] == pytest.approx(np.exp(loss), rel=1e-5)
    assert figures["accuracy"] == pytest.approx((logits.argmax(2) == tokens).mean())
    outputs = rng.normal(size=(9, 2)).astype("f4")
    numbers = rng.normal(3, 1, size=(9, 2)).astype("f4")
    figures = judged_by(NUMBERS, outputs, numbers)
    loss = ((outputs - numbers) ** 2).mean()
    assert figures["loss"] == pytest.approx(loss, rel=1e-5)
    left = ((outputs - numbers) ** 2).mean(0) / numbers.var(0)
    assert figures["r2"] == pytest.approx(1 - left.mean(), rel=1e-5)
    assert figures["accuracy"] is None
    assert judged_by(NUMBERS, outputs, np.ones((9, 2), "f4"))["r2"] is None


def test_balanced_weights_give_every_class_the_same_sum() -> None:
    y = torch.tensor([0, 0, 0, 2, 2, 0])
    counts = class_counts([Held(y, y, 6)], 3, Comm())
    assert counts == [4, 0, 2]
    weights = balanced(counts)
    assert weights == [0.75, 0.0, 1.5]
    assert sum(w * c for w, c in zip(weights, counts, strict=True)) == 6


def test_right_answers_of_ones_own_loss_are_counted_where_there_are_any() -> None:
    plain = criterion(LABELS)
    for answers, right in ((True, plain.right), (False, None)):
        found = criterion(LABELS, own=OwnLoss(plain.plain, answers))
        assert found.right is right
        assert found.own


def test_what_a_task_has_no_use_for_is_refused() -> None:
    own = OwnLoss(criterion(LABELS).plain, answers=True)
    for told, task, options in (
        ("no labels", NUMBERS, {"smoothing": 0.1}),
        ("no classes", TEXT, {"weights": [1.0] * 6}),
        ("2 weights for 3 classes", LABELS, {"weights": [1.0, 2.0]}),
        ("brings one", LABELS, {"smoothing": 0.1, "own": own}),
    ):
        with pytest.raises(InputError, match=told):
            criterion(task, **options)
