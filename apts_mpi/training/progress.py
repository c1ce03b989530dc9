"""How far a run is: iterations, work, the last figures and the best; rows of the metrics."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

from apts_mpi.comm.clock import COMMUNICATION
from apts_mpi.method.iteration import Iteration

Lap = dict[str, float]  # seconds by phase


@dataclass
class Progress:
    """How far a run is; the same on every rank.

    Attributes:
        iterations: outer ones done, accepted of them so many. work: gradient evaluations.
        evaluated_at: epoch of the last evaluation. losses: what it gave, and the best so far that
            validation samples gave, with its epoch, where there are any.
        converged: whether there is nothing left to do.
    """

    iterations: int = 0
    accepted: int = 0
    work: float = 0.0
    evaluated_at: float = -math.inf
    losses: dict[str, float | None] = field(default_factory=dict)
    converged: bool = False

    def count(
        self,
        result: Iteration,
        lap: Lap,
        *,
        samples: int,
        passes: float,
        nbytes: int,
        square: float | None,
    ) -> dict[str, Any]:
        """Take note of what an iteration did; its row of the metrics.

        Args:
            samples: of the training set. passes: over it, so far. nbytes: that each rank sent in
                the iteration. square: what makes losses those of the targets' units.
        """
        self.iterations += 1
        self.accepted += result.accepted
        self.work += result.gradient_evaluations
        row = _row(self.iterations, self.work / samples, result)
        row["passes"], row["bytes"] = passes, nbytes
        if square is not None:  # what is minimised, in the units of the targets
            for name in {"loss", "local_reduction"} & set(row):
                row[name] *= square
        row["seconds"] = sum(lap.values())
        row["seconds_data"], row["seconds_wait"] = lap["data"], lap["wait"]
        row["seconds_communication"] = sum(lap[phase] for phase in COMMUNICATION)
        # The same batch again, and nothing to try.
        self.converged = result.gradient_evaluations == 0.0
        return row

    def evaluated(self, row: dict[str, Any], figures: dict[str, float | None]) -> None:
        """Take note of an evaluation after the iteration with that row."""
        self.evaluated_at = row["epoch"]
        self.losses = {**figures, **_best(self.losses, figures, row)}

    @property
    def unimproved(self) -> int | None:
        """Evaluations since the best on the validation samples; None where there are none."""
        since = self.losses.get("evaluations_since_best")
        return None if since is None else int(since)

    def totals(self, samples: int) -> dict[str, Any]:
        """What a summary says of it."""
        return {
            "epochs": self.work / samples,
            "outer_iterations": self.iterations,
            "accepted": self.accepted,
            "rejected": self.iterations - self.accepted,
            "gradient_evaluations": self.work,
        }


def _best(
    before: dict[str, float | None], figures: dict[str, float | None], row: dict[str, Any]
) -> dict[str, float | None]:
    """The best on the validation samples so far, and when; nothing where there are none.

    That is the highest accuracy of classes, the lowest loss of anything else.
    """
    if "val_loss" not in figures:
        return {}
    by = "val_loss"
    if figures["val_accuracy"] is not None and "val_perplexity" not in figures:
        by = "val_accuracy"
    value, best = figures[by], before.get(f"best_{by}")
    if value is None or not math.isfinite(value):
        better = False
    elif best is None:
        better = True
    else:
        better = value > best if by == "val_accuracy" else value < best
    if better:
        found = {"best_epoch": row["epoch"], "best_passes": row["passes"]}
        return {f"best_{by}": value, **found, "evaluations_since_best": 0}
    kept = {name: before.get(name) for name in (f"best_{by}", "best_epoch", "best_passes")}
    return {**kept, "evaluations_since_best": (before.get("evaluations_since_best") or 0) + 1}


def _row(iteration: int, epochs: float, result: Iteration) -> dict[str, Any]:
    row = {"iteration": iteration, "epoch": epochs, **vars(result)}
    if math.isnan(result.radius):  # no trust region, so that its fields say nothing
        for item in dataclasses.fields(result):
            if item.default is not dataclasses.MISSING:
                del row[item.name]
    return row
