"""The user's own network: ``--network package.module:function``.

The function takes a ``Task`` and gives a module, or a module and its loss, which maps (outputs,
targets) to (b,) losses, one a sample. Without a loss the outputs must be those that the task's own
takes. docs/networks.md has an example.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from apts_mpi.errors import InputError
from apts_mpi.modes import evaluating
from apts_mpi.networks.task import Task

Loss = Callable[[Tensor, Tensor], Tensor]
_TRIAL = 2  # samples that a network is tried on: some layers want more than one


def function(name: str) -> Callable[[Task], Any]:
    """The function of that name, its module imported from the path or the working directory.

    Raises:
        InputError: there is none; the line says what is missing.
    """
    module, _, attribute = name.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")  # where `python -m` looks too, but not every launcher's script
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        remedy = "start where it lies, or name its folder in PYTHONPATH"
        if module.endswith(".py"):
            remedy = f"name the module, not its file: {Path(module).stem}:{attribute}"
        raise InputError(
            f"--network {name}: {module} cannot be imported ({_told(error)}); {remedy}"
        ) from error
    if not callable(found):
        raise InputError(f"--network {name}: {module} has no function {attribute}")
    return found


@dataclass(frozen=True)
class OwnLoss:
    """A loss that a network brings.

    Attributes:
        of: (outputs, targets) to (b,) losses. answers: whether the outputs are of the task's shape,
            so that right ones can be counted.
    """

    of: Loss
    answers: bool


def build(name: str, task: Task) -> tuple[nn.Module, OwnLoss | None]:
    """The user's module and loss; None where it brings none.

    Raises:
        InputError: the function fails, or gives something else.
    """
    made = function(name)
    try:
        given = made(task)
    except (Exception, SystemExit) as error:
        raise InputError(f"--network {name}: fails on {task}: {_told(error)}") from error
    module, loss = given if isinstance(given, tuple) and len(given) == 2 else (given, None)
    if not isinstance(module, nn.Module) or not (loss is None or callable(loss)):
        raise InputError(
            f"--network {name}: gave {type(given).__name__}; give a torch.nn.Module, or a pair of "
            "it and a loss"
        )
    parameters = [p for p in module.parameters() if p.requires_grad]
    if not parameters or any(p.dtype != torch.float32 for p in parameters):
        found = ", ".join(sorted({str(p.dtype) for p in parameters})) or "none"
        raise InputError(
            f"--network {name}: needs trainable parameters of torch.float32, and has {found}"
        )
    outputs = _tried(name, module, task)
    wanted = (_TRIAL, *task.output_shape)
    if loss is None and outputs != wanted:
        raise InputError(
            f"--network {name}: gave {outputs} for {_TRIAL} samples of shape {task.sample_shape}; "
            f"the loss of a {task.kind} takes {wanted}: mend the network, or give a loss with it"
        )
    return module, None if loss is None else OwnLoss(loss, outputs == wanted)


@torch.no_grad()
def _tried(name: str, module: nn.Module, task: Task) -> object:
    """The shape of the outputs for samples of zeros, or of what type they are.

    Raises:
        InputError: the network fails on them.
    """
    dtype = torch.int64 if task.kind == "language" else torch.float32
    device = next(module.parameters()).device
    x = torch.zeros((_TRIAL, *task.sample_shape), dtype=dtype, device=device)
    try:
        with evaluating(module):
            outputs = module(x)
    except (Exception, SystemExit) as error:
        raise InputError(
            f"--network {name}: fails on {_TRIAL} samples of shape {task.sample_shape} "
            f"({_told(error)})"
        ) from error
    return tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
