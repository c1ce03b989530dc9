"""The curves of the method's authors, as ``reference/README.md`` describes them."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from apts_mpi.errors import InputError
from benchmarks.harness.jobs import ROOT

EXTRACT = ROOT / "benchmarks" / "reference" / "mnist_6_minibatches.csv"
MINIBATCHES, OVERLAP = 6, 5  # per pass; percent
ORDERS = {"first-order": 1, "sr1": 2}  # by our local solvers
ADAM = ("adam", 1, 0)
# Gradient evaluations per sample that an epoch of theirs takes, about.
APTS_WORK, ADAM_WORK = 7, 1


@dataclass(frozen=True)
class Curve:
    """Published test accuracies in percent by epoch: least, mean and largest over their runs."""

    least: dict[int, float]
    mean: dict[int, float]
    largest: dict[int, float]

    def at(self, epoch: int) -> str:
        """As in our tables; ``-`` where they stopped before."""
        if epoch not in self.mean:
            return "-"
        return f"{self.mean[epoch]:.1f} [{self.least[epoch]:.1f}, {self.largest[epoch]:.1f}]"


def read_reference(path: Path) -> dict[tuple[str, int, int], Curve]:
    """Published curves by optimizer, subdomains and order (0: none), of the set-up used here.

    Raises:
        InputError: the file cannot be read, or has other columns.
    """
    curves: dict[tuple[str, int, int], Curve] = {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                setting = (row["dataset"], int(row["minibatches"]), float(row["overlap_percent"]))
                if setting != ("mnist", MINIBATCHES, OVERLAP):
                    continue
                key = (row["optimizer"], int(row["subdomains"]), int(row["order"] or 0))
                curve = curves.setdefault(key, Curve({}, {}, {}))
                epoch = int(row["epoch"])
                curve.least[epoch] = float(row["test_accuracy_min"])
                curve.mean[epoch] = float(row["test_accuracy_mean"])
                curve.largest[epoch] = float(row["test_accuracy_max"])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"--reference {path}: cannot be read: {error}") from None
    except (KeyError, ValueError) as error:
        raise InputError(
            f"--reference {path}: is not a table of curves ({type(error).__name__}: {error})"
        ) from None
    if ADAM not in curves:
        raise InputError(f"--reference {path}: has no Adam on mnist with {MINIBATCHES} minibatches")
    return curves
