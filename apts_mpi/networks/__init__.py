"""Networks by name, what a sample of them costs, and what they are trained for.

Imported on first use, as the settings need the sizes of networks without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from apts_mpi.networks.cost import activations as activations
    from apts_mpi.networks.cost import flops as flops
    from apts_mpi.networks.custom import Loss as Loss
    from apts_mpi.networks.custom import OwnLoss as OwnLoss
    from apts_mpi.networks.named import NETWORKS as NETWORKS
    from apts_mpi.networks.named import build as build
    from apts_mpi.networks.task import TASKS as TASKS
    from apts_mpi.networks.task import Task as Task

_HOME = {
    "NETWORKS": "named",
    "TASKS": "task",
    "Loss": "custom",
    "OwnLoss": "custom",
    "Task": "task",
    "activations": "cost",
    "build": "named",
    "flops": "cost",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
