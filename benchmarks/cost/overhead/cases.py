"""The networks and methods that ``cost`` measures, and what is aimed at."""

from __future__ import annotations

from dataclasses import dataclass

SOLVERS = ("scaled", "sr1", "first-order")
METHODS = (*SOLVERS, "adam")
VECTORS = 6.0  # besides parameters and gradient; L-SR1 two more a pair


@dataclass(frozen=True)
class Network:
    """Widths of a network but for the outputs.

    Attributes:
        goal: percent of time that the default may add. repetitions: of each measurement.
    """

    inputs: int
    hidden: tuple[int, ...]
    goal: float
    repetitions: int


NETWORKS = {
    "784-128-128-10": Network(784, (128, 128), 15.0, 60),
    "3072-512-256-10": Network(3072, (512, 256), 10.0, 15),
}
