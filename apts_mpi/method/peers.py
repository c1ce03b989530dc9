"""The baselines by their names in the settings, with what their authors or torch give them."""

from __future__ import annotations

from collections.abc import Callable

from apts_mpi.comm.communicator import Comm
from apts_mpi.method.baselines import Baseline, GradientAveraging, LocalSteps
from apts_mpi.method.descent import SGD, Adam, Muon, Step
from apts_mpi.method.flat import FlatParameters
from apts_mpi.method.options import SGD_MOMENTUM
from apts_mpi.method.packages import Prodigy, ScheduleFree
from apts_mpi.method.schedule import CONSTANT, Schedule


def local_sgd(
    flat: FlatParameters,
    comm: Comm,
    *,
    lr: float,
    local_steps: int,
    momentum: float = SGD_MOMENTUM,
    schedule: Schedule = CONSTANT,
) -> LocalSteps:
    """Local SGD (Stich, ICLR 2019, arXiv 1805.09767): the ranks' parameters are averaged.

    An outer step of length one. The paper has no momentum; here it is sgd's, its buffers local.
    """
    inner, outer = SGD(lr=lr, momentum=momentum), SGD(lr=1.0)
    return LocalSteps(flat, comm, local_steps, inner, outer, schedule)


def diloco(
    flat: FlatParameters, comm: Comm, *, lr: float, local_steps: int, schedule: Schedule = CONSTANT
) -> LocalSteps:
    """DiLoCo (Douillard et al. 2023, arXiv 2311.08105): AdamW inside, Nesterov's momentum outside.

    As published: weight decay 0.1, outer rate 0.7, outer momentum 0.9; inner rate: ``schedule``.
    """
    inner, outer = Adam(lr=lr, decay=0.1), SGD(lr=0.7, momentum=0.9, nesterov=True)
    return LocalSteps(flat, comm, local_steps, inner, outer, schedule)


def muloco(
    flat: FlatParameters, comm: Comm, *, lr: float, local_steps: int, schedule: Schedule = CONSTANT
) -> LocalSteps:
    """MuLoCo (Therien et al. 2025, arXiv 2505.23725): DiLoCo with Muon inside.

    Outer rate 0.7, outer momentum 0.6; all else as diloco, weight decay 0.1 included.
    """
    inner, outer = Muon(flat.layers(), lr=lr, decay=0.1), SGD(lr=0.7, momentum=0.6, nesterov=True)
    return LocalSteps(flat, comm, local_steps, inner, outer, schedule)


def baseline(
    name: str,
    flat: FlatParameters,
    comm: Comm,
    *,
    lr: float,
    local_steps: int,
    schedule: Schedule = CONSTANT,
) -> Baseline:
    """A baseline by its name in the settings; ``local_steps`` of those that take any.

    Weight decay is 0.01 in adamw, as torch has it, and none in the others that average gradients.

    Raises:
        KeyError: no baseline has that name.
    """
    local = {"local-sgd": local_sgd, "diloco": diloco, "muloco": muloco}
    if name in local:
        return local[name](flat, comm, lr=lr, local_steps=local_steps, schedule=schedule)
    steps: dict[str, Callable[[], Step]] = {
        "sgd": lambda: SGD(lr=lr, momentum=SGD_MOMENTUM),
        "adam": lambda: Adam(lr=lr),
        "adamw": lambda: Adam(lr=lr, decay=0.01),
        "muon": lambda: Muon(flat.layers(), lr=lr),
        "schedule-free": lambda: ScheduleFree(flat.vector, lr=lr),
        "prodigy": lambda: Prodigy(flat.vector, lr=lr, warms_up=schedule.warmup > 0.0),
    }
    return GradientAveraging(flat, comm, steps[name](), schedule)
