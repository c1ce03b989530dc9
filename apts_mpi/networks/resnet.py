"""Residual network for small images (He, Zhang, Ren and Sun 2015, arXiv 1512.03385, section 4.2).

Depth 6n + 2: a 3 x 3 convolution, three stages of n blocks of two 3 x 3 convolutions with width w,
2w and 4w, the resolution halved between stages; global average pooling; one linear layer. Shortcuts
have no parameters (their option A): where the shape changes, every second pixel, padded with
channels of zeros.

GroupNorm (Wu and He 2018, arXiv 1803.08494) by default, as its result for a sample depends on no
other sample. BatchNorm makes the loss of a rank a function of its minibatch's statistics, so that
what is promised by one minibatch and kept on another differs by more than sampling
(docs/networks.md has figures).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apts_mpi.networks.cnn import image_shape
from apts_mpi.networks.task import Task

GROUPS = 8  # of GroupNorm, or as many as divide the channels


def _normalization(kind: str, channels: int) -> nn.Module:
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    if kind == "none":
        return nn.Identity()
    groups = next(g for g in range(min(GROUPS, channels), 0, -1) if channels % g == 0)
    return nn.GroupNorm(groups, channels)


def _convolution(a: int, b: int, *, stride: int = 1, bias: bool = False) -> nn.Conv2d:
    layer = nn.Conv2d(a, b, 3, stride=stride, padding=1, bias=bias)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer


class _Block(nn.Module):
    def __init__(self, a: int, b: int, kind: str) -> None:
        super().__init__()
        stride, bias = (1 if a == b else 2), kind == "none"
        self.conv1 = _convolution(a, b, stride=stride, bias=bias)
        self.norm1 = _normalization(kind, b)
        self.conv2 = _convolution(b, b, bias=bias)
        self.norm2 = _normalization(kind, b)
        self.stride, self.added = stride, b - a

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, h, w) to (b, c', h', w')."""
        y = torch.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        if self.stride > 1:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.added))
        return torch.relu(x + y)


class ResNet(nn.Module):
    """Maps (b, h, w) or (b, c, h, w) to (b, outputs).

    Args:
        task: of images. depth: 6n + 2. width: channels of the first stage.
        normalization: "group", "batch" or "none".

    Raises:
        ValueError: the samples are no images, or there is no network of that depth.
    """

    def __init__(self, task: Task, *, depth: int, width: int, normalization: str) -> None:
        super().__init__()
        channels, _, _ = image_shape(task)
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"has depth 6n + 2 (8, 14, 20, ...), not {depth}")
        self.conv = _convolution(channels, width, bias=normalization == "none")
        self.norm = _normalization(normalization, width)
        blocks, a = list[nn.Module](), width
        for b in (width, 2 * width, 4 * width):
            for _ in range((depth - 2) // 6):
                blocks.append(_Block(a, b, normalization))
                a = b
        self.blocks = nn.Sequential(*blocks)
        self.linear = nn.Linear(a, task.outputs)
        self._plain = len(task.sample_shape) == 2

    def forward(self, x: Tensor) -> Tensor:
        """(b, *sample_shape) to (b, outputs)."""
        x = x.unsqueeze(1) if self._plain else x
        x = self.blocks(torch.relu(self.norm(self.conv(x))))
        logits: Tensor = self.linear(x.mean(dim=(2, 3)))
        return logits
