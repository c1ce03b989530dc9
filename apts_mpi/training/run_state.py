"""What a checkpoint holds of a run, and how a run takes it up again."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

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
from apts_mpi.training.provenance import versions

if TYPE_CHECKING:
    from apts_mpi.training.loop import Training

# What a state that is sound but of something else raises where it is taken up.
_MISFIT = (
    *(KeyError, TypeError, ValueError, RuntimeError, AttributeError, OverflowError, OSError),
)


def states(training: Training) -> tuple[State, State]:
    """What is the same on every rank, and what this one alone has; every rank calls it."""
    t, info = training, training.info
    others = t.statistics.others()
    apart = replicas.differ(others, t.comm)
    state = t.optimizer.state_dict()
    own = {name: state.pop(name) for name in t.optimizer.OWN}
    place = t.subdomains[0].batches.place(_subdomains(t))
    return {
        "settings": t.given,
        "complete": to_toml(dataclasses.replace(t.config, threads=t.threads)),
        "data": {
            "name": info.name,
            "task": t.task.kind,
            "outputs": t.task.outputs,
            "digest": info.digest,
            "shards": info.shards,
            # So that the network can be built and used where the data are not.
            "sample_shape": list(info.sample_shape),
            "classes": list(info.classes),
            "mean": torch.as_tensor(info.mean),
            "std": torch.as_tensor(info.std),
            **_units(t.criterion.units),
        },
        "versions": _behind(t),
        "network": dict(t.module.state_dict()),
        "unsaved": resuming.unsaved(t.module),
        "optimizer": state,
        "progress": dataclasses.asdict(t.progress),
        "place": {
            "number": place.number,
            "legs": [dataclasses.asdict(leg) for leg in place.legs],
        },
        "traffic": dataclasses.asdict(t.comm.traffic),
    }, {
        "optimizer": own,
        "buffers": {name: others[name] for name in apart},
        "seconds": dict(t.clock.seconds),
        "seconds_total": time.perf_counter() - t.started,
    }


def _units(units: Units | None) -> State:
    """Of a regression whose targets are standardised; of others nothing."""
    return {} if units is None else {"target_mean": units.mean, "target_std": units.std}


def rehearse(training: Training) -> None:
    """Write a state, read and load it, all in memory; every rank calls it before training.

    So that a run is not trained for hours whose checkpoints then cannot be written or read.

    Raises:
        AgreedError: on every rank, where that fails; the line names what the network holds.
    """
    t = training
    with t.comm.together():
        try:
            common, own = states(t)
            if not t.progress.losses:  # none is written before the first evaluation
                common["progress"]["losses"] = dict.fromkeys(resuming.FIGURES)
            read = Checkpoint(
                path=Path("a checkpoint"),
                run="",
                iteration=t.progress.iterations,
                ranks=t.comm.size,
                common=rehearsed(common),
                own=rehearsed(own),
            )
            resuming.verify(read)
            extra = {k: v for k, v in read.common["network"].items() if not isinstance(v, Tensor)}
            t.module.load_state_dict({**common["network"], **extra})
        except (Unwritable, InputError) as error:
            what = f"no checkpoint could be used: {error}"
            raise InputError(f"--network {t.config.network}: {what}") from error
        except Exception as error:  # the user's own get_extra_state and the like
            what = f"its state fails: {in_one_line(error)}"
            raise InputError(f"--network {t.config.network}: {what}") from error


def _subdomains(training: Training) -> int:
    """Of all ranks."""
    return training.comm.size * len(training.subdomains)


def _behind(training: Training) -> dict[str, str]:
    """All that a run's bits depend on besides its settings."""
    t = training
    return {**versions(), "code": t.code, "device": t.device.type, "threads": str(t.threads)}


def restore(training: Training, resumed: Checkpoint) -> None:
    """Go on where a checkpoint was written, on as many ranks or others; every rank calls it.

    Raises:
        AgreedError: on every rank, where it does not fit the data, the settings or itself.
    """
    t, comm = training, training.comm
    with comm.together(), fitting(resumed):
        before = dict(resumed.common["versions"])
        _take_up(training, resumed)
    comm.check_replicas(t.network.vector)
    line = f"going on after iteration {resumed.iteration} of {resumed.path}"
    if _is_resized(training, resumed):
        told = "; ".join(resuming.changes(resumed, t.config, comm.size))
        line += (
            f" on {_shape(comm.size, len(t.subdomains))}, not "
            f"{_shape(resumed.ranks, _their_subdomains(resumed))}: parameters, radius and place in "
            f"the data stay, {t.optimizer.FORGETS} is lost" + (f"; {told}" if told else "")
        )
    t.console.say(line)
    for name, now in _behind(t).items():
        if before.get(name) != now:
            what = f"{name} is {now}, was {before.get(name)}"
            t.console.say(f"warning: {what}: the run does not repeat bit for bit")


def _their_subdomains(resumed: Checkpoint) -> int:
    """Of a rank."""
    return resuming.completed(resumed).subdomains_per_rank


def _is_resized(training: Training, resumed: Checkpoint) -> bool:
    """Whether it goes on with other subdomains, or with the same ones on other ranks."""
    here = training.comm.size, len(training.subdomains)
    return here != (resumed.ranks, _their_subdomains(resumed))


def _shape(ranks: int, subdomains: int) -> str:
    return f"{ranks} ranks" + (f" of {subdomains} subdomains" if subdomains > 1 else "")


def optimizer_state(checkpoint: Checkpoint, n: int) -> State:
    """The optimizer's state, of which all is seen to be what an iteration can go on from.

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


def _take_up(training: Training, resumed: Checkpoint) -> None:
    t, common, own = training, resumed.common, resumed.own
    data, info = common["data"], t.info
    if data["digest"] != info.digest:
        raise InputError(
            f"--data {t.config.data}: holds {info.name} in {info.shards} shards, digest "
            f"{info.digest[:12]}; the run had {data['name']} in {data['shards']}, digest "
            f"{str(data['digest'])[:12]}; give the shard directory it had, which any number of "
            "ranks can read"
        )
    resized = _is_resized(training, resumed)
    t.module.load_state_dict(common["network"])
    resuming.load_buffers(t.module, common.get("unsaved", {}))
    t.optimizer.load_state_dict(optimizer_state(resumed, t.network.n), resized=resized)
    known = {each.name for each in dataclasses.fields(t.progress)}
    t.progress = type(t.progress)(**{k: v for k, v in common["progress"].items() if k in known})
    if t.progress.iterations != resumed.iteration:
        raise ValueError(f"{t.progress.iterations} iterations in {resumed.iteration}")
    legs = tuple(Leg(**leg) for leg in common["place"]["legs"])
    where = Place(int(common["place"]["number"]), legs)
    for each in t.subdomains:
        each.batches.go_to(where, info.splits["train"].sizes, _subdomains(t))
    if not resized:  # of other ranks there may be two with the same state
        resuming.load_buffers(t.module, own.get("buffers", {}))
    for name, value in common["traffic"].items():
        setattr(t.comm.traffic, name, getattr(t.comm.traffic, name) + int(value))
    for name, value in own["seconds"].items():
        t.clock.seconds[name] += float(value)
    t.started -= float(own["seconds_total"])
