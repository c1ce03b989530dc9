"""Losses: what is trained on, and what is reported of a network on data.

A loss maps (outputs, targets) to (b,) losses, one per sample. What is evaluated is the plain loss,
free of label smoothing and class weights, so that runs with different ones can be compared and a
perplexity is one. A regression is trained on standardised targets, so that neither their unit nor
their origin matters, and is evaluated in their own units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apts_mpi.errors import InputError
from apts_mpi.networks.custom import Loss, OwnLoss
from apts_mpi.networks.task import Task


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Of (b, classes) logits and (b,) int64 labels: (b,) losses, one per sample."""
    return F.cross_entropy(outputs, targets, reduction="none")


def token_cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Of (b, t, tokens) logits and (b, t) tokens: (b,) losses, a window's mean over its tokens."""
    flat = F.cross_entropy(outputs.flatten(0, 1), targets.flatten().long(), reduction="none")
    return flat.view(targets.shape).mean(dim=1)


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Of (b, outputs) float32 and as many targets: (b,) losses, a sample's mean over outputs."""
    return (outputs - targets).square().mean(dim=1)


@dataclass(frozen=True)
class Units:
    """The units of a regression's targets: a network's outputs are (targets - mean) / std.

    Attributes:
        mean, std: float64 (outputs,), of the targets of the training data, where outputs are.
    """

    mean: Tensor
    std: Tensor

    def __str__(self) -> str:
        """Their ranges over the outputs."""
        named = (("mean", self.mean), ("std", self.std))
        return ", ".join(
            f"{name} {value.min():.4g}"
            + (f" to {value.max():.4g}" if value.min() < value.max() else "")
            for name, value in named
        )

    @cached_property
    def square(self) -> float:
        """What the mean over outputs of squared errors is multiplied by to be in these units."""
        return float(self.std.square().mean())

    def to(self, device: torch.device) -> Units:
        """The same, on a device."""
        return Units(self.mean.to(device), self.std.to(device))

    def predicted(self, outputs: Tensor) -> Tensor:
        """Of (b, outputs): as many float64 numbers in these units."""
        return outputs.double() * self.std + self.mean

    def train(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Of float32 outputs and targets in these units: (b,) squared errors of the outputs."""
        # Not in float32: little may be left of a target where the mean is taken off.
        wanted = ((targets.double() - self.mean) / self.std).to(outputs.dtype)
        return squared_error(outputs, wanted)

    def plain(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The same, but in these units squared, float64."""
        return squared_error(self.predicted(outputs), targets.double())


def right_labels(outputs: Tensor, targets: Tensor) -> Tensor:
    """Of logits and labels: (b,) 1 where the largest logit is the label's, else 0."""
    return outputs.argmax(dim=1) == targets


def right_tokens(outputs: Tensor, targets: Tensor) -> Tensor:
    """Of logits and tokens: (b,) float32, the share of a window's tokens that are right."""
    return (outputs.argmax(dim=2) == targets).float().mean(dim=1)


@dataclass(frozen=True)
class Criterion:
    """What a network is trained and judged by.

    Attributes:
        train: the loss that is trained on. plain: the one that is evaluated.
        right: (outputs, targets) to (b,) shares of right answers; None where there is no right.
        own: whether the loss is the user's own. units: of a regression's targets; None where the
            outputs are in the targets' own, as a loss of the user's has them.
        module: a loss of the user's own that is one.
    """

    train: Loss
    plain: Loss
    right: Loss | None
    own: bool = False
    units: Units | None = None
    module: nn.Module | None = None


_PLAIN: dict[str, tuple[Loss, Loss | None]] = {
    "classification": (cross_entropy, right_labels),
    "language": (token_cross_entropy, right_tokens),
    "regression": (squared_error, None),
}


def criterion(
    task: Task,
    *,
    smoothing: float = 0.0,
    weights: Sequence[float] | None = None,
    own: OwnLoss | None = None,
    units: Units | None = None,
    device: torch.device | str = "cpu",
) -> Criterion:
    """The criterion of a task.

    Args:
        task: cross-entropy for classification, per token for language; squared error for
            regression.
        smoothing: of the labels, 0 to below 1: the target is (1 - smoothing) times the label plus
            smoothing / classes of every class (Szegedy et al. 2015, arXiv 1512.00567).
        weights: of the classes, each sample's loss is multiplied by its class's.
        own: loss that the user's network brings; it is trained on and evaluated. Right answers are
            counted where the outputs are as the task's own.
        units: of a regression's targets; without them, or with a loss of the user's own, it is
            trained on the targets as they are.

    Raises:
        InputError: smoothing or weights that the task has no use for, or not one weight per class.
    """
    plain, right = _PLAIN[task.kind]
    if task.kind == "regression" and smoothing:
        raise InputError(f"--label-smoothing {smoothing:g}: a regression has no labels")
    if task.kind != "classification" and weights is not None:
        raise InputError(f"--class-weights: {task.kind} has no classes to weigh")
    if own is not None:
        if smoothing or weights is not None:
            raise InputError(
                "--label-smoothing and --class-weights are for the program's own losses; the "
                "network brings one"
            )
        each_own = _one_per_sample(own.of)
        module = own.of.to(device) if isinstance(own.of, nn.Module) else None
        answers = right if own.answers else None
        return Criterion(each_own, each_own, answers, own=True, module=module)
    if task.kind == "regression" and units is not None:
        return Criterion(units.train, units.plain, None, units=units)
    if not smoothing and weights is None:
        return Criterion(plain, plain, right)
    if weights is not None and len(weights) != task.outputs:
        raise InputError(f"--class-weights: {len(weights)} weights for {task.outputs} classes")
    each = None if weights is None else torch.tensor(weights, dtype=torch.float32, device=device)

    def smoothed(outputs: Tensor, targets: Tensor) -> Tensor:
        language = task.kind == "language"
        logits = outputs.flatten(0, 1) if language else outputs
        labels = targets.flatten().long() if language else targets
        losses = F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
        if each is not None:
            losses = losses * each[labels]
        return losses.view(targets.shape).mean(dim=1) if language else losses

    return Criterion(smoothed, plain, right)


def _one_per_sample(own: Loss) -> Loss:
    """The user's loss, whose values are looked at: a mean over the batch would go unnoticed."""

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        if not targets.is_floating_point():  # tokens are held in fewer bits
            targets = targets.long()
        losses = own(outputs, targets)
        if losses.shape != (len(targets),):
            raise InputError(
                f"--network: its loss gave shape {tuple(losses.shape)} for {len(targets)} samples; "
                "give one loss per sample, (b,): reduction='none' in torch's own"
            )
        return losses

    return loss


def balanced(counts: Sequence[int]) -> list[float]:
    """Weights that give every class the same sum, and the samples the mean weight 1.

    Args:
        counts: training samples of each class; one without any has weight 0.
    """
    present = sum(count > 0 for count in counts)
    return [sum(counts) / (present * count) if count else 0.0 for count in counts]
