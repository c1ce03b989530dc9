"""Convolutional network for images."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from torch import nn

from apts_mpi.networks.mlp import mlp
from apts_mpi.networks.task import Task, looks_channels_last


def cnn(task: Task, *, channels: Sequence[int], hidden: Sequence[int]) -> nn.Module:
    """3 x 3 convolutions with ReLU and 2 x 2 max pooling; then fully connected layers.

    Maps (b, h, w) or (b, c, h, w) to (b, outputs). PyTorch's own initialisation is kept.

    Args:
        channels: of the convolutions. hidden: widths of the fully connected layers.

    Raises:
        ValueError: the samples are no images, or too small for so many poolings.
    """
    depth, height, width = image_shape(task)
    layers: list[nn.Module] = [nn.Unflatten(1, (1, height))] if len(task.sample_shape) == 2 else []
    for a, b in itertools.pairwise([depth, *channels]):
        layers += [nn.Conv2d(a, b, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        height, width = height // 2, width // 2
    if not height or not width:
        raise ValueError(f"{len(channels)} poolings leave nothing of samples {task.sample_shape}")
    flat = math.prod((channels[-1] if channels else depth, height, width))
    return nn.Sequential(*layers, *mlp(flat, hidden, task.outputs).children())


def image_shape(task: Task) -> tuple[int, int, int]:
    """Channels, height and width of a sample; ValueError where it is no image, or turned."""
    shape = task.sample_shape
    if task.kind == "language" or len(shape) not in (2, 3):
        raise ValueError(f"needs images (height, width) or (channels, height, width), not {shape}")
    if looks_channels_last(shape):
        raise ValueError(
            f"needs images (channels, height, width), and {shape} looks like channels last; make "
            "the shards again with `shard arrays --channels-last on`"
        )
    depth, height, width = shape if len(shape) == 3 else (1, *shape)
    return depth, height, width
