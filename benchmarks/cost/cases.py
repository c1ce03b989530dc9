"""The networks that ``cost`` and ``gpu`` train on random data."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.harness import tables

# Local ones per outer iteration of ``gpu``: eleven drawings, ten gradients, a forward evaluation.
STEPS = 10


@dataclass(frozen=True)
class Case:
    """A network, its task, and the batch of a local step.

    Attributes:
        kind, shape, outputs: of the task. goal: percent of time that the method may add,
            infinite where nothing is aimed at. repetitions: of each measurement of ``cost``.
        steps: local ones per outer iteration of ``cost``, where it is not the default's.
    """

    network: str
    sizes: dict[str, Any]
    kind: str
    shape: tuple[int, ...]
    outputs: int
    batch: int
    goal: float
    repetitions: int = 0
    steps: int | None = None


def mlp(inputs: int, hidden: tuple[int, ...], goal: float, repetitions: int) -> Case:
    """Fully connected layers up to ten classes."""
    sizes = {"hidden": hidden}
    return Case("mlp", sizes, "classification", (inputs,), 10, 250, goal, repetitions)


def _resnet(depth: int) -> Case:
    sizes = {"width": 16, "normalization": "group", "depth": depth}
    return Case("resnet", sizes, "classification", (3, 32, 32), 10, 128, 10.0)


_TRANSFORMER = {"depth": 6, "width": 384, "heads": 6, "tied": False}
GPU = {
    "resnet-20": _resnet(20),
    "resnet-56": _resnet(56),
    "transformer-10M": Case("transformer", _TRANSFORMER, "language", (256,), 65, 32, 5.0),
    # To try the benchmark itself, on a CPU too.
    "mlp-small": Case("mlp", {"hidden": (32,)}, "classification", (64,), 10, 16, math.inf),
}


def _short(case: Case, steps: int) -> Case:
    return replace(case, goal=15.0, repetitions=3, steps=steps)


COST = {
    "784-128-128-10": mlp(784, (128, 128), 20.0, 60),
    "3072-512-256-10": mlp(3072, (512, 256), 15.0, 15),
    "resnet-20": _short(GPU["resnet-20"], 4),
    "transformer-10M": _short(GPU["transformer-10M"], 2),
}


def verdict(name: str, value: float, what: str, goal: float, unit: str = "") -> str:
    """A sentence on a goal that a figure must not exceed; its unit goes behind the goal."""
    met = tables.met(value <= goal)
    return f"{name}: {value:.1f} {what}, goal at most {goal:g}{unit}: {met}."
