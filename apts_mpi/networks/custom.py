"""The user's own network: ``--network package.module:function``.

The function takes a ``Task`` as its parameter ``task``, and gives a module, or a module and its
loss, which maps (outputs, targets) to (b,) losses, one per sample. Without a loss the outputs must
be those that the task's own takes. docs/networks.md has an example.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from apts_mpi.errors import InputError, user_code
from apts_mpi.networks.asking import refuse_library, refuse_other
from apts_mpi.networks.evaluating import TRIED, evaluating, kept, outputs_of
from apts_mpi.networks.task import Task

Loss = Callable[[Tensor, Tensor], Tensor]


def function(name: str) -> Callable[..., Any]:
    """The function of that name, its module imported from the path or the working directory.

    Raises:
        InputError: there is none; the line says what is missing.
    """
    module, _, attribute = name.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")  # where `python -m` looks too, but not every launcher's script
    remedy = "start where it lies, or name its folder in PYTHONPATH"
    if module.endswith(".py"):
        remedy = f"name the module, not its file: {Path(module).stem}:{attribute}"
    with user_code(f"--network {name}: {module} cannot be imported", f"; {remedy}"):
        found = getattr(importlib.import_module(module), attribute, None)
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


def build(name: str, task: Task, arguments: Mapping[str, Any]) -> tuple[nn.Module, OwnLoss | None]:
    """The user's module and loss; None where it brings none.

    Args:
        arguments: of the function, by name, besides ``task``.

    Raises:
        InputError: the function fails, or gives something else.
    """
    refuse_library(name)
    made = function(name)
    refuse_other(name, made, arguments)
    with user_code(f"--network {name}: fails on {task}"):
        given = made(task=task, **arguments)
    module, loss = given if isinstance(given, tuple) and len(given) == 2 else (given, None)
    if not isinstance(module, nn.Module) or not (loss is None or callable(loss)):
        raise InputError(
            f"--network {name}: gave {type(given).__name__}; give a torch.nn.Module, or a pair of "
            "it and a loss"
        )
    if isinstance(loss, nn.Module):
        trained = next((key for key, p in loss.named_parameters() if p.requires_grad), None)
        if trained is not None:
            raise InputError(
                f"--network {name}: its loss has a parameter {trained[:80]!r}, which nothing "
                "trains; make it one of the network's, and hand it to the loss with the outputs"
            )
    answers = check(name, module, task, loss)
    return module, None if loss is None else OwnLoss(loss, answers)


def check(name: str, module: nn.Module, task: Task, loss: Loss | None) -> bool:
    """See that a module can be trained for a task; whether its outputs are of the task's shape.

    Raises:
        InputError: it cannot.
    """
    if any(map(is_lazy, (*module.parameters(), *module.buffers()))):
        with _user_code(name, task), evaluating(module):
            outputs_of(module, task)  # which makes them
    _check_tensors(name, module)
    outputs = _tried(name, module, task)
    wanted = (TRIED, *task.output_shape)
    if loss is None and outputs != wanted:
        raise InputError(
            f"--network {name}: gave {outputs} for {TRIED} samples of shape {task.sample_shape}; "
            f"the loss of a {task.kind} takes {wanted}: mend the network, or give a loss with it"
        )
    return outputs == wanted


def _check_tensors(name: str, module: nn.Module) -> None:
    """Make sure that a run can train and save what a module holds, and make it so where it is easy.

    Raises:
        InputError: it cannot; the line names the parameter or buffer.
    """
    trained = {key: p for key, p in module.named_parameters() if p.requires_grad}
    if not trained:
        raise InputError(f"--network {name}: has no parameters that require a gradient")
    held = (*module.named_parameters(), *module.named_buffers())
    for key, t in held:
        what = None
        if t.layout is not torch.strided or t.is_quantized or t.is_nested or t.is_meta:
            kind = "quantized" if t.is_quantized else f"{str(t.layout)[6:]} on {t.device.type}"
            what = f"is {kind}; a run takes dense ones that hold their numbers"
        elif key in trained and t.dtype != torch.float32:
            what = f"is trained and {str(t.dtype)[6:]}; cast it to torch.float32, or freeze it"
        elif not key.isprintable():
            what = "has a name that is not one line of text; give it another"
        if what is not None:
            shown = key[:80] if key.isprintable() else repr(key[:80])
            raise InputError(f"--network {name}: its {shown} {what}")
    end, owner = 0, ""
    for start, stop, key in sorted((*_extent(t), key) for key, t in held if t.numel()):
        if start < end and (owner in trained or key in trained):
            raise InputError(
                f"--network {name}: its {owner[:80]} and {key[:80]} share memory, and training "
                "moves what it trains; make them the same parameter, not its data"
            )
        end, owner = max((end, owner), (stop, key))
    for _, t in held:
        if 0 in t.stride():  # expanded: there is no place to load it into
            t.data = t.data.contiguous()


def _extent(t: Tensor) -> tuple[int, int]:
    """The memory that a tensor lies in, from its first byte to behind its last one."""
    last = sum((size - 1) * step for size, step in zip(t.shape, t.stride(), strict=True))
    return t.data_ptr(), t.data_ptr() + (last + 1) * t.element_size()


def _tried(name: str, module: nn.Module, task: Task) -> object:
    """The shape of the outputs for two samples, or of what type they are.

    Raises:
        InputError: the network fails on them, in training or in evaluation.
    """
    with _user_code(name, task), kept(module):
        outputs_of(module, task)
        with evaluating(module):
            outputs = outputs_of(module, task)
    return tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__


def _user_code(name: str, task: Task) -> AbstractContextManager[None]:
    return user_code(f"--network {name}: fails on {TRIED} samples of shape {task.sample_shape}")
