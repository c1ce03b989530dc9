"""Loss and accuracy of a network over samples that lie on all ranks."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from apts_mpi.comm import Comm
from apts_mpi.flat import FlatNetwork
from apts_mpi.placement import Samples


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Of (b, classes) logits and (b,) int64 labels: (b,) losses, one a sample."""
    return F.cross_entropy(outputs, targets, reduction="none")


def evaluate(network: FlatNetwork, samples: Samples, comm: Comm) -> tuple[float, float]:
    """Mean loss and share of right answers over all ranks; every rank evaluates its part."""
    own, correct = network.evaluate(samples.x, samples.y)
    loss, right = comm.sum_scalars((own, float(correct)))
    return loss / samples.total, right / samples.total
