"""The network that a checkpoint holds: its form, its task, its units, its buffers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from apts_mpi.checkpoints.folder import Checkpoint
from apts_mpi.checkpoints.state_file import REMEDY
from apts_mpi.errors import InputError, fault
from apts_mpi.files.forms import is_finite
from apts_mpi.networks import zoo
from apts_mpi.networks.custom import OwnLoss
from apts_mpi.networks.losses import Units
from apts_mpi.networks.named import NETWORKS, build
from apts_mpi.networks.task import Task
from apts_mpi.settings.config import TrainConfig


def outline(
    checkpoint: Checkpoint, config: TrainConfig, *, named: str | None
) -> tuple[nn.Module, OwnLoss | None]:
    """The network of the settings, and the loss it brings, if any.

    It has no memory for its parameters, which the checkpoint has; but for one of the user's own,
    or of a zoo.

    Args:
        named: the network that the user names. Code of the user's own is only run where the user
            names it: a file that comes from elsewhere may name any.

    Raises:
        InputError: the checkpoint has the parameters of another network, or has a network of the
            user's own that is not named.
    """
    tensors, ours = checkpoint.common["network"], config.network in NETWORKS
    own = not ours and not zoo.of_library(config.network)
    if own and named != config.network:
        raise InputError(
            f"{checkpoint.path}: its network is no part of this program; name it, if its code "
            f"is to be run: --network {config.network}"
        )
    layers = [*(config.hidden or ()), *(config.channels or ())]
    if len(layers) + (config.depth or 0) >= len(tensors) and ours:  # before as many are made
        raise fault(checkpoint.path, f"has no network of {len(layers)} layers", REMEDY)
    try:
        with torch.device("meta" if ours else "cpu"):
            module, loss = build(
                config.network, task_of(checkpoint), config.arguments, seed=config.seed
            )
    except (InputError, OverflowError, RuntimeError, TypeError, ValueError) as error:
        if not ours:
            raise
        what = f"has no network of its settings ({error})"
        raise fault(checkpoint.path, what, REMEDY) from error
    fits(checkpoint, tensors, module.state_dict())
    fits(checkpoint, checkpoint.common["unsaved"], unsaved(module))
    return module, loss


def units_of(checkpoint: Checkpoint) -> Units | None:
    """The units of the targets that the network of a checkpoint is trained on, on the CPU.

    None where those are the targets' own.

    Raises:
        ValueError: they are none.
    """
    names, data = ("target_mean", "target_std"), checkpoint.common["data"]
    if not set(names) <= set(data):
        return None
    values = [data[name] for name in names]
    shape = (task_of(checkpoint).outputs,)
    for value in values:
        if not is_finite(value) or value.dtype != torch.float64 or value.shape != shape:
            raise ValueError("the targets' mean or deviation cannot be")
    mean, std = values
    if task_of(checkpoint).kind != "regression" or not bool((std > 0).all()):
        raise ValueError("the targets' deviation cannot be")
    return Units(mean, std)


def fits(checkpoint: Checkpoint, found: Any, wanted: Mapping[str, Any]) -> None:
    """Make sure that entries of a network's state are of its names, types and shapes.

    Extra state, which is no tensor, is for the network's own ``set_extra_state`` to judge.

    Raises:
        InputError: one is not; the line names it.
    """
    forms = [
        {name: _form(each) for name, each in state.items()}
        for state in (wanted, found if isinstance(found, dict) else {})
    ]
    if forms[0] != forms[1]:
        ours, theirs = forms
        name = next(name for name in [*ours, *theirs] if ours.get(name) != theirs.get(name))
        was, is_ = (form.get(name, "is missing") for form in (theirs, ours))
        what = f"its network's {name[:80]} {was}, and in the network it {is_}"
        raise fault(checkpoint.path, what, REMEDY)


def _form(value: Any) -> str:
    if not isinstance(value, Tensor):
        return "is no tensor"
    kind = "" if value.dtype == torch.float32 else f" and type {str(value.dtype)[6:]}"
    return f"has shape {tuple(value.shape)}{kind}"


def unsaved(module: nn.Module) -> dict[str, Tensor]:
    """The buffers that a module's own state leaves out; a resumed run has them all the same."""
    saved = module.state_dict()
    return {name: buffer for name, buffer in module.named_buffers() if name not in saved}


def load_buffers(module: nn.Module, values: Any) -> None:
    """Give some of a module's buffers the values of a state.

    Raises:
        ValueError: the values are those of other buffers.
    """
    buffers = dict(module.named_buffers())
    for name, value in values.items():
        own = buffers.get(name)
        if own is None or _form(value) != _form(own):
            raise ValueError(f"there is no buffer {name[:80]} like the one of the state")
        own.copy_(value)


def task_of(checkpoint: Checkpoint) -> Task:
    """What the network of a checkpoint does."""
    data = checkpoint.common["data"]
    return Task(data["task"], tuple(data["sample_shape"]), data["outputs"])
