"""The network that a checkpoint holds: what it is, how good it is on any shards, and as a file."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from apts_mpi.checkpoints.folder import Checkpoint
from apts_mpi.checkpoints.weights import packed
from apts_mpi.comm.communicator import Comm
from apts_mpi.data import DatasetInfo
from apts_mpi.data.shards.info import all_moments
from apts_mpi.errors import InputError, writing
from apts_mpi.files import sealed
from apts_mpi.method.options import BASELINES
from apts_mpi.method.packages import require_package
from apts_mpi.networks.cost import flops
from apts_mpi.networks.losses import Criterion, criterion
from apts_mpi.networks.task import Task
from apts_mpi.settings.config import TrainConfig
from apts_mpi.training import saved_network
from apts_mpi.training.console import JUDGED, aligned, judged, shown_loss
from apts_mpi.training.device import place
from apts_mpi.training.evaluation import evaluate
from apts_mpi.training.flat_network import FlatNetwork, flat_network
from apts_mpi.training.optimizer import optimizer
from apts_mpi.training.resuming import Resumed, verify
from apts_mpi.training.run_state import fitting, optimizer_state
from apts_mpi.training.samples import Held, load, task_of


@dataclass(frozen=True)
class Trained:
    """A network with the parameters that are evaluated: of APTS, the iterates' average.

    Attributes:
        checkpoint: it is from. config: complete. module: the network.
        parameters: flat, of the module. task: what it does. criterion: what it is judged by.
        classes: names of what it distinguishes.
        mean, std: float64, () or a sample's shape; it takes (x - mean) / std.
    """

    checkpoint: Checkpoint
    config: TrainConfig
    module: nn.Module
    parameters: FlatNetwork
    task: Task
    criterion: Criterion
    classes: tuple[str, ...]
    mean: NDArray[np.float64]
    std: NDArray[np.float64]


def restore(checkpoint: Checkpoint, comm: Comm, *, named: str | None) -> Trained:
    """The network of a checkpoint, on the CPU; every rank calls it.

    Args:
        named: the network that the user names, which one of the user's own needs.

    Raises:
        AgreedError: on every rank, where the checkpoint does not fit itself.
    """
    with comm.together(), fitting(checkpoint):
        trained = _built(checkpoint, named)
    with comm.together():
        require_package(trained.config.optimizer)
    network = trained.parameters
    alone = dataclasses.replace(trained.config, subdomains_per_rank=1)
    method = optimizer(alone, network, comm)
    with comm.together(), fitting(checkpoint):
        method.load_state_dict(optimizer_state(checkpoint, network.n), resized=True)
        with method.averaged():
            evaluated = network.vector.clone()
        network.vector.copy_(evaluated)
    return trained


def _built(checkpoint: Checkpoint, named: str | None) -> Trained:
    verify(checkpoint)
    data, config = checkpoint.common["data"], Resumed.of(checkpoint).config
    task, classes = saved_network.task_of(checkpoint), tuple(data["classes"])
    module, loss = saved_network.outline(checkpoint, config, named=named)
    # In place where there is memory: what a module shares among its parts stays shared.
    outlined = any(p.is_meta for p in module.parameters())
    module.load_state_dict(checkpoint.common["network"], assign=outlined)
    saved_network.load_buffers(module, checkpoint.common["unsaved"])
    mean, std = (data[name].numpy().astype(np.float64) for name in ("mean", "std"))
    if mean.shape != std.shape or mean.shape not in all_moments(task.sample_shape):
        raise ValueError(f"mean and std of shapes {mean.shape} and {std.shape}")
    judge = criterion(task, own=loss, units=saved_network.units_of(checkpoint))
    network = flat_network(module, judge, task, config)
    return Trained(checkpoint, config, module, network, task, judge, classes, mean, std)


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
        f"{progress['work']:.0f} sample gradients of {c.epochs:g} epochs",
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
) -> str:
    """Loss and accuracy on a split of any shards that fit, in text; every rank calls it.

    Args:
        data: shard directory, or "digits"; default the run's own. Shards that were cut from other
            data have another mean and std: the run's own are applied, as the network wants them.

    Raises:
        AgreedError: on every rank, where the shards are damaged or do not fit the network.
    """
    placement = place(TrainConfig(device=device, precision=trained.config.precision), comm, say)
    name = data or trained.config.data
    shards = int(trained.checkpoint.common["data"]["shards"]) if data is None else None
    context = trained.config.context
    info, parts = load(
        name,
        comm,
        say,
        device=placement.device,
        shards=shards,
        splits=[split],
        context=context,
    )
    task = trained.task
    with comm.together():
        if task_of(info) != task or info.classes != trained.classes:
            raise _unlike(name, info, trained)
        if not parts[split][0].total:
            what = f"--data {name}: has no {split} samples; give --split or other shards"
            raise InputError(what)
    for part in parts[split]:
        assert isinstance(part, Held), "nothing is streamed here"
        _renormalise(part, info, trained)
    trained.module.to(placement.device)
    judge = trained.criterion
    if judge.module is not None:
        judge.module.to(placement.device)
    if judge.units is not None:
        judge = criterion(task, units=judge.units.to(placement.device))
    network = flat_network(trained.module, judge, task, trained.config)
    figures = evaluate(network, parts[split], comm, task, judge)
    rows = {f"{split} samples": str(parts[split][0].total)}
    rows["loss"] = shown_loss(figures, "loss")
    others = {name: value for name, value in figures.items() if name != "loss"}
    rows |= {name: f"{value:.4f}" for name, value in others.items() if value is not None}
    return aligned(rows.items())


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
