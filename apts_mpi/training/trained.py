"""The network that a checkpoint holds, to be judged, exported, or used from Python."""

from __future__ import annotations

import dataclasses
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from apts_mpi.checkpoints.folder import BEST, FOLDER, Checkpoint, newest
from apts_mpi.comm.alone import Alone
from apts_mpi.comm.communicator import Comm
from apts_mpi.data.shards.info import all_moments
from apts_mpi.errors import InputError
from apts_mpi.method.packages import require_package
from apts_mpi.networks.losses import Criterion, criterion
from apts_mpi.networks.task import Task
from apts_mpi.settings.config import TrainConfig
from apts_mpi.training import saved_network
from apts_mpi.training.flat_network import FlatNetwork, flat_network
from apts_mpi.training.optimizer import optimizer
from apts_mpi.training.resuming import Resumed, verify
from apts_mpi.training.run_state import fitting, optimizer_state


@dataclass(frozen=True)
class Trained:
    """A network with the parameters that are evaluated: of APTS, the iterates' average.

    Attributes:
        checkpoint: it is from. config: complete. module: the network.
        parameters: flat, of the module. task: what it does. criterion: what it is judged by.
        classes: names of what it distinguishes.
        mean, std: float64, () or a sample's shape; it takes (x - mean) / std.
    """

    checkpoint: Checkpoint
    config: TrainConfig
    module: nn.Module
    parameters: FlatNetwork
    task: Task
    criterion: Criterion
    classes: tuple[str, ...]
    mean: NDArray[np.float64]
    std: NDArray[np.float64]


def restore(checkpoint: Checkpoint, comm: Comm, *, named: str | None) -> Trained:
    """The network of a checkpoint, on the CPU; every rank calls it.

    Args:
        named: the network that the user names, which one of the user's own needs.

    Raises:
        AgreedError: on every rank, where the checkpoint does not fit itself.
    """
    with comm.together(), fitting(checkpoint):
        trained = _built(checkpoint, named)
    with comm.together():
        require_package(trained.config.optimizer)
    network = trained.parameters
    alone = dataclasses.replace(trained.config, subdomains_per_rank=1)
    method = optimizer(alone, network, comm, trained.task.kind)
    with comm.together(), fitting(checkpoint):
        method.load_state_dict(optimizer_state(checkpoint, network.n), resized=True)
        with method.averaged():
            evaluated = network.vector.clone()
        network.vector.copy_(evaluated)
    return trained


def _built(checkpoint: Checkpoint, named: str | None) -> Trained:
    verify(checkpoint)
    data, config = checkpoint.common["data"], Resumed.of(checkpoint).config
    task, classes = saved_network.task_of(checkpoint), tuple(data["classes"])
    module, loss = saved_network.outline(checkpoint, config, named=named)
    # In place where there is memory: what a module shares among its parts stays shared.
    outlined = any(p.is_meta for p in module.parameters())
    module.load_state_dict(checkpoint.common["network"], assign=outlined)
    saved_network.load_buffers(module, checkpoint.common["unsaved"])
    mean, std = (data[name].numpy().astype(np.float64) for name in ("mean", "std"))
    if mean.shape != std.shape or mean.shape not in all_moments(task.sample_shape):
        raise ValueError(f"mean and std of shapes {mean.shape} and {std.shape}")
    judge = criterion(task, own=loss, units=saved_network.units_of(checkpoint))
    network = flat_network(module, judge, task, config)
    return Trained(checkpoint, config, module, network, task, judge, classes, mean, std)


class Loaded(nn.Module):
    """A trained network that takes samples as they were given to ``shard``, in evaluation mode.

    Attributes:
        network: the trained module. task: what it does. classes: names of what it distinguishes.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, trained: Trained) -> None:
        super().__init__()
        self.network, self.task, self.classes = trained.module, trained.task, trained.classes
        self._units = trained.criterion.units
        for name in ("mean", "std"):
            self.register_buffer(name, torch.as_tensor(getattr(trained, name)), persistent=False)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Logits of classes (b, classes), or of tokens (b, context, tokens), or predictions.

        Args:
            x: (b, *sample_shape) in the units of the arrays that the shards were cut from, of any
                type: images of bytes from 0 to 255, channels first; tokens of a text.

        Returns:
            float32; of a regression (b, outputs) float64 in the units of the targets.
        """
        if self.task.kind == "language":
            outputs: Tensor = self.network(x.long())
            return outputs
        outputs = self.network(((x - self.mean) / self.std).float())
        units = self._units
        return outputs if units is None else units.to(outputs.device).predicted(outputs)


def load(run: str | Path, *, which: str = "last", network: str | None = None) -> Loaded:
    """The trained network of a run, on the CPU; needs no MPI.

        model = apts_mpi.load("run")
        names = [model.classes[i] for i in model(x).argmax(dim=1)]

    Args:
        run: a run directory or a checkpoint's folder. which: "last", or "best" on the validation
            samples. network: the run's own ``--network``, where that is ``package.module:function``
            of yours, whose code is only run if you name it.

    Raises:
        InputError: there is none that can be used; the message says why.
    """
    if which not in ("last", "best"):
        raise InputError(f"which={which!r}: must be 'last' or 'best'")
    comm = Alone()
    checkpoint = newest(chosen(Path(run), best=which == "best"), comm, warnings.warn)
    return Loaded(restore(checkpoint, comm, named=network))


def chosen(run: Path, *, best: bool) -> Path:
    """Where the checkpoint is looked for that is wanted of a run."""
    return run / FOLDER / BEST if best else run
