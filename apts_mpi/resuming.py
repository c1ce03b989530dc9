"""Going on with a run: which settings stand, and what another number of ranks changes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from apts_mpi.checkpoint import COMMON, FOLDER, Checkpoint, holds, newest
from apts_mpi.comm import Comm
from apts_mpi.config import TrainConfig, parse_toml
from apts_mpi.errors import InputError

# Of this run alone, never taken over from the one that goes on.
_OWN = ("out", "resume", "trace", "max_seconds", "stall_warning", "stall_abort")
_FREE = {item.name for item in dataclasses.fields(TrainConfig) if item.metadata["free"]}


def settings(
    given: dict[str, Any], comm: Comm, say: Callable[[str], object]
) -> tuple[TrainConfig, Checkpoint | None]:
    """The settings of a run and the checkpoint it goes on from, if any; every rank calls it.

    Args:
        given: settings from flags and a configuration file. say: takes a line.

    Raises:
        AgreedError: on every rank, where there is no such checkpoint, or settings contradict it.
    """
    config = TrainConfig(**given)
    if config.resume is None:
        return config, None
    path = Path(config.resume)
    if config.resume == "auto":
        path = Path(str(config.out))
        if not holds(path, comm):
            return config, None
    checkpoint, error = newest(path, comm, say), None
    try:
        config = continued(checkpoint, given, comm.size)
    except InputError as caught:
        error = caught
    comm.agree(error)
    return config, checkpoint


def continued(checkpoint: Checkpoint, given: dict[str, Any], ranks: int) -> TrainConfig:
    """The settings of a run that goes on: the old ones, and those that may be given anew.

    On as many ranks everything stands as it was; on others, defaults that follow the number of
    ranks do so again.

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
    values = _settings(checkpoint, "complete" if ranks == checkpoint.ranks else "settings")
    for name in _OWN:
        values.pop(name, None)
    return TrainConfig(**{**values, **given})


def completed(checkpoint: Checkpoint) -> TrainConfig:
    """The settings of the run that wrote it, with every default."""
    return TrainConfig(**_settings(checkpoint, "complete"))


def ever_given(checkpoint: Checkpoint, config: TrainConfig) -> str:
    """The settings that the run and those it went on from were given, as TOML.

    Args:
        config: of the run that goes on.
    """
    values, before = _settings(checkpoint, "settings"), completed(checkpoint)
    for name in _FREE.difference(_OWN):
        if getattr(config, name) != getattr(before, name):
            values[name] = getattr(config, name)
    return TrainConfig(**values).to_toml()


def _settings(checkpoint: Checkpoint, name: str) -> dict[str, Any]:
    where, text = checkpoint.path / COMMON, checkpoint.common.get(name)
    if not isinstance(text, str):
        raise InputError(f"{where}: has no {name}; take another checkpoint")
    return parse_toml(text, where)


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
        told.append(f"the states of ranks {ranks} to {checkpoint.ranks - 1} are dropped")
    return told
