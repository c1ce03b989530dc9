"""How good a network is on samples that lie on all ranks."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from apts_mpi.comm import replicas
from apts_mpi.comm.communicator import Comm
from apts_mpi.data.sources.moments import Moments, is_constant
from apts_mpi.networks.custom import Loss
from apts_mpi.networks.evaluating import kept
from apts_mpi.networks.losses import Criterion
from apts_mpi.networks.task import Task
from apts_mpi.training.batch_norm import RunningStatistics
from apts_mpi.training.flat_network import CHUNK, FlatNetwork
from apts_mpi.training.optimizer import Optimizer
from apts_mpi.training.samples import Samples


def class_counts(parts: Sequence[Samples], classes: int, comm: Comm) -> list[int]:
    """Training samples of each class over all ranks; every rank calls it."""
    counts = np.zeros(classes)
    with comm.together():  # a streamed part may be damaged
        for samples in parts:
            for _, y in samples.blocks(CHUNK):
                counts += np.bincount(y.cpu().numpy(), minlength=classes)
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
        there are none; of language also "perplexity", of regression "r2": of each output one minus
        its squared error over the variance of its targets in these samples, and the mean of that
        over the outputs whose targets are not constant; None where all are.
    """
    total, judged, varying = max(parts[0].total, 1), criterion, False
    if task.kind == "regression" and not criterion.own:
        variance = _variance(parts, comm)
        varying = bool((variance > 0).any())
        # Of regressions there are no right answers: what is left of the variance is counted.
        judged = dataclasses.replace(criterion, right=_left(criterion, variance))
    blocks = (block for samples in parts for block in samples.blocks(network.chunk))
    loss, right = (each / total for each in comm.sum_scalars(network.evaluate(blocks, judged)))
    figures: dict[str, float | None] = {"loss": loss, "accuracy": right}
    if criterion.right is None:
        figures["accuracy"] = None
    if criterion.own:  # in units of its own
        return figures
    if task.kind == "language":
        figures["perplexity"] = math.exp(min(loss, 700.0))
    if task.kind == "regression":
        figures["r2"] = 1.0 - right if varying else None
    return figures


class Evaluator:
    """Evaluates the network of a run as its checkpoints have it.

    Args:
        network: of this rank. optimizer: of its parameters, of which it evaluates the average.
        statistics: of its BatchNorm layers. comm: the ranks.
        task: that it learns. criterion: its losses.
    """

    def __init__(
        self,
        network: FlatNetwork,
        optimizer: Optimizer,
        statistics: RunningStatistics,
        comm: Comm,
        task: Task,
        criterion: Criterion,
    ) -> None:
        self._network, self._optimizer, self._statistics = network, optimizer, statistics
        self._comm, self._task, self._criterion = comm, task, criterion
        self._refreshed_at = -1  # the iteration that BatchNorm's statistics are of

    def evaluate(self, parts: Sequence[Samples], iteration: int) -> dict[str, float | None]:
        """Figures as ``evaluate`` gives them, after so many outer iterations."""
        with self._comm.clock.phase("evaluation"):
            self.refresh(iteration)
            with self._optimizer.averaged(), self._as_saved():
                return evaluate(self._network, parts, self._comm, self._task, self._criterion)

    def judge(self, judged: Mapping[str, Samples], iteration: int) -> dict[str, float | None]:
        """Figures of each of the splits: "test_loss", ..."""
        return {
            f"{split}_{name}": value
            for split, samples in judged.items()
            for name, value in self.evaluate([samples], iteration).items()
        }

    def refresh(self, iteration: int) -> None:
        """Make BatchNorm's running statistics those of the network that is evaluated now."""
        if self._refreshed_at != iteration:
            self._refreshed_at = iteration
            with self._optimizer.averaged(), self._as_saved():
                self._statistics.refresh()

    @contextmanager
    def _as_saved(self) -> Iterator[None]:
        """Within, the buffers are those of a checkpoint, rank 0's; afterwards each rank's own.

        So that a run goes its way however often it is evaluated, and the figures are those of its
        checkpoints. BatchNorm's statistics, made for that, stay.
        """
        others = self._statistics.others()
        with kept(self._network.module, others):
            replicas.take_rank_zeros(others, self._comm, logged=False)
            yield


def _left(criterion: Criterion, variance: NDArray[np.float64]) -> Loss:
    """Of outputs and targets: (b,) squared errors, over the variance where there is any."""
    many = max(int((variance > 0).sum()), 1)
    weights = np.divide(1.0, many * variance, out=np.zeros_like(variance), where=variance > 0)

    def left(outputs: Tensor, targets: Tensor) -> Tensor:
        predicted = (
            outputs.double() if criterion.units is None else criterion.units.predicted(outputs)
        )
        errors = (predicted - targets.double()).square()
        return (errors * torch.from_numpy(weights).to(errors.device)).sum(dim=1)

    return left


def _variance(parts: Sequence[Samples], comm: Comm) -> NDArray[np.float64]:
    """Of the targets of all ranks, (outputs,); 0 of those that are all alike."""
    count, moments = 0, None
    for _, y in (block for samples in parts for block in samples.blocks(CHUNK)):
        moments = moments or Moments(tuple(y.shape[1:]))
        moments.add(y.cpu().numpy())
        count += len(y)
    width = np.array([0.0 if moments is None else float(moments.result()[0].size)])
    comm.maximum(width)
    own_mean, own_std = np.zeros((2, int(width[0]))) if moments is None else moments.result()
    total = max(parts[0].total, 1)
    mean = own_mean * (count / total)
    comm.allreduce(mean)
    # About the mean of all: squares of large targets would leave nothing of a small variance.
    variance = (own_std**2 + (own_mean - mean) ** 2) * (count / total)
    comm.allreduce(variance)
    return np.where(is_constant(mean, np.sqrt(variance)), 0.0, variance)
