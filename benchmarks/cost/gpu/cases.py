"""The networks and ways to compute that ``gpu`` measures, and what is aimed at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

STEPS = 10  # local ones an outer iteration: eleven drawings, ten gradients and a forward evaluation
WAYS = ("fp32", "tf32", "bf16", "bf16 compiled")  # precision, torch.compile


@dataclass(frozen=True)
class Case:
    """A network on random data, and the batch of a local step.

    Attributes:
        kind, shape, outputs: of the task. goal: percent of time that the method may add; None
        where nothing is aimed at.
    """

    network: str
    sizes: dict[str, Any]
    kind: str
    shape: tuple[int, ...]
    outputs: int
    batch: int
    goal: float | None


RESNET = {"width": 16, "normalization": "group"}
CASES = {
    "resnet-20": Case(
        "resnet", {**RESNET, "depth": 20}, "classification", (3, 32, 32), 10, 128, 10.0
    ),
    "resnet-56": Case(
        "resnet", {**RESNET, "depth": 56}, "classification", (3, 32, 32), 10, 128, 10.0
    ),
    "transformer-10M": Case(
        "transformer",
        {"depth": 6, "width": 384, "heads": 6, "tied": False},
        "language",
        (256,),
        65,
        32,
        5.0,
    ),
    # To try the benchmark itself, on a CPU too.
    "mlp-small": Case("mlp", {"hidden": (32,)}, "classification", (64,), 10, 16, None),
}
DEFAULT = ("resnet-20", "transformer-10M")
