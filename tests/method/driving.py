"""To run what takes one minibatch at a time, from a function that draws them."""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeVar

from apts_mpi.trust_region.objective import Batch, Draw

T = TypeVar("T")


def driven(steps: Generator[None, Batch, T], draw: Draw) -> T:
    """What it returns in the end."""
    try:
        next(steps)
        while True:
            steps.send(draw())
    except StopIteration as end:
        done: T = end.value
        return done
