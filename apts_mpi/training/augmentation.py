"""Images changed at random as they are drawn: cropped, and flipped from left to right.

What is drawn depends on a key alone, such as the run's seed, the rank and the number of its draw:
a run repeats, on any device, and one that is resumed draws what it would have drawn.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

PADDING = 4  # pixels on every side that a crop may reach into
_STREAM = 0x617567  # sets these random numbers apart from others of the same seed and rank


def augment(x: Tensor, names: Sequence[str], key: Sequence[int]) -> Tensor:
    """The images of a batch, each changed at random by itself.

    "crop" pads an image by 4 pixels of zeros and takes a part of its old size at a random place of
    the 81; "flip" mirrors every other image on average, rows kept. Images are normalised, so that
    zero is the training data's mean grey (or mean of each value), not black.

    Args:
        x: (b, c, h, w) float32, on any device; b may be 0. names: out of "crop" and "flip", in any
            order; none gives x itself. key: whole numbers >= 0 that no other batch of the run has.

    Returns:
        Of the shape, dtype and device of x, which is left as it is.
    """
    if not names or not len(x):
        return x
    b, c, h, w = x.shape
    rng = np.random.default_rng((_STREAM, *key))
    # Both are always drawn, so that to leave one out does not change the other.
    shift = rng.integers(0, 2 * PADDING + 1, size=(2, b, 1))
    mirrored = rng.random((b, 1)) < 0.5
    padding = PADDING if "crop" in names else 0
    down, right = shift if padding else np.zeros_like(shift)
    rows, columns = down + np.arange(h), np.arange(w)[None]
    if "flip" in names:
        columns = np.where(mirrored, w - 1 - columns, columns)
    columns = columns + right
    # One gather for all: where in its padded image each pixel comes from.
    wide = w + 2 * padding
    source = torch.from_numpy((rows[:, :, None] * wide + columns[:, None, :]).reshape(b, 1, h * w))
    padded = torch.nn.functional.pad(x, (padding,) * 4).reshape(b, c, -1)
    index = (
        (source.pin_memory() if x.is_cuda else source)
        .to(x.device, non_blocking=True)
        .expand(b, c, h * w)
    )
    return padded.gather(2, index.expand(b, c, h * w)).reshape(b, c, h, w)
