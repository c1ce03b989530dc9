"""``--local-steps auto``: how much work between two messages, from what both cost here.

An outer iteration of S samples over all ranks costs a message, T seconds, and S / (N b)
minibatches of b samples per rank, t seconds each. More samples between messages mean more work in
all: on MNIST the work to 97 percent grew like 1 + S / S0 with S0 two thirds of the training set
(N = 2, minibatches of 64). The time, (1 + S / S0) (T / S + t / (N b)), is least at

    S = sqrt(S0 N b T / t).
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from statistics import median

import numpy as np
from torch import Tensor

from apts_mpi.comm.communicator import Comm
from apts_mpi.comm.compression import message_for
from apts_mpi.networks.evaluating import kept
from apts_mpi.settings.config import TrainConfig
from apts_mpi.training.flat_network import FlatNetwork
from apts_mpi.training.subdomain import Subdomain

_S0 = 2.0 / 3.0  # of the training set
_LEAST, _MOST = 1.0 / 12.0, 1.0 / 2.0  # of it in an outer iteration: outside was not measured
_FEWEST_STEPS = 5
_SCALAR_MESSAGES = 2  # of an outer iteration, besides the vector
_TURNS, _SECONDS = 5, 0.02  # after the first message so many more, or as many as this time allows


def paced(
    config: TrainConfig,
    comm: Comm,
    say: Callable[[str], object],
    network: FlatNetwork,
    subdomains: Sequence[Subdomain],
) -> TrainConfig:
    """The settings with as many local steps as messages and gradients cost here."""
    assert config.batch is not None, "completed settings have one"
    samples, many = subdomains[0].samples, len(subdomains)
    x, y = next(samples.blocks(config.batch))
    with kept(network.module):
        message, gradient = measure(
            comm,
            network.vector,
            lambda: len(y) and network.loss_and_gradient(x, y),
            compress=config.compress or "none",
        )
    steps = local_steps(
        message=message,
        gradient=many * gradient,  # a rank's subdomains take their steps one after another
        samples=samples.total,
        subdomains=comm.size * many,
        batch=config.batch,
    )
    say(
        f"{steps} local steps of {config.batch} samples: an iteration's messages take "
        f"{1e3 * message:.3g} ms, a gradient {1e3 * gradient:.3g} ms"
    )
    return dataclasses.replace(config, local_steps=steps)


def local_steps(
    *, message: float, gradient: float, samples: int, subdomains: int, batch: int
) -> int:
    """Local steps of an outer iteration.

    Args:
        message: seconds of an outer iteration's messages. gradient: seconds in which every
            subdomain evaluates one.
        samples: of the training set. subdomains: how many. batch: samples of a minibatch.
    """
    together = subdomains * batch
    best = math.sqrt(_S0 * samples * together * message / gradient)
    within = min(max(best, _LEAST * samples), _MOST * samples)
    return min(max(round(within / together), _FEWEST_STEPS), 1000)


def measure(
    comm: Comm, vector: Tensor, evaluate: Callable[[], object], *, compress: str = "none"
) -> tuple[float, float]:
    """Seconds of an outer iteration's messages and of a gradient evaluation, on the slowest rank.

    Every rank calls it, and all get the same numbers.

    Args:
        vector: (n,) parameters, as long and on the same device as what is sent.
        evaluate: one gradient evaluation on this rank. compress: how vectors are sent.
    """
    message = message_for(compress, len(vector), 6, vector.device, comm)

    def messages() -> None:
        comm.sum_message(message, (0.0,))
        for _ in range(_SCALAR_MESSAGES):
            comm.sum_scalars((0.0,))

    comm.sum_scalars((0.0,))  # the first makes connections
    found = np.array([_seconds(evaluate, _TURNS), _seconds(messages, 1)])
    comm.maximum(found)
    # The same on every rank, and so are the turns: a dear message is not sent for nothing.
    turns = min(_TURNS, int(_SECONDS / max(float(found[1]), 1e-9)))
    if turns > 0:
        found[1] = _seconds(messages, turns)
        comm.maximum(found)
    return float(found[1]), float(found[0])


def _seconds(what: Callable[[], object], turns: int) -> float:
    """Median of so many."""
    taken = []
    for _ in range(turns):
        start = time.perf_counter()
        what()
        taken.append(time.perf_counter() - start)
    return median(taken)
