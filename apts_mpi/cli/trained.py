"""What is said of a trained network: what it is, how good it is on any shards, and as a file."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from apts_mpi.checkpoints.folder import Checkpoint
from apts_mpi.checkpoints.weights import packed
from apts_mpi.comm.communicator import Comm
from apts_mpi.data import DatasetInfo
from apts_mpi.errors import InputError, writing
from apts_mpi.files import sealed
from apts_mpi.method.options import BASELINES
from apts_mpi.networks.cost import flops
from apts_mpi.networks.losses import Criterion, criterion
from apts_mpi.settings.config import TrainConfig
from apts_mpi.training.confusion import TOP, tallied
from apts_mpi.training.console import JUDGED, aligned, judged, shown_loss
from apts_mpi.training.device import place
from apts_mpi.training.evaluation import evaluate
from apts_mpi.training.flat_network import FlatNetwork, flat_network
from apts_mpi.training.run_state import fitting
from apts_mpi.training.samples import Held, load, task_of
from apts_mpi.training.trained import Trained, restore


def describe(checkpoint: Checkpoint, comm: Comm, *, named: str | None) -> str:
    """What a checkpoint holds, in text; every rank calls it.

    Args:
        named: the network that the user names.

    Raises:
        AgreedError: on every rank, where the checkpoint does not fit itself.
    """
    trained = restore(checkpoint, comm, named=named)
    with comm.together(), fitting(checkpoint):
        return _described(trained)


def _described(trained: Trained) -> str:
    checkpoint, c, common = trained.checkpoint, trained.config, trained.checkpoint.common
    data, progress, losses = common["data"], common["progress"], common["progress"]["losses"]
    steps = f", {c.local_steps} local steps" if c.local_steps else ""
    if c.optimizer in BASELINES:
        method = f"{c.optimizer}, learning rate {c.lr:g}{steps}"
    else:
        radius = float(common["optimizer"]["radius"])
        method = f"{c.optimizer}, {c.local_solver}{steps}, radius {radius:.3g}"
    size = sum(file.stat().st_size for file in checkpoint.path.iterdir())
    task, count = trained.task, flops(trained.module, trained.task)
    sizes = [
        f"{name} {','.join(map(str, value)) if isinstance(value, tuple) else value}"
        for name, value in c.arguments.items()
    ]
    rows = {
        "checkpoint": f"{checkpoint.path}, {size / 1e6:.1f} MB",
        "run": f"{checkpoint.run}, on {checkpoint.ranks} ranks, seed {c.seed}",
        "network": f"{', '.join([c.network, *sizes])}: {trained.parameters.n:,} parameters",
        "sample": f"{task.kind}, {task.sample_shape} to {task.outputs}"
        + (f"; forward {count:,} FLOPs, gradient 3 times that" if count else ""),
        "data set": f"{data['name']} in {data['shards']} shards, digest {data['digest'][:12]}",
        "optimizer": f"{method}, batch {c.batch or 'all'} per rank",
        "progress": f"iteration {checkpoint.iteration} ({progress['accepted']} accepted), "
        f"{progress['work']:.0f} sample gradients of --epochs {c.epochs:g}",
    }
    rows |= dict(judged(losses))
    for split, name in JUDGED.items():
        if losses.get(f"{split}_loss") is not None:
            rows[f"{name} loss"] = shown_loss(losses, f"{split}_loss")
    rows["versions"] = ", ".join(f"{k} {v}" for k, v in common["versions"].items())
    rows["verified"] = f"checksums of {checkpoint.ranks + 1} files, state, network"
    return aligned(rows.items())


def score(
    trained: Trained,
    comm: Comm,
    say: Callable[[str], object],
    *,
    data: str | None,
    split: str,
    device: str,
    out: Path | None = None,
) -> str:
    """How good it is on a split of any shards that fit, in text; every rank calls it.

    Args:
        data: shard directory, or "digits"; default the run's own. Shards that were cut from other
            data have another mean and std: the run's own are applied, as the network wants them.
        out: a file for the same figures as JSON.

    Raises:
        AgreedError: on every rank, where the shards are damaged or do not fit the network.
    """
    samples, network = fitted(trained, comm, say, data=data, split=split, device=device)
    classes = trained.classes if trained.task.kind == "classification" else ()
    judge, tally = tallied(network.criterion, classes)
    figures: dict[str, Any] = evaluate(network.flat, [samples], comm, trained.task, judge)
    if tally is not None:
        tally.join(comm)
        figures |= tally.figures()
    with comm.together():
        if out is not None and comm.rank == 0:
            more = {} if tally is None else tally.details()
            content = {"split": split, "samples": samples.total, **figures, **more}
            with writing(f"--out {out}"):
                sealed.write(out, f"{json.dumps(content, indent=1)}\n".encode())
    rows = {f"{split} samples": str(samples.total)}
    rows["loss"] = shown_loss(figures, "loss")
    others = {name: value for name, value in figures.items() if name != "loss"}
    names = {f"top{TOP}_accuracy": f"top-{TOP} accuracy"}
    rows |= {names.get(k, k): f"{value:.4f}" for k, value in others.items() if value is not None}
    return "\n".join((aligned(rows.items()), *(() if tally is None else ("", tally.table()))))


@dataclass(frozen=True)
class Fitted:
    """A trained network on a device: flat, and what it is judged by there."""

    flat: FlatNetwork
    criterion: Criterion


def fitted(
    trained: Trained,
    comm: Comm,
    say: Callable[[str], object],
    *,
    data: str | None,
    split: str,
    device: str,
) -> tuple[Held, Fitted]:
    """This rank's samples of a split as a network takes them, and it, on a device.

    Raises:
        AgreedError: on every rank, where the shards are damaged or do not fit the network.
    """
    placement = place(TrainConfig(device=device, precision=trained.config.precision), comm, say)
    name = data or trained.config.data
    shards = int(trained.checkpoint.common["data"]["shards"]) if data is None else None
    info, parts = load(
        name,
        comm,
        say,
        device=placement.device,
        shards=shards,
        splits=[split],
        context=trained.config.context,
    )
    with comm.together():
        if split not in parts or task_of(info) != trained.task or info.classes != trained.classes:
            raise _unlike(name, info, trained)
        if not parts[split][0].total:
            what = f"--data {name}: has no {split} samples; give --split or other shards"
            raise InputError(what)
    (part,) = parts[split]
    assert isinstance(part, Held), "nothing is streamed here"
    _renormalise(part, info, trained)
    return part, on_device(trained, placement.device)


def on_device(trained: Trained, device: torch.device) -> Fitted:
    """The network moved to a device, with its criterion."""
    trained.module.to(device)
    judge = trained.criterion
    if judge.module is not None:
        judge.module.to(device)
    if judge.units is not None:
        judge = criterion(trained.task, units=judge.units.to(device))
    return Fitted(flat_network(trained.module, judge, trained.task, trained.config), judge)


def _unlike(name: str, info: DatasetInfo, trained: Trained) -> InputError:
    """Shards that are not like those the network was trained on."""
    task = trained.task
    has = f"{len(info.classes)} classes ({', '.join(info.classes)[:80]})"
    if info.task == "regression":
        has = f"{info.outputs} outputs"
    gives = f"distinguishes {len(trained.classes)} classes ({', '.join(trained.classes)[:80]})"
    if task.kind == "regression":
        gives = f"gives {task.outputs}"
    return InputError(
        f"--data {name}: has {info.task} samples {info.sample_shape} of {has}; the network is for "
        f"{task.kind}, takes {task.sample_shape} and {gives}; give shards like those it was "
        "trained on"
    )


def _renormalise(samples: Held, info: DatasetInfo, trained: Trained) -> None:
    """From the shards' own mean and std to those the network was trained with, in place."""
    if info.task == "language":
        return
    if np.array_equal(info.mean, trained.mean) and np.array_equal(info.std, trained.std):
        return
    for values, change in (
        (info.std / trained.std, samples.x.mul_),
        ((info.mean - trained.mean) / trained.std, samples.x.add_),
    ):
        change(torch.as_tensor(values, dtype=torch.float32, device=samples.x.device))


def _targets(trained: Trained) -> dict[str, Any]:
    """Of a regression on standardised targets: what makes predictions of outputs."""
    units = trained.criterion.units
    if units is None:
        return {}
    return {"target_mean": units.mean.tolist(), "target_std": units.std.tolist()}


def export(trained: Trained, path: Path, *, overwrite: bool) -> str:
    """Write the network as a plain ``state_dict``; returns what to print.

    Raises:
        InputError: the file is there already, or cannot be written.
    """
    if path.exists() and not overwrite:
        raise InputError(f"--out {path}: exists; name another file or give --overwrite")
    c, common = trained.config, trained.checkpoint.common
    about: dict[str, Any] = {
        "format": "pt",
        "network": c.network,
        **c.sizes,
        **({} if c.network_args is None else {"network_args": c.network_args}),
        "task": trained.task.kind,
        "sample_shape": list(trained.task.sample_shape),
        "outputs": trained.task.outputs,
        "classes": list(trained.classes),
        "mean": trained.mean.tolist(),
        "std": trained.std.tolist(),
        **_targets(trained),
        "data": common["data"]["name"],
        "iteration": trained.checkpoint.iteration,
    }
    state = trained.module.state_dict()
    content, notes = packed(path, state, about)
    with writing(f"--out {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        sealed.write(path, content)
    tensors = sum(isinstance(each, torch.Tensor) for each in state.values())
    written = (
        f"{trained.parameters.n:,} parameters in {tensors} tensors after iteration "
        f"{trained.checkpoint.iteration}, for (x - mean) / std"
        + (", gives (y - target_mean) / target_std" if trained.criterion.units else "")
        + f": {path}"
    )
    return "\n".join((written, *notes))
