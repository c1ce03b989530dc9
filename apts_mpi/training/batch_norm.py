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

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from apts_mpi.comm.communicator import Comm
from apts_mpi.training.flat_network import FlatNetwork
from apts_mpi.training.samples import Samples

SAMPLES = 2048  # of a rank, at most


class RunningStatistics:
    """The statistics of a network's BatchNorm layers; without such layers it does nothing.

    Layers in their mode of evaluation are frozen: theirs stay as they are.

    Args:
        network: of this rank. parts: this rank's training samples. batch: samples of a forward
            pass. comm: the ranks.
    """

    def __init__(
        self, network: FlatNetwork, parts: Sequence[Samples], *, batch: int, comm: Comm
    ) -> None:
        self._network, self._parts, self._comm = network, parts, comm
        self._batch = max(min(batch, network.chunk), 2)
        self._layers = [
            layer
            for layer in network.module.modules()
            if isinstance(layer, _BatchNorm) and layer.training and layer.track_running_stats
        ]
        self._buffers = [
            buffer
            for layer in self._layers
            for buffer in (layer.running_mean, layer.running_var)
            if buffer is not None
        ]
        self._message = np.zeros(sum(buffer.numel() for buffer in self._buffers) + 1, np.float32)

    def others(self) -> dict[str, Tensor]:
        """By name, the buffers of the module that are none of these layers'."""
        own = {id(buffer) for layer in self._layers for buffer in layer.buffers(recurse=False)}
        named = self._network.module.named_buffers()
        return {name: buffer for name, buffer in named if id(buffer) not in own}

    @torch.no_grad()
    def refresh(self) -> None:
        """Compute them for the present parameters; every rank calls it."""
        if not self._layers:
            return
        self._network.generators.seed(())  # of the parameters alone
        decays = [layer.momentum for layer in self._layers]
        for layer in self._layers:
            layer.reset_running_stats()
            layer.momentum = None  # torch's word for a plain average over the passes
        seen = 0
        passes = -(-SAMPLES // (self._batch * len(self._parts)))  # of each part, at most
        for samples in self._parts:
            for x, _ in itertools.islice(samples.blocks(self._batch), passes):
                if len(x) > 1:  # one sample has no variance
                    self._network.outputs(x)
                    seen += len(x)
        for layer, decay in zip(self._layers, decays, strict=True):
            layer.momentum = decay
        self._join(seen)

    def _join(self, seen: int) -> None:
        """Average the buffers over the ranks by the samples that each has seen."""
        message = self._message
        own = torch.cat([buffer.flatten() for buffer in self._buffers]).cpu().numpy()
        message[:-1], message[-1] = own * np.float32(seen), seen
        self._comm.allreduce(message)
        joined = torch.from_numpy(message[:-1] / message[-1])
        offset = 0
        for buffer in self._buffers:
            buffer.copy_(joined[offset : offset + buffer.numel()].view(buffer.shape))
            offset += buffer.numel()
        for layer in self._layers:
            if layer.num_batches_tracked is not None:
                layer.num_batches_tracked.fill_(1)  # the same on every rank
