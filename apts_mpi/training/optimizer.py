"""The optimizer that the settings name, as training calls it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, ClassVar, Protocol

from apts_mpi.comm.communicator import Comm
from apts_mpi.method.apts import DeterministicMethod
from apts_mpi.method.iteration import Iteration
from apts_mpi.method.options import BASELINES
from apts_mpi.method.peers import baseline
from apts_mpi.method.schedule import Schedule
from apts_mpi.method.stochastic import StochasticMethod
from apts_mpi.settings.config import TrainConfig
from apts_mpi.training.flat_network import FlatNetwork
from apts_mpi.trust_region.objective import Draw
from apts_mpi.trust_region.radius import NoisyRule


class Optimizer(Protocol):
    """What training needs of one.

    Attributes:
        PER_RANK: entries of its state that only this rank has; all others are the same on all.
        LOST_ON_RESIZE: what of them is lost where a run resumes on another number of ranks.
        done: part of the run's work that is done, 0 to 1; training sets it before an iteration.
    """

    PER_RANK: ClassVar[tuple[str, ...]]
    LOST_ON_RESIZE: ClassVar[str]
    done: float

    def iterate(self, *draws: Draw) -> Iteration:
        """One outer iteration; a draw for each subdomain of the rank."""

    def averaged(self) -> AbstractContextManager[None]:
        """A context in which the network has the parameters that are to be evaluated."""

    def state_dict(self) -> dict[str, Any]:
        """What a restart needs besides the parameters."""

    def shared_state(self) -> dict[str, Any]:
        """A copy of what of it is the same on all ranks, without the entries of ``PER_RANK``."""

    def load_state_dict(self, state: dict[str, Any], *, resized: bool = False) -> None:
        """Restore it; ``resized``: of a run with another number of ranks, and of any of them."""


def optimizer(
    config: TrainConfig,
    network: FlatNetwork,
    comm: Comm,
    task: str,
    *,
    per_pass: int = 1,
) -> Optimizer:
    """The optimizer that the settings name.

    Args:
        config: completed. network: the rank's. comm: the ranks. task: what it is for.
        per_pass: minibatches of a pass over the samples, for a baseline's schedule.

    Raises:
        AgreedError: on every rank, where the ranks' networks differ.
    """
    c = config
    local_steps = c.local_steps or 1  # not completed where every step is joined
    if c.optimizer in BASELINES:
        assert c.lr is not None, "completed settings have one"
        step = 1.0 / (per_pass * (c.epochs or 1.0))
        schedule = Schedule(c.schedule, c.warmup / 100.0, step)
        return baseline(
            c.optimizer, network, comm, lr=c.lr, local_steps=local_steps, schedule=schedule
        )
    if not c.deterministic:
        return StochasticMethod(
            network,
            comm=comm,
            local_steps=local_steps,
            subdomains=c.subdomains_per_rank,
            compress=c.compress or "none",
            radius=c.radius,
            shared=c.shared_moment,
            momentum=c.momentum,
            weight_decay=c.weight_decay,
            cooldown=(c.cooldown or 0.0) / 100.0,
            classification=task == "classification",
            local_solver=c.local_solver,
            averaging=c.averaging,
            rule=NoisyRule(
                smoothing=c.smoothing,
                grow_above=c.grow_above,
                grow=c.grow,
                shrink_below=c.shrink_below,
                shrink=c.shrink,
                window=c.window or 1,
            ),
        )
    return DeterministicMethod(
        network,
        comm=comm,
        local_solver=c.local_solver,
        local_steps=local_steps,
        subdomains=c.subdomains_per_rank,
        compress=c.compress or "none",
        consistency=c.consistency,
        norm=c.norm,
        join=c.join,
        global_step=c.global_step,
        radius=c.radius,
        window=c.window or 1,
        momentum=c.momentum or 0.0,
        memory=c.memory,
    )
