"""Fully connected network."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import nn


def mlp(inputs: int, hidden: Sequence[int], classes: int) -> nn.Module:
    """Layers of the given widths with ReLU between them; maps (b, ...) to (b, classes) logits.

    PyTorch's own initialisation (uniform, bounded by one over the root of the inputs) is kept.
    """
    layers: list[nn.Module] = [nn.Flatten()]
    widths = [inputs, *hidden]
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], classes))
