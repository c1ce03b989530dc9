"""The user's own network: ``--network package.module:function``.

The function takes a ``Task`` and gives a module, or a module and its loss, which maps (outputs,
targets) to (b,) losses, one a sample. docs/networks.md has an example.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from apts_mpi.errors import InputError
from apts_mpi.networks.task import Task

Loss = Callable[[Tensor, Tensor], Tensor]


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
    except Exception as error:  # the user's code may raise anything
        what = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise InputError(
            f"--network {name}: {module} cannot be imported ({what}); start where it lies, or name "
            "its folder in PYTHONPATH"
        ) from error
    if not callable(found):
        raise InputError(f"--network {name}: {module} has no function {attribute}")
    return found


def build(name: str, task: Task) -> tuple[nn.Module, Loss | None]:
    """The user's module and loss; None where it brings none.

    Raises:
        InputError: the function fails, or gives something else.
    """
    made = function(name)
    try:
        given = made(task)
    except Exception as error:
        what = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise InputError(f"--network {name}: fails on {task}: {what}") from error
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
    return module, loss
