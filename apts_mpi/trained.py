"""The network that a checkpoint holds: what it is, how good it is on any shards, and as a file."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from apts_mpi import resuming, sealed
from apts_mpi.checkpoint import Checkpoint
from apts_mpi.comm import Comm
from apts_mpi.config import BASELINES, TrainConfig
from apts_mpi.data import DatasetInfo
from apts_mpi.errors import InputError
from apts_mpi.evaluation import cross_entropy, evaluate
from apts_mpi.flat import FlatNetwork
from apts_mpi.optimizers import optimizer
from apts_mpi.placement import Samples, load, place
from apts_mpi.run_state import MISFIT, misfit, optimizer_state


@dataclass(frozen=True)
class Trained:
    """A network with the parameters that are evaluated: of APTS, the iterates' average.

    Attributes:
        checkpoint: it is from. config: complete. module: the network.
        parameters: flat, of the module. sample_shape, classes: what it takes and tells apart.
        mean, std: float64, () or ``sample_shape``; it takes (x - mean) / std.
    """

    checkpoint: Checkpoint
    config: TrainConfig
    module: nn.Module
    parameters: FlatNetwork
    sample_shape: tuple[int, ...]
    classes: tuple[str, ...]
    mean: NDArray[np.float64]
    std: NDArray[np.float64]


def restore(checkpoint: Checkpoint, comm: Comm) -> Trained:
    """The network of a checkpoint, on the CPU; every rank calls it.

    Raises:
        AgreedError: on every rank, where the checkpoint does not fit itself.
    """
    error, trained = None, None
    try:
        trained = _built(checkpoint)
    except MISFIT as caught:
        error = misfit(checkpoint, caught)
    except InputError as caught_input:
        error = caught_input
    comm.agree(error)
    assert trained is not None
    network = trained.parameters
    method = optimizer(trained.config, network, comm, whole=False)
    try:
        method.load_state_dict(optimizer_state(checkpoint, network.n), resized=True)
        with method.averaged():
            evaluated = network.vector.clone()
        network.vector.copy_(evaluated)
    except MISFIT as caught:
        error = misfit(checkpoint, caught)
    comm.agree(error)
    return trained


def _built(checkpoint: Checkpoint) -> Trained:
    resuming.verify(checkpoint)
    data, config = checkpoint.common["data"], resuming.completed(checkpoint)
    shape, classes = tuple(data["sample_shape"]), tuple(data["classes"])
    module = resuming.outline(checkpoint, config)
    module.load_state_dict(checkpoint.common["network"], assign=True)
    mean, std = (data[name].numpy().astype(np.float64) for name in ("mean", "std"))
    if any(each.shape not in ((), shape) for each in (mean, std)):
        raise ValueError(f"mean and std of shapes {mean.shape} and {std.shape} for {shape}")
    network = FlatNetwork(module, cross_entropy)
    return Trained(checkpoint, config, module, network, shape, classes, mean, std)


def describe(checkpoint: Checkpoint, comm: Comm) -> str:
    """What a checkpoint holds, in text; every rank calls it.

    Raises:
        AgreedError: on every rank, where the checkpoint does not fit itself.
    """
    trained, error, lines = restore(checkpoint, comm), None, list[str]()
    try:
        lines = _lines(trained)
    except (*MISFIT, OSError) as caught:  # the run that wrote it may remove it
        error = misfit(checkpoint, caught)
    comm.agree(error)
    return "\n".join(lines)


def _lines(trained: Trained) -> list[str]:
    checkpoint, c, common = trained.checkpoint, trained.config, trained.checkpoint.common
    data, progress, losses = common["data"], common["progress"], common["progress"]["losses"]
    steps = f", {c.local_steps} local steps" if c.local_steps else ""
    if c.optimizer in BASELINES:
        method = f"{c.optimizer}, learning rate {c.lr:g}{steps}"
    else:
        radius = float(common["optimizer"]["radius"])
        method = f"{c.optimizer}, {c.local_solver}{steps}, radius {radius:.3g}"
    size = sum(file.stat().st_size for file in checkpoint.path.iterdir())
    layers = ",".join(map(str, c.hidden))
    rows = {
        "checkpoint": f"{checkpoint.path}, {size / 1e6:.1f} MB",
        "run": f"{checkpoint.run}, on {checkpoint.ranks} ranks, seed {c.seed}",
        "network": f"{c.network} {layers}: {trained.parameters.n:,} parameters, samples "
        f"{trained.sample_shape}, {len(trained.classes)} classes",
        "data set": f"{data['name']} in {data['shards']} shards, digest {data['digest'][:12]}",
        "optimizer": f"{method}, batch {c.batch or 'all'} a rank",
        "progress": f"iteration {checkpoint.iteration} ({progress['accepted']} accepted), "
        f"{progress['work']:.0f} sample gradients of {c.epochs:g} epochs",
    }
    if "test_accuracy" in losses:
        rows["test accuracy"] = f"{losses['test_accuracy']:.4f} (best {progress['best']:.4f})"
    rows["versions"] = ", ".join(f"{k} {v}" for k, v in common["versions"].items())
    rows["verified"] = f"checksums of {checkpoint.ranks + 1} files, state, network"
    width = max(map(len, rows))
    return [f"{name:<{width}}  {value}" for name, value in rows.items()]


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
    placement = place(TrainConfig(device=device), comm, say)
    name = data or trained.config.data
    shards = int(trained.checkpoint.common["data"]["shards"]) if data is None else None
    info, parts = load(name, comm, say, device=placement.device, shards=shards, splits=[split])
    error = None
    if info.sample_shape != trained.sample_shape or info.classes != trained.classes:
        error = InputError(
            f"--data {name}: has samples {info.sample_shape} of {len(info.classes)} classes "
            f"({', '.join(info.classes)[:80]}); the network takes {trained.sample_shape} and tells "
            f"{len(trained.classes)} apart ({', '.join(trained.classes)[:80]}); give shards like "
            "those it was trained on"
        )
    elif not parts[split].total:
        error = InputError(f"--data {name}: has no {split} samples; give --split or other shards")
    comm.agree(error)
    _renormalise(parts[split], info, trained)
    trained.module.to(placement.device)
    network = FlatNetwork(trained.module, cross_entropy)
    loss, right = evaluate(network, parts[split], comm)
    return f"{split} samples  {parts[split].total}\nloss      {loss:.5f}\naccuracy  {right:.4f}"


def _renormalise(samples: Samples, info: DatasetInfo, trained: Trained) -> None:
    """From the shards' own mean and std to those the network was trained with, in place."""
    if np.array_equal(info.mean, trained.mean) and np.array_equal(info.std, trained.std):
        return
    for values, change in (
        (info.std / trained.std, samples.x.mul_),
        ((info.mean - trained.mean) / trained.std, samples.x.add_),
    ):
        change(torch.as_tensor(values, dtype=torch.float32, device=samples.x.device))


def export(trained: Trained, path: Path, *, overwrite: bool) -> str:
    """Write the network as a plain ``state_dict`` in safetensors; returns what to tell.

    Raises:
        InputError: the file is there already, or cannot be written.
    """
    from safetensors.torch import save

    if path.exists() and not overwrite:
        raise InputError(f"--out {path}: exists; name another file or give --overwrite")
    c, common = trained.config, trained.checkpoint.common
    about: dict[str, Any] = {
        "format": "pt",
        "network": c.network,
        "hidden": list(c.hidden),
        "sample_shape": list(trained.sample_shape),
        "classes": list(trained.classes),
        "mean": trained.mean.tolist(),
        "std": trained.std.tolist(),
        "data": common["data"]["name"],
        "iteration": trained.checkpoint.iteration,
    }
    text = {k: v if isinstance(v, str) else json.dumps(v) for k, v in about.items()}
    # Copies, as the module's are parts of one vector, which the format refuses.
    tensors = {name: each.clone() for name, each in trained.module.state_dict().items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sealed.write(path, save(tensors, metadata=text))
    except OSError as error:
        raise InputError(f"--out {path}: cannot be written ({error.strerror})") from error
    return (
        f"{trained.parameters.n:,} parameters in {len(tensors)} tensors after iteration "
        f"{trained.checkpoint.iteration}, for (x - mean) / std: {path}"
    )
