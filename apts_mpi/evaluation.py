"""How good a network is on samples that lie on all ranks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from apts_mpi.comm import Comm
from apts_mpi.config import TrainConfig
from apts_mpi.errors import InputError
from apts_mpi.flat import CHUNK, FlatNetwork, chunk_for
from apts_mpi.losses import Criterion
from apts_mpi.networks import Task, activations
from apts_mpi.placement import Samples


def flat_network(
    module: nn.Module, criterion: Criterion, task: Task, config: TrainConfig
) -> FlatNetwork:
    """The network with the loss it is trained on, as the settings have it computed."""
    held = activations(module, task)
    return FlatNetwork(
        module,
        criterion.train,
        chunk=CHUNK if held is None else chunk_for(held),
        autocast=config.precision == "bf16",
        compiled=config.compile,
    )


def class_counts(parts: Sequence[Samples], classes: int, comm: Comm) -> list[int]:
    """Training samples of each class over all ranks; every rank calls it."""
    counts, error = np.zeros(classes), None
    try:
        for samples in parts:
            for _, y in samples.blocks(CHUNK):
                counts += np.bincount(y.cpu().numpy(), minlength=classes)
    except InputError as caught:  # of a streamed part that is damaged
        error = caught
    comm.agree(error)
    comm.allreduce(counts)
    return [int(count) for count in counts]


def evaluate(
    network: FlatNetwork,
    parts: Sequence[Samples],
    comm: Comm,
    task: Task,
    criterion: Criterion,
) -> dict[str, float | None]:
    """Figures over all ranks' samples; every rank evaluates its parts of the split.

    Returns:
        "loss", the mean of the plain loss, and "accuracy", the share of right answers, None where
        there are none; of language also "perplexity", of regression "r2": one minus the loss over
        the targets' variance, None where they have none.
    """
    total = max(parts[0].total, 1)
    blocks = (block for samples in parts for block in samples.blocks(network.chunk))
    loss, right = (each / total for each in comm.sum_scalars(network.evaluate(blocks, criterion)))
    figures: dict[str, float | None] = {"loss": loss, "accuracy": right}
    if criterion.right is None:
        figures["accuracy"] = None
    if criterion.own:  # in units of its own
        return figures
    if task.kind == "language":
        figures["perplexity"] = math.exp(min(loss, 700.0))
    if task.kind == "regression":
        variance = _variance(parts, comm)
        figures["r2"] = 1.0 - loss / variance if variance > 0 else None
    return figures


def _variance(parts: Sequence[Samples], comm: Comm) -> float:
    """Of the targets of all ranks, the mean over the outputs."""
    moments: np.ndarray | None = None
    for _, y in (block for samples in parts for block in samples.blocks(CHUNK)):
        wide = y.to(torch.float64)
        own = torch.stack((wide.sum(dim=0), wide.square().sum(dim=0))).cpu().numpy()
        moments = own if moments is None else moments + own
    width = np.array([0.0 if moments is None else moments.shape[1]])
    comm.maximum(width)
    sums = np.zeros((2, int(width[0]))) if moments is None else np.ascontiguousarray(moments)
    comm.allreduce(sums)
    mean, square = sums / max(parts[0].total, 1)
    return float((square - mean**2).mean())
