"""A network with its loss over samples, its parameters as one vector."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_map

from apts_mpi.comm.replicas import untrained
from apts_mpi.method.flat import FlatParameters
from apts_mpi.method.layers import Layer, layers
from apts_mpi.networks.cost import activations
from apts_mpi.networks.evaluating import evaluating
from apts_mpi.networks.losses import Criterion
from apts_mpi.networks.seeding import Generators
from apts_mpi.networks.task import Task
from apts_mpi.settings.config import TrainConfig

# Samples per forward pass: bounds the memory of activations when a batch is a whole shard.
CHUNK = 8192
_ACTIVATIONS = 2**26  # numbers that a forward pass may leave, 256 MiB


def chunk_for(activations: int) -> int:
    """Samples per forward pass of a network that leaves so many numbers per sample."""
    return min(max(_ACTIVATIONS // max(activations, 1), 1), CHUNK)


def _is_real(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


class FlatNetwork(FlatParameters):
    """A network with its loss over samples.

    Args:
        module: maps (b, *sample_shape) to what the loss takes.
        loss: maps (outputs, targets) to (b,) losses, one per sample. Samples are averaged here in
            float64, so that small reductions of the loss are not lost in rounding.
        chunk: samples per forward pass.
        autocast: whether the network, not its loss, computes in bfloat16 where torch does so.
        compiled: whether torch.compile makes the network's code.
        drawing: other modules that may draw random numbers, the loss.

    Attributes:
        generators: what its forward passes may draw random numbers from.
    """

    def __init__(
        self,
        module: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor],
        *,
        chunk: int = CHUNK,
        autocast: bool = False,
        compiled: bool = False,
        drawing: Sequence[nn.Module] = (),
    ) -> None:
        super().__init__(module.parameters())
        self.frozen = untrained(module)  # by their names, with the buffers
        several = any(isinstance(part, _BatchNorm) for part in module.modules())
        self.module, self.chunk = module, max(chunk, 2 if several else 1)
        self.generators = Generators(self.vector.device, module, *drawing)
        self._loss, self._autocast, self._drawing = loss, autocast, drawing
        self._call: Callable[[Tensor], Tensor] = torch.compile(module) if compiled else module

    def layers(self) -> list[Layer]:
        """What each parameter is to the network, in the order of the vector."""
        return layers(self._parameters, self.module)

    def outputs(self, x: Tensor) -> Tensor:
        """Of (b, *sample_shape): float32, whatever the network computes in; tokens as int64."""
        if not x.is_floating_point():
            x = x.long()
        if not self._autocast:
            return self._call(x)
        # Casts are not cached: the parameters change under torch's eyes, as one vector.
        with torch.autocast(x.device.type, dtype=torch.bfloat16, cache_enabled=False):
            outputs = self._call(x)
        return tree_map(lambda each: each.float() if _is_real(each) else each, outputs)

    def loss_and_gradient(self, x: Tensor, y: Tensor) -> float:
        """Mean loss of the samples; its gradient is left in ``gradient``."""
        return float(self.start_gradient(x, y))

    def start_gradient(self, x: Tensor, y: Tensor) -> Tensor:
        """The same, without waiting for a GPU: the mean loss as a float64 tensor there, ()."""
        total = torch.zeros((), dtype=torch.float64, device=self.vector.device)
        if not len(x):
            self.gradient.zero_()
        for i, piece in enumerate(self._pieces(len(x))):
            losses = self._loss(self.outputs(x[piece]), y[piece])
            part = losses.sum(dtype=torch.float64) / len(x)
            if i == 0:
                self.backward(part)
            else:
                part.backward()
            total += part.detach()
        return total

    def _pieces(self, samples: int) -> Iterator[slice]:
        """Of a forward pass each; one sample alone, which BatchNorm cannot take, is not left."""
        start = 0
        while start < samples:
            stop = start + self.chunk
            if samples - stop == 1 and self.chunk > 1:
                stop += -1 if self.chunk > 2 else 1
            yield slice(start, stop)
            start = stop

    @torch.no_grad()
    def loss(self, x: Tensor, y: Tensor) -> float:
        """Mean loss of the samples, without a gradient: a third of the work."""
        total = 0.0
        for piece in self._pieces(len(x)):
            losses = self._loss(self.outputs(x[piece]), y[piece])
            total += float(losses.sum(dtype=torch.float64)) / len(x)
        return total

    def evaluate(
        self, blocks: Iterable[tuple[Tensor, Tensor]], criterion: Criterion
    ) -> tuple[float, float]:
        """Sums over samples of the plain loss and of right answers, in the module's eval mode.

        A network that draws random numbers there too draws the same ones each time.
        """
        total = right = 0.0
        with closing(self.evaluated(blocks)) as found:  # at once, also where a loss fails
            for outputs, y in found:
                total += float(criterion.plain(outputs, y).sum(dtype=torch.float64))
                if criterion.right is not None:
                    right += float(criterion.right(outputs, y).sum(dtype=torch.float64))
        return total, right

    def evaluated(
        self, blocks: Iterable[tuple[Tensor, Tensor]]
    ) -> Generator[tuple[Any, Tensor], None, None]:
        """The outputs for each block of samples in the module's eval mode, beside its targets.

        To be closed by whoever does not take all of them: until then the module stays in that mode.
        """
        self.generators.seed(())
        with evaluating(self.module, *self._drawing), torch.no_grad():
            for x, y in blocks:
                yield self.outputs(x), y


def flat_network(
    module: nn.Module, criterion: Criterion, task: Task, config: TrainConfig
) -> FlatNetwork:
    """The network with the loss it is trained on, as the settings have it computed."""
    held = activations(module, task)
    return FlatNetwork(
        module,
        criterion.train,
        chunk=CHUNK if held is None else chunk_for(held),
        autocast=config.precision == "bf16",
        compiled=config.compile,
        drawing=() if criterion.module is None else (criterion.module,),
    )
