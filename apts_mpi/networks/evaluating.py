"""A module called once; its mode of evaluation and its buffers, and what they were before."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from apts_mpi.networks.task import Task

TRIED = 2  # samples that a network is called with: some layers want more than one


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Within, modules evaluate; afterwards each part of them is in the mode that it was in.

    A part may be frozen in its mode of evaluation by whoever made it.
    """
    training = [part for module in modules for part in module.modules() if part.training]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


@contextmanager
def kept(module: nn.Module, buffers: Mapping[str, Tensor] | None = None) -> Iterator[None]:
    """Within, buffers of a module may be changed or replaced; afterwards they are as before.

    Args:
        buffers: by name, those that are kept; default all.
    """
    which = {id(each) for each in (module.buffers() if buffers is None else buffers.values())}
    before = [
        (part, name, buffer, buffer.detach().clone())
        for part in module.modules()
        for name, buffer in part._buffers.items()
        if id(buffer) in which and buffer is not None
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for part, name, buffer, value in before:
                part._buffers[name] = buffer  # a forward pass may have put another in its place
                buffer.copy_(value)


@torch.no_grad()
def outputs_of(module: nn.Module, task: Task) -> Any:
    """What a module gives for ``TRIED`` samples of zeros; of tokens the last sample's are the
    greatest. A user's own may raise anything."""
    x = torch.zeros((TRIED, *task.sample_shape), device=next(module.parameters()).device)
    if task.kind == "language":
        x = x.long()
        x[-1] = task.outputs - 1
    return module(x)
