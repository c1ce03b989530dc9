"""The optimizer that the settings name, as training calls it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from apts_mpi.apts import APTS
from apts_mpi.baselines import baseline
from apts_mpi.comm import Comm
from apts_mpi.config import BASELINES, TrainConfig
from apts_mpi.flat import FlatNetwork
from apts_mpi.iteration import Draw, Iteration
from apts_mpi.stochastic import StochasticAPTS
from apts_mpi.trust_region.radius import NoisyRule


def outer_iteration(
    config: TrainConfig, network: FlatNetwork, comm: Comm, *, whole: bool
) -> tuple[Callable[[Draw], Iteration], Callable[[], AbstractContextManager[None]]]:
    """One outer iteration of the optimizer that the settings name, as a call.

    Beside it a context in which the network has the parameters that are to be evaluated.

    Args:
        config: completed. network: the rank's. comm: the ranks.
        whole: whether every minibatch is the same, the rank's whole part.

    Raises:
        AgreedError: on every rank, where the ranks' networks differ.
    """
    c = config
    local_steps = c.local_steps or 1  # not completed where every step is joined
    if c.optimizer in BASELINES:
        assert c.lr is not None, "completed settings have one"
        lr = c.lr
        found = baseline(c.optimizer, network, comm, lr=lr, local_steps=local_steps)
        return found.iterate, nullcontext
    if not c.deterministic:
        stochastic = StochasticAPTS(
            network,
            comm=comm,
            local_steps=local_steps,
            radius=c.radius,
            momentum=c.momentum,
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
        return stochastic.iterate, stochastic.averaged
    apts = APTS(
        network,
        comm=comm,
        local_solver=c.local_solver,
        local_steps=local_steps,
        consistency=c.consistency,
        norm=c.norm,
        join=c.join,
        global_step=c.global_step,
        radius=c.radius,
        window=c.window or 1,
        momentum=c.momentum,
        memory=c.memory,
    )

    def iterate(draw: Draw) -> Iteration:
        objective, samples = draw()
        return apts.iterate(objective, samples=samples, same_batch=whole)

    return iterate, nullcontext
