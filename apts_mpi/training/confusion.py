"""Which classes are taken for which: figures by class of an evaluation over all ranks."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from apts_mpi.comm.communicator import Comm
from apts_mpi.networks.losses import Criterion

TOP = 5
_MOST = 2000  # classes of a confusion matrix, 32 MB
_WIDE, _LISTED = 16, 10  # classes of a matrix in text; rows of a list in its place


class Tally:
    """Counts right and wrong answers by class, as a network is evaluated.

    Args:
        classes: their names.

    Attributes:
        counts: float64 (classes, classes), samples by their class and the predicted one.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = classes
        self.counts = np.zeros((len(classes), len(classes)))
        self._top = 0.0

    def right(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Of (b, classes) logits and (b,) labels: (b,) whether the largest is the label's."""
        many, predicted = len(self.classes), outputs.argmax(dim=1)
        pairs = torch.bincount(targets.long() * many + predicted, minlength=many * many)
        self.counts += pairs.cpu().numpy().reshape(many, many)
        highest = outputs.topk(min(TOP, many), dim=1).indices
        self._top += float((highest == targets[:, None]).sum())
        return predicted == targets

    def join(self, comm: Comm) -> None:
        """Add what all ranks have counted; every rank calls it."""
        comm.allreduce(self.counts)
        (self._top,) = comm.sum_scalars([self._top])

    def figures(self) -> dict[str, float]:
        """Of all classes: the share whose label is among the five largest, where that says much."""
        if len(self.classes) <= TOP:
            return {}
        return {f"top{TOP}_accuracy": self._top / max(self.counts.sum(), 1.0)}

    def by_class(self) -> list[dict[str, Any]]:
        """Name, samples, recall, precision and F1 of every class; None where there are none."""
        right, own, called = np.diag(self.counts), self.counts.sum(1), self.counts.sum(0)
        return [
            {
                "class": name,
                "samples": int(own[k]),
                "recall": _share(right[k], own[k]),
                "precision": _share(right[k], called[k]),
                "f1": _share(2 * right[k], own[k] + called[k]),
            }
            for k, name in enumerate(self.classes)
        ]

    def details(self) -> dict[str, Any]:
        """What a file has of it: figures by class, and the matrix, rows by true class."""
        matrix = self.counts.astype(int).tolist()
        return {"classes": list(self.classes), "by_class": self.by_class(), "confusion": matrix}

    def table(self) -> str:
        """Figures by class, the worst of many; and what is taken for what."""
        found, note = self.by_class(), ""
        if len(found) > _WIDE:  # too many to read
            found = sorted(found, key=lambda row: row["f1"] if row["samples"] else 2.0)[:_LISTED]
            note = f" (the {_LISTED} with the lowest F1 of {len(self.classes)})"
        head = [f"class{note}", "samples", "recall", "precision", "F1"]
        rows = [
            [row["class"], str(row["samples"]), *map(_shown, list(row.values())[2:])]
            for row in found
        ]
        return "\n\n".join((_columns([head, *rows]), self._taken()))

    def _taken(self) -> str:
        """The matrix, or of many classes the most frequent errors."""
        if len(self.classes) <= _WIDE:
            head = ["true class \\ predicted", *self.classes]
            pairs = zip(self.classes, self.counts, strict=True)
            return _columns([head, *([name, *(f"{n:.0f}" for n in own)] for name, own in pairs)])
        wrong = self.counts - np.diag(np.diag(self.counts))
        worst = np.argsort(-wrong, axis=None, kind="stable")[:_LISTED]
        rows = [["true class", "predicted", "samples", "of the class"]]
        for own, called in zip(*np.unravel_index(worst, wrong.shape), strict=True):
            if wrong[own, called] > 0:
                share = wrong[own, called] / self.counts[own].sum()
                names = [self.classes[own], self.classes[called]]
                rows.append([*names, str(int(wrong[own, called])), f"{100 * share:.1f} %"])
        return _columns(rows, left=2)


def tallied(criterion: Criterion, classes: Sequence[str]) -> tuple[Criterion, Tally | None]:
    """A criterion that counts by class as it judges, and the counts.

    None where there are no classes, no right answers, or too many classes for a matrix.
    """
    if criterion.right is None or not 0 < len(classes) <= _MOST:
        return criterion, None
    tally = Tally(classes)
    return dataclasses.replace(criterion, right=tally.right), tally


def _share(part: float, whole: float) -> float | None:
    return float(part / whole) if whole else None


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _columns(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Rows in columns, the first ones flush left, names of any length cut."""
    rows = [[cell if len(cell) <= 40 else f"{cell[:37]}..." for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if k < left else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
