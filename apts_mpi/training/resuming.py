"""Resuming a run: which settings stand, and what another number of ranks changes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from apts_mpi.networks.task import TASKS
from apts_mpi.settings.config import SETTINGS, TrainConfig
from apts_mpi.settings.texts import AUTO
from apts_mpi.settings.toml import parse_toml
from apts_mpi.training.saved_network import outline

# Of this run alone, never taken over from the one that it resumes.
_OWN = (
    *("out", "resume", "trace", "max_seconds", "stall_warning", "stall_abort"),
    *("elastic", "min_ranks", "rank_timeout"),
)
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
        "task": lambda value: value in TASKS,
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
    "unsaved": every(lambda value: True, dict),
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
    "buffers": every(lambda value: True, dict),
    "seconds": every(is_amount, dict),
    "seconds_total": is_amount,
}


def settings(
    given: dict[str, Any], comm: Comm, say: Callable[[str], object]
) -> tuple[TrainConfig, Resumed | None]:
    """The settings of a run and what it resumes, if anything; every rank calls it.

    Args:
        given: settings from flags and a configuration file. say: takes a line.

    Raises:
        AgreedError: on every rank, where there is no such checkpoint, or settings contradict it.
    """
    config, checkpoint, resumed = TrainConfig(**given), None, None
    if config.resume is not None:
        auto = config.resume == "auto"
        path = Path(str(config.out if auto else config.resume))
        if not auto or holds(path, comm):
            checkpoint = newest(path, comm, say)
    with comm.together():
        if checkpoint is not None:
            verify(checkpoint)
            resumed = Resumed.of(checkpoint)
            config = resumed.continued(given, comm.size)
        config.check_effect()
        if resumed is not None:
            outline(resumed.checkpoint, config, named=given.get("network"))
            resumed.ever_given(config)
    return config, resumed


def verify(checkpoint: Checkpoint) -> None:
    """See that all that is taken up is there and of its kind, so that it cannot fail later on.

    Raises:
        InputError: something is not; the line names it.
    """
    for state, form in ((checkpoint.common, _COMMON_FORM), (checkpoint.own, _OWN_FORM)):
        name = misshapen(state, form)
        if name is not None:
            raise fault(checkpoint.path, f"its {name} is missing or cannot be", REMEDY)


@dataclass(frozen=True)
class Resumed:
    """A checkpoint that a run resumes, with the settings in it, parsed.

    Attributes:
        config: of the run that wrote it, complete.
        given: what that run and those that it resumed were given.
        head: where it is no checkpoint but what ranks that have outlived others have in memory,
            the beginning of the line about that.
    """

    checkpoint: Checkpoint
    config: TrainConfig
    given: TrainConfig
    head: str = ""

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Resumed:
        """Read the settings in a checkpoint that has been verified.

        Raises:
            InputError: they are none, or are not complete.
        """
        config, where = _settings(checkpoint, "complete"), checkpoint.path / COMMON
        if config.local_steps == AUTO or (config.optimizer in BASELINES and config.lr is None):
            raise fault(where, "has settings that are not complete", REMEDY)
        return cls(checkpoint, config, _settings(checkpoint, "settings"))

    @property
    def path(self) -> Path:
        """Folder of the checkpoint."""
        return self.checkpoint.path

    @property
    def shards(self) -> int:
        """How many files the run's data were in."""
        return int(self.checkpoint.common["data"]["shards"])

    @property
    def directory(self) -> Path | None:
        """Of the run that wrote it; None where the checkpoint lies somewhere else."""
        folder = self.path.absolute().parent
        return folder.parent if folder.name == FOLDER else None

    @property
    def shape(self) -> tuple[int, int]:
        """Ranks of the run that wrote it, and subdomains per rank."""
        return self.checkpoint.ranks, self.config.subdomains_per_rank

    def continued(self, given: dict[str, Any], ranks: int) -> TrainConfig:
        """The settings of a run that resumes: the old ones, and those that may be given anew.

        On as many subdomains everything stands as it was; on others, defaults that follow their
        number do so again.

        Args:
            given: settings from flags and a configuration file. ranks: of this run.

        Raises:
            InputError: one of them contradicts the run's own; the line has all that do.
        """
        complete = self.config
        # What the run itself was given stands, also where it was auto.
        given = {
            name: value
            for name, value in given.items()
            if name in _FREE or value != getattr(self.given, name)
        }
        differing = [
            f"{name} = {value!r}, not {getattr(complete, name)!r}"
            for name, value in given.items()
            if name not in _FREE and value != getattr(complete, name)
        ]
        if differing:
            raise InputError(
                f"{self.path / COMMON}: the run has other settings than those given: "
                f"{'; '.join(differing)}; leave them out, or start a run of its own"
            )
        many = given.get("subdomains_per_rank", complete.subdomains_per_rank)
        same = ranks * many == self.checkpoint.ranks * complete.subdomains_per_rank
        values = vars(complete if same else self.given)
        values = {name: value for name, value in values.items() if name not in _OWN}
        return TrainConfig(**{**values, **given})

    def ever_given(self, config: TrainConfig) -> TrainConfig:
        """What the run that resumes and those before it were given.

        Args:
            config: of the run that resumes.
        """
        changed = {
            name: getattr(config, name)
            for name in _FREE.difference(_OWN)
            if getattr(config, name) != getattr(self.config, name)
        }
        return dataclasses.replace(self.given, **changed)

    def changes(self, config: TrainConfig, ranks: int) -> list[str]:
        """What another number of ranks changes, a phrase each.

        Args:
            config: completed, of the run that resumes.
        """
        names = [f.name for f in dataclasses.fields(TrainConfig) if f.name not in _FREE]
        phrases = [
            f"{name} is {getattr(config, name)}, not {getattr(self.config, name)}"
            for name in names
            if getattr(config, name) != getattr(self.config, name)
        ]
        last = self.checkpoint.ranks - 1
        if self.head:
            return phrases
        if ranks == last:
            phrases.append(f"the state of rank {last} is dropped")
        elif ranks < last:
            phrases.append(f"the states of ranks {ranks} to {last} are dropped")
        return phrases


def _settings(checkpoint: Checkpoint, name: str) -> TrainConfig:
    where = checkpoint.path / COMMON
    try:
        return TrainConfig(**parse_toml(checkpoint.common[name], where))
    except InputError as error:
        raise fault(where, str(error), REMEDY) from error
