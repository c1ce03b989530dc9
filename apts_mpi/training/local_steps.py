"""``--local-steps auto``: how much work between two messages, and their bits, from what they cost.

An outer iteration of S samples over all ranks costs a message, T seconds, and t seconds for each
sample, all ranks computing at once. More samples between messages mean more work in all: on MNIST
the work to 97 percent grew like 1 + S / S0 with S0 two thirds of the training set (N = 2,
minibatches of 64). The time, (1 + S / S0) (T / S + t), is least at

    S = sqrt(S0 T / t).

Minibatch and steps are then those of so many ``--outer-samples``. Without ``--compress`` a vector
is sent in the most bits with which a run takes hardly longer than with the best choice.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
from torch import Tensor

from apts_mpi.comm.communicator import Comm
from apts_mpi.comm.compression import message_for
from apts_mpi.comm.message import FusedMessage
from apts_mpi.networks.evaluating import kept
from apts_mpi.settings.config import TrainConfig
from apts_mpi.settings.defaults import outer_samples, plan
from apts_mpi.training.flat_network import FlatNetwork
from apts_mpi.training.subdomain import Subdomain

_S0 = 2.0 / 3.0  # of the training set
_LEAST, _MOST = 1.0 / 12.0, 1.0 / 2.0  # of it in an outer iteration: outside was not measured
_FORMS = ("none", "bf16", "int8", "int4")  # most bits first; fp16 takes as many as bf16
_HARDLY = 1.05  # times as long
_SCALAR_MESSAGES = 2  # of an outer iteration, besides the vector
_TURNS, _SECONDS = 5, 0.02  # after the first message so many more, or as many as this time allows


def paced(
    config: TrainConfig,
    comm: Comm,
    say: Callable[[str], object],
    network: FlatNetwork,
    subdomains: Sequence[Subdomain],
    *,
    batch: int | None,
) -> TrainConfig:
    """The settings with what messages and gradients decide that are measured here.

    Args:
        config: completed, but for what is chosen here. batch: the minibatch that was given, if any.
    """
    assert config.batch is not None, "completed settings have one"
    samples, many = subdomains[0].samples, comm.size * len(subdomains)
    x, y = next(samples.blocks(config.batch))
    forms = (config.compress,) if config.compress else _FORMS
    if comm.parts < 2:  # which nothing rounds
        forms = forms[:1]
    with kept(network.module):
        messages, gradient = measure(
            comm,
            network.vector,
            lambda: len(y) and network.loss_and_gradient(x, y),
            forms=forms,
        )
    choice = chosen(
        dict(zip(forms, messages, strict=True)),
        gradient / (comm.size * config.batch),
        samples=samples.total,
        usual=outer_samples(config.context),
    )
    batch, steps = plan(
        many, samples.total, outer=choice.samples, context=config.context, batch=batch
    )
    say(
        f"{steps} local steps of {batch} samples, --compress {choice.form}: an iteration's "
        f"messages take {1e3 * choice.message:.3g} ms, a gradient of {config.batch} samples "
        f"{1e3 * gradient:.3g} ms"
    )
    return dataclasses.replace(config, local_steps=steps, batch=batch, compress=choice.form)


@dataclass(frozen=True)
class Choice:
    """What an outer iteration sends, and when.

    Attributes:
        form: of the message, one of COMPRESSIONS. message: seconds it takes.
        samples: of an outer iteration.
    """

    form: str
    message: float
    samples: int


def chosen(
    messages: dict[str, float],
    each: float,
    *,
    samples: int,
    usual: int,
) -> Choice:
    """The best of an outer iteration's messages, and samples.

    Args:
        messages: their seconds by form, most bits first. each: seconds for a sample.
        samples: of the training set. usual: of an outer iteration by default; the least that is
            taken is no more.
    """
    growth = _S0 * samples
    least = min(_LEAST * samples, usual)
    found = list[tuple[float, Choice]]()
    for form, message in messages.items():
        best = min(max(math.sqrt(growth * message / each), least), _MOST * samples)
        outer = max(round(best), 1)
        seconds = (1.0 + outer / growth) * (message / outer + each)
        found.append((seconds, Choice(form, message, outer)))
    shortest = min(seconds for seconds, _ in found)
    return next(choice for seconds, choice in found if seconds <= _HARDLY * shortest)


def measure(
    comm: Comm,
    vector: Tensor,
    evaluate: Callable[[], object],
    *,
    forms: Sequence[str] = ("none",),
) -> tuple[list[float], float]:
    """Seconds of an outer iteration's messages and of a gradient evaluation, on the slowest rank.

    Every rank calls it, and all get the same numbers.

    Args:
        vector: (n,) parameters, as long and on the same device as what is sent.
        evaluate: one gradient evaluation on this rank. forms: of the vector's message, any number
            of COMPRESSIONS.

    Returns:
        The messages' seconds, one per form, and the evaluation's.
    """
    comm.sum_scalars((0.0,))  # the first makes connections
    gradient = _agreed(comm, evaluate, _TURNS)
    seconds = []
    for form in forms:
        message = message_for(form, len(vector), 6, vector.device, comm)

        def messages(message: FusedMessage = message) -> None:
            comm.sum_message(message, (0.0,))
            for _ in range(_SCALAR_MESSAGES):
                comm.sum_scalars((0.0,))

        taken = _agreed(comm, messages, 1)
        # The same on every rank, and so are the turns: a dear message is not sent for nothing.
        turns = min(_TURNS, int(_SECONDS / max(taken, 1e-9)))
        seconds.append(_agreed(comm, messages, turns) if turns > 0 else taken)
    return seconds, max(gradient, 1e-9)


def _agreed(comm: Comm, what: Callable[[], object], turns: int) -> float:
    """Median of so many, on the slowest rank."""
    found = np.array([_seconds(what, turns)])
    comm.maximum(found)
    return float(found[0])


def _seconds(what: Callable[[], object], turns: int) -> float:
    """Median of so many."""
    taken = []
    for _ in range(turns):
        start = time.perf_counter()
        what()
        taken.append(time.perf_counter() - start)
    return median(taken)
