"""A network and a loss of your own: ``--network own_network:network`` where this file lies.

The function gets a task (``kind``, ``sample_shape``, ``outputs``) and gives a module, or a module
and its loss. It is called on every rank after ``torch.manual_seed`` of the run's seed, so that all
start from the same parameters.
"""

import torch
from torch import Tensor, nn


class TwoViews(nn.Module):
    """Looks at the rows and at the columns of grey images."""

    def __init__(self, height: int, width: int, outputs: int) -> None:
        super().__init__()
        self.shape = height, width
        self.rows, self.columns = nn.Linear(width, 16), nn.Linear(height, 16)
        self.last = nn.Linear(16 * (height + width), outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(b, ..., h, w) to (b, outputs)."""
        x = x.reshape(len(x), *self.shape)
        views = self.rows(x).flatten(1), self.columns(x.transpose(1, 2)).flatten(1)
        logits: Tensor = self.last(torch.cat(views, 1).relu())
        return logits


def margin_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Squared hinge of every wrong class: (b, classes) and (b,) to (b,), one loss per sample."""
    right = outputs.gather(1, targets[:, None])
    wrong = (1.0 + outputs - right).clamp(min=0.0).square()
    return wrong.sum(dim=1) - 1.0  # the right class itself has 1


def network(task) -> tuple[nn.Module, object]:  # type: ignore[no-untyped-def]
    """The module and the loss that it is trained and evaluated by."""
    *_, height, width = task.sample_shape
    return TwoViews(height, width, task.outputs), margin_loss
