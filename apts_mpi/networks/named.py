"""Networks by name; every rank builds the same one from the same seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from apts_mpi.errors import InputError
from apts_mpi.networks import custom, zoo
from apts_mpi.networks.cnn import cnn
from apts_mpi.networks.custom import OwnLoss
from apts_mpi.networks.mlp import of_task
from apts_mpi.networks.resnet import ResNet
from apts_mpi.networks.seeding import Generators
from apts_mpi.networks.task import Task
from apts_mpi.networks.transformer import Transformer

# Each takes the task and, by name, the sizes that `sizes.SIZES` lists for it.
NETWORKS: Mapping[str, Callable[..., nn.Module]] = {
    "mlp": of_task,
    "cnn": cnn,
    "resnet": ResNet,
    "transformer": Transformer,
}


def build(
    name: str, task: Task, sizes: Mapping[str, Any], *, seed: int, pretrained: bool = False
) -> tuple[nn.Module, OwnLoss | None]:
    """A network for a task, and the loss that it brings, if any.

    Args:
        name: of ``NETWORKS``, of a zoo, or the user's own, ``package.module:function``.
        sizes: what the network takes besides the task. seed: of the initial parameters.
        pretrained: whether a zoo's network has the parameters that it is published with.

    Raises:
        InputError: there is no such network for that task; the line says why.
    """
    with Generators(torch.device("cpu")).seeded(seed):
        if zoo.of_library(name):
            module = zoo.build(name, task, sizes, pretrained=pretrained)
            custom.check(name, module, task, None)
            return module, None
        if name not in NETWORKS:
            return custom.build(name, task, sizes)
        try:
            return NETWORKS[name](task, **sizes), None
        except ValueError as error:
            raise InputError(f"--network {name}: {error}") from error
