"""What a checkpoint holds of a run, and how a run takes it up again."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from apts_mpi.checkpoints.folder import Checkpoint
from apts_mpi.checkpoints.state_file import REMEDY, State, Unwritable, rehearsed
from apts_mpi.comm import replicas
from apts_mpi.data.minibatches.batches import Leg, Place
from apts_mpi.errors import InputError, fault, in_one_line
from apts_mpi.method.state import require_sound
from apts_mpi.networks.losses import Units
from apts_mpi.settings.toml import to_toml
from apts_mpi.training import resuming
from apts_mpi.training.build import Run
from apts_mpi.training.progress import Progress
from apts_mpi.training.provenance import facts
from apts_mpi.training.resuming import Resumed
from apts_mpi.training.samples import task_of
from apts_mpi.training.saved_network import load_buffers, unsaved

# What a state that is sound but of something else raises where it is taken up.
_MISFIT = (
    *(KeyError, TypeError, ValueError, RuntimeError, AttributeError, OverflowError, OSError),
)


def states(run: Run, progress: Progress, seconds: float) -> tuple[State, State]:
    """What is the same on every rank, and what this one alone has; every rank calls it.

    Args:
        seconds: that the run has taken so far.
    """
    others = run.statistics.others()
    apart = replicas.differ(others, run.comm)
    optimizer = run.optimizer.state_dict()
    own = {name: optimizer.pop(name) for name in run.optimizer.PER_RANK}
    place = run.subdomains[0].batches.place(run.parts)
    return shared(run, progress, optimizer, place), {
        "optimizer": own,
        "buffers": {name: others[name] for name in apart},
        "seconds": dict(run.comm.clock.seconds),
        "seconds_total": seconds,
    }


@dataclass(frozen=True)
class Moment:
    """What all ranks have alike at the start of an outer iteration.

    Attributes:
        theta: (n,) parameters. optimizer: of its state. place: in the data.
    """

    theta: Tensor
    optimizer: State
    place: Place

    @classmethod
    def of(cls, run: Run) -> Moment:
        """A copy of it."""
        place = run.subdomains[0].batches.place(run.parts)
        return cls(run.network.vector.clone(), run.optimizer.shared_state(), place)


@dataclass(frozen=True)
class Before:
    """What the same run on more ranks has left, some of which have died.

    Attributes:
        row: of the metrics, the last one; None of a run that starts anew. pending: whether it is
            still to be evaluated and written.
        seconds: that the run has lived. losses: of ranks, for the summary.
    """

    row: dict[str, Any] | None = None
    pending: bool = False
    seconds: float = 0.0
    losses: Sequence[dict[str, Any]] = ()


def shared(run: Run, progress: Progress, optimizer: State, place: Place) -> State:
    """What a checkpoint holds that is the same on every rank."""
    info, task = run.info, task_of(run.info)
    return {
        "settings": to_toml(run.given),
        "complete": to_toml(dataclasses.replace(run.config, threads=run.placement.threads)),
        "data": {
            "name": info.name,
            "task": task.kind,
            "outputs": task.outputs,
            "digest": info.digest,
            "shards": info.shards,
            # So that the network can be built and used where the data are not.
            "sample_shape": list(info.sample_shape),
            "classes": list(info.classes),
            "mean": torch.as_tensor(info.mean),
            "std": torch.as_tensor(info.std),
            **_units(run.criterion.units),
        },
        "versions": _behind(run),
        "network": dict(run.module.state_dict()),
        "unsaved": unsaved(run.module),
        "optimizer": optimizer,
        "progress": dataclasses.asdict(progress),
        "place": {
            "number": place.number,
            "legs": [dataclasses.asdict(leg) for leg in place.legs],
        },
        "traffic": dataclasses.asdict(run.comm.traffic),
    }


def _units(units: Units | None) -> State:
    """Of a regression whose targets are standardised; of others nothing."""
    return {} if units is None else {"target_mean": units.mean, "target_std": units.std}


def rehearse(run: Run, progress: Progress) -> None:
    """Write a state, read and load it, all in memory; every rank calls it before training.

    So that a run is not trained for hours whose checkpoints then cannot be written or read.

    Raises:
        AgreedError: on every rank, where that fails; the line names what the network holds.
    """
    name = f"--network {run.config.network}"
    with run.comm.together():
        try:
            common, own = states(run, progress, 0.0)
            if not progress.losses:  # none is written before the first evaluation
                common["progress"]["losses"] = dict.fromkeys(resuming.FIGURES)
            read = Checkpoint(
                path=Path("a checkpoint"),
                run="",
                iteration=progress.iterations,
                ranks=run.comm.size,
                common=rehearsed(common),
                own=rehearsed(own),
            )
            resuming.verify(read)
            extra = {k: v for k, v in read.common["network"].items() if not isinstance(v, Tensor)}
            run.module.load_state_dict({**common["network"], **extra})
        except (Unwritable, InputError) as error:
            raise InputError(f"{name}: no checkpoint could be used: {error}") from error
        except Exception as error:  # the user's own get_extra_state and the like
            raise InputError(f"{name}: its state fails: {in_one_line(error)}") from error


def _behind(run: Run) -> dict[str, str]:
    """All that a run's bits depend on besides its settings."""
    where = run.placement
    return {**facts(), "device": where.device.type, "threads": str(where.threads)}


def restore(run: Run, resumed: Resumed) -> tuple[Progress, float]:
    """Resume where a checkpoint was written, on as many ranks or others; every rank calls it.

    Returns:
        The progress so far, and the seconds it took.

    Raises:
        AgreedError: on every rank, where it does not fit the data, the settings or itself.
    """
    comm, say, checkpoint = run.comm, run.console.say, resumed.checkpoint
    with comm.together(), fitting(checkpoint):
        before = dict(checkpoint.common["versions"])
        progress = _take_up(run, resumed)
        seconds = float(checkpoint.own["seconds_total"])
    comm.check_replicas(run.network.vector)
    line = f"resuming after iteration {checkpoint.iteration} of {resumed.path}"
    changes = "; ".join(resumed.changes(run.config, comm.size))
    if resumed.head:
        line = (
            f"{resumed.head} go on after iteration {checkpoint.iteration}; lost: what was done "
            f"since, and {run.optimizer.LOST_ON_RESIZE}" + (f"; {changes}" if changes else "")
        )
    elif _is_resized(run, resumed):
        line += (
            f" on {_shape(*_here(run))}, not {_shape(*resumed.shape)}: parameters, radius and "
            f"place in the data stay, {run.optimizer.LOST_ON_RESIZE} is lost"
            + (f"; {changes}" if changes else "")
        )
    say(line)
    for name, now in _behind(run).items():
        if before.get(name) != now:
            what = f"{name} is {now}, was {before.get(name)}"
            say(f"warning: {what}: the run does not repeat bit for bit")
    return progress, seconds


def _here(run: Run) -> tuple[int, int]:
    """Ranks, and subdomains per rank."""
    return run.comm.size, len(run.subdomains)


def _is_resized(run: Run, resumed: Resumed) -> bool:
    """Whether it resumes with other subdomains, or with the same ones on other ranks."""
    return _here(run) != resumed.shape


def _shape(ranks: int, subdomains: int) -> str:
    return f"{ranks} ranks" + (f" of {subdomains} subdomains" if subdomains > 1 else "")


def optimizer_state(checkpoint: Checkpoint, n: int) -> State:
    """The optimizer's state, all of it checked to be what an iteration can continue from.

    Args:
        n: number of parameters.

    Raises:
        ValueError: it is not.
    """
    state = {**checkpoint.common["optimizer"], **checkpoint.own["optimizer"]}
    require_sound(state, iterations=checkpoint.iteration, n=n)
    return state


@contextmanager
def fitting(resumed: Checkpoint) -> Iterator[None]:
    """Within, a checkpoint is taken up; one that is sound but of something else is an InputError.

    Also one that the run that wrote it removes meanwhile.
    """
    try:
        yield
    except _MISFIT as error:
        detail = " ".join(f"{type(error).__name__} {error}".split())[:300]
        raise fault(resumed.path, f"does not fit this run ({detail})", REMEDY) from error


def _take_up(run: Run, resumed: Resumed) -> Progress:
    checkpoint, info, resized = resumed.checkpoint, run.info, _is_resized(run, resumed)
    common, own, data = checkpoint.common, checkpoint.own, checkpoint.common["data"]
    if data["digest"] != info.digest:
        raise InputError(
            f"--data {run.config.data}: holds {info.name} in {info.shards} shards, digest "
            f"{info.digest[:12]}; the run had {data['name']} in {data['shards']}, digest "
            f"{str(data['digest'])[:12]}; give the shard directory it had, which any number of "
            "ranks can read"
        )
    run.module.load_state_dict(common["network"])
    load_buffers(run.module, common["unsaved"])
    run.optimizer.load_state_dict(optimizer_state(checkpoint, run.network.n), resized=resized)
    progress = Progress(**common["progress"])
    if progress.iterations != checkpoint.iteration:
        raise ValueError(f"{progress.iterations} iterations in {checkpoint.iteration}")
    legs = tuple(Leg(**leg) for leg in common["place"]["legs"])
    where = Place(int(common["place"]["number"]), legs)
    for each in run.subdomains:
        each.batches.go_to(where, info.splits["train"].sizes, run.parts)
    if not resized:  # of other ranks there may be two with the same state
        load_buffers(run.module, own["buffers"])
    traffic, clock = run.comm.traffic, run.comm.clock
    for name, value in common["traffic"].items():
        setattr(traffic, name, getattr(traffic, name) + int(value))
    for name, value in own["seconds"].items():
        clock.seconds[name] += float(value)
    return progress
