"""The optimizer that the settings name, as training calls it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, Protocol

from apts_mpi.comm.communicator import Comm
from apts_mpi.method.apts import APTS
from apts_mpi.method.baselines import baseline
from apts_mpi.method.iteration import Iteration
from apts_mpi.method.options import BASELINES
from apts_mpi.method.stochastic import StochasticAPTS
from apts_mpi.settings.config import TrainConfig
from apts_mpi.training.flat_network import FlatNetwork
from apts_mpi.trust_region.objective import Draw
from apts_mpi.trust_region.radius import NoisyRule


class Optimizer(Protocol):
    """What training needs of one.

    Attributes:
        OWN: entries of its state that this rank alone has; all others are the same on every rank.
        FORGETS: what of them is lost where a run goes on with another number of ranks.
    """

    OWN: ClassVar[tuple[str, ...]]
    FORGETS: ClassVar[str]

    def iterate(self, *draws: Draw) -> Iteration:
        """One outer iteration; a draw for each subdomain of the rank."""

    def averaged(self) -> AbstractContextManager[None]:
        """A context in which the network has the parameters that are to be evaluated."""

    def state_dict(self) -> dict[str, Any]:
        """What a restart needs besides the parameters."""

    def load_state_dict(self, state: dict[str, Any], *, resized: bool = False) -> None:
        """Restore it; ``resized``: of a run with another number of ranks, and of any of them."""


class OnOneBatch:
    """APTS, whose outer iteration is on one batch, behind the call that all optimizers have.

    Args:
        whole: whether every minibatch is the same, the subdomain's whole part.
    """

    OWN: ClassVar[tuple[str, ...]] = APTS.OWN
    FORGETS: ClassVar[str] = APTS.FORGETS

    def __init__(self, apts: APTS, *, whole: bool) -> None:
        self._apts, self._whole = apts, whole
        self._unlike = 0  # batches to come that are not the one before

    def iterate(self, *draws: Draw) -> Iteration:
        """One outer iteration on each subdomain's next minibatch."""
        same = self._whole and self._unlike == 0
        self._unlike = max(self._unlike - 1, 0)
        return self._apts.iterate(*(draw() for draw in draws), same_batch=same)

    def averaged(self) -> AbstractContextManager[None]:
        """The iterate itself is evaluated."""
        return nullcontext()

    def state_dict(self) -> dict[str, Any]:
        """What a restart needs besides the parameters."""
        return {**self._apts.state_dict(), "unlike": self._unlike}

    def load_state_dict(self, state: dict[str, Any], *, resized: bool = False) -> None:
        """Restore it; on other ranks the rest of a pass may come first, then whole parts again."""
        self._apts.load_state_dict(state, resized=resized)
        self._unlike = 2 if resized else int(state["unlike"])


def optimizer(config: TrainConfig, network: FlatNetwork, comm: Comm, *, whole: bool) -> Optimizer:
    """The optimizer that the settings name.

    Args:
        config: completed. network: the rank's. comm: the ranks.
        whole: whether every minibatch is the same, the subdomain's whole part.

    Raises:
        AgreedError: on every rank, where the ranks' networks differ.
    """
    c = config
    local_steps = c.local_steps or 1  # not completed where every step is joined
    if c.optimizer in BASELINES:
        assert c.lr is not None, "completed settings have one"
        return baseline(c.optimizer, network, comm, lr=c.lr, local_steps=local_steps)
    if not c.deterministic:
        return StochasticAPTS(
            network,
            comm=comm,
            local_steps=local_steps,
            subdomains=c.subdomains_per_rank,
            compress=c.compress,
            radius=c.radius,
            shared=c.shared_moment,
            momentum=c.momentum or 0.0,
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
    apts = APTS(
        network,
        comm=comm,
        local_solver=c.local_solver,
        local_steps=local_steps,
        subdomains=c.subdomains_per_rank,
        compress=c.compress,
        consistency=c.consistency,
        norm=c.norm,
        join=c.join,
        global_step=c.global_step,
        radius=c.radius,
        window=c.window or 1,
        momentum=c.momentum or 0.0,
        memory=c.memory,
    )
    return OnOneBatch(apts, whole=whole)
