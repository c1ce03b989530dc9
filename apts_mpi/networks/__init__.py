"""Networks by name; every rank builds the same one from the same seed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from apts_mpi.networks.mlp import mlp


def build(
    name: str, *, sample_shape: Sequence[int], classes: int, hidden: Sequence[int], seed: int
) -> nn.Module:
    """A network that maps (b, *sample_shape) float32 to (b, classes) logits.

    Args:
        name: "mlp". hidden: widths of its hidden layers. seed: of the initial parameters.
    """
    if name != "mlp":
        raise ValueError(f"no network is named {name!r}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return mlp(math.prod(sample_shape), hidden, classes)
