"""Running statistics of BatchNorm, made where the network is evaluated and joined over all ranks.

While training, a BatchNorm layer uses the statistics of the samples of a forward pass; its running
ones are whatever the last trial points left, those that were rejected among them, and nothing uses
them. Before the network is evaluated or saved they are computed anew, for the very parameters that
are evaluated (of APTS the iterates' average), from training samples of every rank (an idea of Wu
and Johnson 2021, arXiv 2105.07576). They are means over forward passes, then over ranks by samples,
of a pass's mean and variance, as torch's own running averages are: how far the means of the passes
lie apart is not in the variance.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from apts_mpi.comm.communicator import Comm
from apts_mpi.method.options import shown

SAMPLES = 2048  # of a rank, at most


class RunningStatistics:
    """The statistics of a module's BatchNorm layers; without such layers it does nothing.

    Layers in their mode of evaluation are frozen: theirs stay as they are.

    Args:
        module: of this rank. comm: the ranks.
    """

    def __init__(self, module: nn.Module, comm: Comm) -> None:
        self._module, self._comm = module, comm
        self.layers = [
            layer
            for layer in module.modules()
            if isinstance(layer, _BatchNorm) and layer.training and layer.track_running_stats
        ]
        self._buffers = [
            buffer
            for layer in self.layers
            for buffer in (layer.running_mean, layer.running_var)
            if buffer is not None
        ]
        self._message = np.zeros(sum(buffer.numel() for buffer in self._buffers) + 1, np.float32)

    def others(self) -> dict[str, Tensor]:
        """By name, the buffers of the module that are none of these layers'."""
        own = {id(buffer) for layer in self.layers for buffer in layer.buffers(recurse=False)}
        named = self._module.named_buffers()
        return {name: buffer for name, buffer in named if id(buffer) not in own}

    @torch.no_grad()
    def collect(self, passes: Iterable[int]) -> int:
        """Compute this rank's for the present parameters; returns the samples that they are of.

        Args:
            passes: forward passes of the module, made as they are asked for, the samples of each.
        """
        if not self.layers:
            return 0
        decays = [layer.momentum for layer in self.layers]
        for layer in self.layers:
            layer.reset_running_stats()
            layer.momentum = None  # torch's word for a plain average over the passes
        try:
            return sum(passes)
        finally:
            for layer, decay in zip(self.layers, decays, strict=True):
                layer.momentum = decay

    def join(self, seen: int) -> None:
        """Average them over the ranks by the samples that each has seen; every rank calls it."""
        if not self.layers:
            return
        message = self._message
        own = torch.cat([buffer.flatten() for buffer in self._buffers]).cpu().numpy()
        message[:-1], message[-1] = own * np.float32(seen), seen
        self._comm.allreduce(message)
        joined = torch.from_numpy(message[:-1] / message[-1])
        offset = 0
        for buffer in self._buffers:
            buffer.copy_(joined[offset : offset + buffer.numel()].view(buffer.shape))
            offset += buffer.numel()
        for layer in self.layers:
            if layer.num_batches_tracked is not None:
                layer.num_batches_tracked.fill_(1)  # the same on every rank


@contextmanager
def renewed(module: nn.Module | None, batches: Iterable[Any], comm: Comm) -> Iterator[None]:
    """Within, a module's statistics are those of its present parameters; after it, the old ones.

    Every rank calls it; without a module it does nothing.

    Args:
        module: in training mode. batches: of this rank's training samples, as a DataLoader gives
            them: the module's input, or a tuple or list that begins with it; the first SAMPLES.

    Raises:
        ValueError, TypeError, AgreedError: on every rank, where a rank's batches do not go through.
    """
    if module is None:
        yield
        return
    statistics = RunningStatistics(module, comm)
    with comm.together():
        if not module.training:
            raise ValueError(
                "averaged(model, batches) takes a model in training mode, whose BatchNorm layers "
                "are not frozen: call model.eval() within"
            )
    buffers = [each for layer in statistics.layers for each in layer.buffers(recurse=False)]
    before = [each.clone() for each in buffers]
    try:
        with comm.together():
            seen = statistics.collect(_passes(module, batches))
        statistics.join(seen)
        yield
    finally:
        for buffer, old in zip(buffers, before, strict=True):
            buffer.copy_(old)


def _passes(module: nn.Module, batches: Iterable[Any]) -> Iterator[int]:
    device, left = next(module.parameters()).device, SAMPLES
    for batch in batches:
        x = batch[0] if isinstance(batch, tuple | list) else batch
        if not isinstance(x, Tensor):
            raise TypeError(
                f"a batch of averaged(model, batches) begins with {shown(x)}: give tensors, the "
                "model's input, or tuples that begin with it"
            )
        if len(x) > 1:  # one sample has no variance
            module(x.to(device))
            left -= len(x)
            yield len(x)
        if left <= 0:
            return
    if left == SAMPLES:
        raise ValueError("averaged(model, batches) has no batch of two samples or more on a rank")
