"""Random numbers that a user's function draws, by whatever generator."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def seeded(seed: int, devices: Sequence[torch.device] = ()) -> Iterator[None]:
    """Within, torch, numpy and ``random`` draw by the seed; afterwards they continue as before.

    Args:
        seed: from 0 up. devices: GPUs whose generators continue as before too.
    """
    python, legacy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[each for each in devices if each.type == "cuda"]):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # numpy's largest
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)
