"""Networks that draw random numbers as they train, as the program trains them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

NETS = """
import math, random
import numpy as np, torch
from torch import nn

def mlp(task, layer):
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(task.sample_shape), 64), nn.ReLU(),
                         layer, nn.Linear(64, task.outputs))

class Noise(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        if kind == "own":
            self.drawing = torch.Generator()
        if kind == "own-numpy":
            self.drawing = np.random.default_rng()
        if kind == "legacy":
            self.drawing = np.random.RandomState(3)
        if kind == "hidden":
            generator = torch.Generator()
            self.drawing = lambda: generator
        self.calls = 0
    def forward(self, x):
        if not self.training:
            return x
        if self.kind == "numpy":
            return x + torch.from_numpy(np.random.randn(*x.shape).astype("f4"))
        if self.kind == "random":
            return x * 2.0 if random.random() < 0.5 else x * 0.0
        if self.kind == "own-numpy":
            return x + torch.from_numpy(self.drawing.standard_normal(x.shape, dtype="f4"))
        if self.kind == "legacy":
            return x * (1.0 + 0.2 * self.drawing.randn())
        if self.kind == "late":
            self.calls += 1
            return nn.functional.dropout(x, 0.5) if self.calls > 40 else x
        generator = self.drawing() if self.kind == "hidden" else self.drawing
        return x + torch.randn(x.shape, generator=generator)

def dropout(task):
    return mlp(task, nn.Dropout(0.5))

def numpy_noise(task):
    return mlp(task, Noise("numpy"))

def depth(task):
    return mlp(task, Noise("random"))

def own(task):
    return mlp(task, Noise("own"))

def legacy(task):
    return mlp(task, Noise("legacy"))

def hidden(task):
    return mlp(task, Noise("hidden"))

def late(task):
    return mlp(task, Noise("late"))

class Loss(nn.Module):
    def __init__(self, trained):
        super().__init__()
        if trained:
            self.t = nn.Parameter(torch.ones(()))
        self.noise = Noise("own")
    def forward(self, outputs, targets):
        return nn.functional.cross_entropy(self.noise(outputs), targets, reduction="none")

def loss(task):
    return mlp(task, nn.Identity()), Loss(False)

def trained_loss(task):
    return mlp(task, nn.Identity()), Loss(True)

def always(task):
    class Always(nn.Module):
        def forward(self, x):
            return nn.functional.dropout(x, 0.1)
    return mlp(task, Always())

def own_numpy(task):
    return mlp(task, Noise("own-numpy"))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "noisy.py").write_text(NETS)
    return tmp_path


def rows(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "metrics.jsonl").read_text()
    return [
        {name: value for name, value in json.loads(row).items() if "seconds" not in name}
        for row in text.splitlines()
    ]


@pytest.mark.parametrize(
    "network", ["dropout", "numpy_noise", "depth", "own", "own_numpy", "legacy", "loss"]
)
def test_the_program_trains_networks_that_draw_numbers(
    network: str, folder: Path, alone: Callable[..., Any], cache: Path
) -> None:
    common = ["--network", f"noisy:{network}", "--epochs", "50", "--threads", "1"]
    run = alone("apts_mpi", [*common, "--out", "run"], folder, cache, 120.0)
    assert run.status == 0, run.err
    assert "warning" not in run.err
    summary = json.loads((folder / "run" / "summary.json").read_text())
    assert summary["test_accuracy"] > 0.9
    assert summary["accepted"] > 2 * summary["rejected"]


def test_a_run_with_dropout_resumes_bit_for_bit(
    folder: Path, alone: Callable[..., Any], cache: Path
) -> None:
    common = ["--network", "noisy:numpy_noise", "--threads", "1"]
    for name, more in (("whole", 8), ("cut", 5)):
        given = [*common, "--iterations", str(more), "--out", name, "--checkpoint-every", "100"]
        assert alone("apts_mpi", given, folder, cache, 120.0).status == 0
    again = ["--resume", "cut", "--network", "noisy:numpy_noise", "--iterations", "8"]
    run = alone("apts_mpi", again, folder, cache, 120.0)
    assert run.status == 0, run.err
    assert rows(folder / "whole") == rows(folder / "cut")


@pytest.mark.parametrize("network", ["dropout", "late"])
def test_a_whole_shard_with_dropout_is_another_batch_each_time(
    network: str, folder: Path, alone: Callable[..., Any], cache: Path
) -> None:
    """What is known of the loss under one mask says nothing of it under the next."""
    common = ["--local-solver", "first-order", "--iterations", "16", "--threads", "1"]
    given = [*common, "--network", f"noisy:{network}", "--out", "run"]
    run = alone("apts_mpi", given, folder, cache, 120.0)
    assert run.status == 0, run.err
    found = rows(folder / "run")
    assert sum(row["accepted"] for row in found) >= 12
    assert found[-1]["loss"] < 0.7 * found[0]["loss"]


@pytest.mark.parametrize(
    ("network", "status", "line"),
    [
        ("hidden", 0, "it draws random numbers that cannot be repeated"),
        ("always", 0, "draws random numbers in evaluation, too"),
        ("trained_loss", 2, "its loss has a parameter 't', which nothing trains"),
    ],
)
def test_what_cannot_be_repeated_is_told_before_training(
    network: str, status: int, line: str, folder: Path, alone: Callable[..., Any], cache: Path
) -> None:
    given = ["--network", f"noisy:{network}", "--iterations", "1", "--threads", "1"]
    run = alone("apts_mpi", [*given, "--out", "run"], folder, cache, 120.0)
    assert run.status == status, run.err
    assert line in run.err + run.out
