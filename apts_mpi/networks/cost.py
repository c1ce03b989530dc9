"""What a network costs: operations and memory of a sample."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from apts_mpi.networks.task import Task


@dataclass(frozen=True)
class Cost:
    """Of one sample.

    Attributes:
        flops: floating-point operations of a forward pass, matrix products and convolutions alone,
            as torch counts them; a gradient takes about three times as many.
        activations: numbers that a forward pass leaves for the backward pass, about.
    """

    flops: int
    activations: int


def cost(module: nn.Module, task: Task) -> Cost | None:
    """What a sample costs, by a forward pass; None where the network does not let it be counted.

    The module is left as it was; on the device "meta" nothing is computed.
    """
    language = task.kind == "language"
    device = next(module.parameters()).device
    x = torch.zeros((2, *task.sample_shape), dtype=torch.int64 if language else torch.float32)
    training, counter = module.training, FlopCounterMode(display=False)
    try:
        # Fused kernels of the attention are not counted everywhere, its products are.
        with torch.no_grad(), _sizes(module) as sizes, sdpa_kernel(SDPBackend.MATH), counter:
            module.eval()(x.to(device))
    except Exception:  # the user's own network may do anything
        return None
    finally:
        module.train(training)
    return Cost(counter.get_total_flops() // 2, math.ceil(sum(sizes) / 2))


@contextmanager
def _sizes(module: nn.Module) -> Iterator[list[int]]:
    """Numbers in the outputs of the module's leaves, as it is called."""
    sizes: list[int] = []

    def note(_: nn.Module, __: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            sizes.append(output.numel())

    leaves = [each for each in module.modules() if not list(each.children())]
    handles = [leaf.register_forward_hook(note) for leaf in leaves]
    try:
        yield sizes
    finally:
        for handle in handles:
            handle.remove()
