"""Fully connected network."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from torch import nn

from apts_mpi.networks.task import Task


def mlp(inputs: int, hidden: Sequence[int], outputs: int) -> nn.Sequential:
    """Layers of the given widths with ReLU between them; maps (b, ...) to (b, outputs).

    PyTorch's own initialisation (uniform, bounded by one over the root of the inputs) is kept.
    """
    layers: list[nn.Module] = [nn.Flatten()]
    widths = [inputs, *hidden]
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], outputs))


def of_task(task: Task, *, hidden: Sequence[int]) -> nn.Module:
    """The one for a task of samples of any shape; ValueError for text."""
    if task.kind == "language":
        raise ValueError("takes numbers, no text; use --network transformer")
    return mlp(math.prod(task.sample_shape), hidden, task.outputs)
