"""A module's mode of evaluation, and the one it had before."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Within, the module evaluates; afterwards each part of it is in the mode that it was in.

    A part may be frozen in its mode of evaluation by whoever made it.
    """
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True
