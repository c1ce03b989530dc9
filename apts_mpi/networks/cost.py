"""What a network costs: operations and memory of a sample."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from apts_mpi.networks.evaluating import TRIED, evaluating, kept, outputs_of
from apts_mpi.networks.task import Task


def flops(module: nn.Module, task: Task) -> int | None:
    """Floating-point operations of a sample's forward pass; None where they cannot be counted.

    Of matrix products and convolutions alone, as torch counts them; a gradient takes about three
    times as many. On the device "meta" nothing is computed.
    """
    # Takes seconds, as it brings torch's compiler with it, which most runs never need.
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    # Fused kernels of the attention are not counted everywhere, its products are.
    with sdpa_kernel(SDPBackend.MATH), counter:
        ran = _runs(module, task)
    return counter.get_total_flops() // TRIED if ran else None


def activations(module: nn.Module, task: Task) -> int | None:
    """Numbers that a sample's forward pass leaves for the backward pass, about; None as above."""
    with _sizes(module) as sizes:
        ran = _runs(module, task)
    return math.ceil(sum(sizes) / TRIED) if ran else None


def _runs(module: nn.Module, task: Task) -> bool:
    """Call the module once, which is left as it was; whether it lets itself be called."""
    try:
        with evaluating(module), kept(module):
            outputs_of(module, task)
    except Exception:  # the user's own network may raise anything
        return False
    return True


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
