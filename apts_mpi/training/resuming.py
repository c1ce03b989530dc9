"""Going on with a run: which settings stand, and what another number of ranks changes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from apts_mpi import networks
from apts_mpi.checkpoints.folder import COMMON, FOLDER, Checkpoint, holds, newest
from apts_mpi.checkpoints.state_file import REMEDY
from apts_mpi.comm.communicator import Comm
from apts_mpi.errors import InputError, fault
from apts_mpi.files.forms import (
    every,
    is_amount,
    is_count,
    is_finite,
    is_flag,
    is_real,
    is_word,
    misshapen,
)
from apts_mpi.method.options import BASELINES
from apts_mpi.networks.losses import Units
from apts_mpi.settings.config import SETTINGS, TrainConfig
from apts_mpi.settings.declaration import AUTO
from apts_mpi.settings.toml import parse_toml, to_toml, with_effect

# Of this run alone, never taken over from the one that goes on.
_OWN = ("out", "resume", "trace", "max_seconds", "stall_warning", "stall_abort")
FIGURES = ("test_loss", "test_accuracy")  # that every evaluation gives
_FREE = {name for name, each in SETTINGS.items() if each.free}


def _is_positive(value: Any) -> bool:
    return is_count(value) and value > 0


def _is(kind: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, kind)


def _are_figures(value: Any) -> bool:
    """What an evaluation gave; None of what the task has not."""
    known = isinstance(value, dict) and set(FIGURES) <= set(value)
    return known and every(lambda each: each is None or is_real(each), dict)(value)


# What is taken up of a checkpoint; the optimizer's state has a form of its own.
_COMMON_FORM: dict[str, Any] = {
    "settings": _is(str),
    "complete": _is(str),
    "data": {
        "name": is_word,
        "task": lambda value: value in networks.TASKS,
        "outputs": _is_positive,
        "digest": is_word,
        "shards": _is_positive,
        "sample_shape": every(_is_positive),
        "classes": every(is_word),
        "mean": is_finite,
        "std": lambda value: is_finite(value) and bool((value > 0).all()),
    },
    "versions": every(is_word, dict),
    "network": every(lambda value: True, dict),  # the tensors it must have are the network's to say
    "optimizer": _is(dict),
    "progress": {
        "iterations": is_count,
        "accepted": is_count,
        "work": is_amount,
        "evaluated_at": lambda value: is_real(value) and value < math.inf,
        "losses": _are_figures,
        "converged": is_flag,
    },
    "place": {"number": is_count, "legs": every(every(is_count, dict))},
    "traffic": every(is_count, dict),
}
_OWN_FORM: dict[str, Any] = {
    "optimizer": _is(dict),
    "seconds": every(is_amount, dict),
    "seconds_total": is_amount,
}


def settings(
    given: dict[str, Any], comm: Comm, say: Callable[[str], object]
) -> tuple[TrainConfig, Checkpoint | None]:
    """The settings of a run and the checkpoint it goes on from, if any; every rank calls it.

    Args:
        given: settings from flags and a configuration file. say: takes a line.

    Raises:
        AgreedError: on every rank, where there is no such checkpoint, or settings contradict it.
    """
    config, checkpoint = TrainConfig(**given), None
    if config.resume is not None:
        auto = config.resume == "auto"
        path = Path(str(config.out if auto else config.resume))
        if not auto or holds(path, comm):
            checkpoint = newest(path, comm, say)
    with comm.together():
        if checkpoint is not None:
            verify(checkpoint)
            config = continued(checkpoint, given, comm.size)
        config.check_effect()
        if checkpoint is not None:
            outline(checkpoint, config, named=given.get("network"))
            ever_given(checkpoint, config)
    return config, checkpoint


def verify(checkpoint: Checkpoint) -> None:
    """See that all that is taken up is there and of its kind, so that it cannot fail later on.

    Raises:
        InputError: something is not; the line names it.
    """
    for state, form in ((checkpoint.common, _COMMON_FORM), (checkpoint.own, _OWN_FORM)):
        name = misshapen(state, form)
        if name is not None:
            raise fault(checkpoint.path, f"its {name} is missing or cannot be", REMEDY)


def outline(
    checkpoint: Checkpoint, config: TrainConfig, *, named: str | None
) -> tuple[nn.Module, networks.OwnLoss | None]:
    """The network of the settings, and the loss it brings, if any.

    It has no memory for its parameters, which the checkpoint has; but for one of the user's own.

    Args:
        named: the network that the user names. Code of the user's own is only run where the user
            names it: a file that comes from elsewhere may name any.

    Raises:
        InputError: the checkpoint has the parameters of another network, or has a network of the
            user's own that is not named.
    """
    tensors, own = checkpoint.common["network"], config.network not in networks.NETWORKS
    if own and named != config.network:
        raise InputError(
            f"{checkpoint.path}: its network is no part of this program; name it, if its code "
            f"is to be run: --network {config.network}"
        )
    layers = [*(config.hidden or ()), *(config.channels or ())]
    if len(layers) + (config.depth or 0) >= len(tensors) and not own:  # before as many are made
        raise fault(checkpoint.path, f"has no network of {len(layers)} layers", REMEDY)
    try:
        with torch.device("cpu" if own else "meta"):
            module, loss = networks.build(
                config.network, task_of(checkpoint), config.sizes, seed=config.seed
            )
    except (InputError, OverflowError, RuntimeError, TypeError, ValueError) as error:
        if own:
            raise
        what = f"has no network of its settings ({error})"
        raise fault(checkpoint.path, what, REMEDY) from error
    saved, others = module.state_dict(), checkpoint.common.get("unsaved", {})
    fits(checkpoint, tensors, saved)
    if others:
        fits(checkpoint, others, unsaved(module))
    return module, loss


def is_standardised(checkpoint: Checkpoint) -> bool:
    """Whether its network, of a regression, is trained on standardised targets."""
    return {"target_mean", "target_std"} <= set(checkpoint.common["data"])


def units_of(checkpoint: Checkpoint) -> Units | None:
    """The units of the targets that the network of a checkpoint is trained on, on the CPU.

    Raises:
        ValueError: they are none.
    """
    if not is_standardised(checkpoint):
        return None
    values = [checkpoint.common["data"][name] for name in ("target_mean", "target_std")]
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
    """The buffers that a module's own state leaves out; a run goes on with them all the same."""
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


def task_of(checkpoint: Checkpoint) -> networks.Task:
    """What the network of a checkpoint does."""
    data = checkpoint.common["data"]
    return networks.Task(data["task"], tuple(data["sample_shape"]), data["outputs"])


def continued(checkpoint: Checkpoint, given: dict[str, Any], ranks: int) -> TrainConfig:
    """The settings of a run that goes on: the old ones, and those that may be given anew.

    On as many subdomains everything stands as it was; on others, defaults that follow their number
    do so again.

    Args:
        given: settings from flags and a configuration file. ranks: of this run.

    Raises:
        InputError: one of them contradicts the run's own; the line has all that do.
    """
    where = checkpoint.path / COMMON
    complete = completed(checkpoint)
    differing = [
        f"{name} = {value!r}, not {getattr(complete, name)!r}"
        for name, value in given.items()
        if name not in _FREE and value != getattr(complete, name)
    ]
    if differing:
        raise InputError(
            f"{where}: the run has other settings than those given: {'; '.join(differing)}; leave "
            "them out, or start a run of its own"
        )
    many = given.get("subdomains_per_rank", complete.subdomains_per_rank)
    same = ranks * many == checkpoint.ranks * complete.subdomains_per_rank
    values = _settings(checkpoint, "complete" if same else "settings")
    for name in _OWN:
        values.pop(name, None)
    return TrainConfig(**{**values, **given})


def completed(checkpoint: Checkpoint) -> TrainConfig:
    """The settings of the run that wrote it, with every default.

    Raises:
        InputError: they are none, or some have no value.
    """
    config = TrainConfig(**_settings(checkpoint, "complete"))
    if config.local_steps == AUTO or (config.optimizer in BASELINES and config.lr is None):
        raise fault(checkpoint.path / COMMON, "has settings that are not complete", REMEDY)
    return config


def ever_given(checkpoint: Checkpoint, config: TrainConfig) -> str:
    """The settings that the run and those it went on from were given, as TOML.

    Args:
        config: of the run that goes on.
    """
    values, before = _settings(checkpoint, "settings"), completed(checkpoint)
    for name in _FREE.difference(_OWN):
        if getattr(config, name) != getattr(before, name):
            values[name] = getattr(config, name)
    return to_toml(TrainConfig(**values))


def _settings(checkpoint: Checkpoint, name: str) -> dict[str, Any]:
    where = checkpoint.path / COMMON
    values = with_effect(parse_toml(checkpoint.common[name], where))
    try:
        TrainConfig(**values)
    except InputError as error:
        raise fault(where, str(error), REMEDY) from error
    return values


def run_directory(checkpoint: Checkpoint) -> Path | None:
    """The directory of the run that wrote it; None where it lies somewhere else."""
    folder = checkpoint.path.absolute().parent
    return folder.parent if folder.name == FOLDER else None


def changes(checkpoint: Checkpoint, config: TrainConfig, ranks: int) -> list[str]:
    """What another number of ranks changes, a phrase each.

    Args:
        config: completed, of the run that goes on.
    """
    before = completed(checkpoint)
    names = [f.name for f in dataclasses.fields(TrainConfig) if f.name not in _FREE]
    told = [
        f"{name} is {getattr(config, name)}, not {getattr(before, name)}"
        for name in names
        if getattr(config, name) != getattr(before, name)
    ]
    if ranks < checkpoint.ranks:
        last = checkpoint.ranks - 1
        which = (
            f"state of rank {last} is"
            if ranks == last
            else f"states of ranks {ranks} to {last} are"
        )
        told.append(f"the {which} dropped")
    return told
