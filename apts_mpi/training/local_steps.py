"""``--local-steps auto``: how much work between two messages, and their bits, from what they cost.

Samples S between two messages, over all ranks, are a minibatch and local steps, as with
``--outer-samples S``. An outer iteration then takes the seconds of its messages, and of each local
step those of a minibatch's gradient and of the step. More samples between messages mean more work
in all: on MNIST (784-128-128-10, N = 2 and 8) the work to 97 percent grew like 1 + S / S0 with S0
about an eighth of the training set (docs/trials.md). Of the choices the one is taken that makes

    (1 + S / S0) (seconds of an iteration) / S

least, but the usual S, and more bits in messages, where they take hardly longer. Beyond the usual S
none is more than half the training set, or so much that a run's ITERATIONS would not fit in; but
five steps of the smallest minibatch may be.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

import numpy as np

from apts_mpi.comm.communicator import Comm
from apts_mpi.comm.compression import message_for
from apts_mpi.comm.message import FusedMessage
from apts_mpi.method.options import StochasticOptions
from apts_mpi.method.subdomain import metric_of
from apts_mpi.networks.evaluating import kept
from apts_mpi.settings.config import TrainConfig
from apts_mpi.settings.defaults import ITERATIONS, outer_samples, plan
from apts_mpi.training.flat_network import FlatNetwork
from apts_mpi.training.subdomain import Subdomain

_S0 = 1.0 / 8.0  # of the training set
_LEAST, _MOST = 1.0 / 24.0, 1.0 / 2.0  # of it in an outer iteration: outside was not measured
_CHOICES = 40  # from the one to the other
_FORMS = ("none", "bf16", "int8", "int4")  # most bits first; fp16 takes as many as bf16
_HARDLY = 1.05  # times as long
_MORE = 4  # times the samples of the smaller minibatch that is measured
_TURNS, _SECONDS = 5, 0.02  # after the first message so many more, or as many as this time allows

Plan = Callable[[int], tuple[int, int]]


@dataclass(frozen=True)
class Choice:
    """What an outer iteration computes and sends.

    Attributes:
        form: of the message, one of COMPRESSIONS. batch: samples of a minibatch. steps: local ones.
    """

    form: str
    batch: int
    steps: int


@dataclass(frozen=True)
class Costs:
    """Seconds, on the slowest rank.

    Attributes:
        messages: of an outer iteration, by their form, most bits first.
        gradient: of a minibatch, but for what each of its samples adds. sample: that.
        step: of a local step, the evaluation of its gradient apart.
    """

    messages: Mapping[str, float]
    gradient: float
    sample: float
    step: float

    def evaluation(self, batch: int) -> float:
        """Of a minibatch's gradient."""
        return self.gradient + batch * self.sample

    def iteration(self, choice: Choice, subdomains: int) -> float:
        """Of an outer iteration, each rank computing so many subdomains for one message."""
        steps = subdomains * choice.steps
        return self.messages[choice.form] + steps * (self.step + self.evaluation(choice.batch))


def paced(
    config: TrainConfig,
    comm: Comm,
    say: Callable[[str], object],
    network: FlatNetwork,
    subdomains: Sequence[Subdomain],
    *,
    batch: int | None,
) -> TrainConfig:
    """The settings with what messages, gradients and steps decide that are measured here.

    Args:
        config: completed, but for what is chosen here. batch: the minibatch that was given, if any.
    """
    assert config.epochs is not None, "completed settings have them"
    total, many = subdomains[0].samples.total, comm.size * len(subdomains)
    run = config.epochs * total
    forms = (config.compress,) if config.compress else _FORMS
    if comm.parts < 2:  # which nothing rounds
        forms = forms[:1]
    costs = measure(comm, network, subdomains[0], config, forms)
    choice = chosen(
        costs,
        lambda outer: plan(many, total, outer=outer, context=config.context, batch=batch),
        ranks=comm.size,
        subdomains=len(subdomains),
        samples=total,
        run=run,
        usual=outer_samples(config.context, config.network, run=run),
    )
    say(
        f"{choice.steps} local steps of {choice.batch} samples, --compress {choice.form}: an "
        f"iteration's messages take {1e3 * costs.messages[choice.form]:.3g} ms, a gradient of "
        f"{choice.batch} samples {1e3 * costs.evaluation(choice.batch):.3g} ms, a step "
        f"{1e3 * costs.step:.3g} ms"
    )
    return dataclasses.replace(
        config, local_steps=choice.steps, batch=choice.batch, compress=choice.form
    )


def chosen(
    costs: Costs, of: Plan, *, ranks: int, subdomains: int, samples: int, run: float, usual: int
) -> Choice:
    """The best of an outer iteration's messages, minibatches and steps.

    Args:
        costs: what decides. of: minibatch and local steps by the samples of an outer iteration.
        ranks: how many. subdomains: of a rank. samples: of the training set. run: of all epochs.
        usual: of an outer iteration by default; the least that is looked at is no more.
    """
    least, most = min(_LEAST * samples, usual), max(min(_MOST * samples, run / ITERATIONS), usual)
    outer = [usual, *np.geomspace(least, most, _CHOICES).round().astype(int).tolist()]
    plans = list(dict.fromkeys(of(max(each, 1)) for each in outer))

    def seconds(choice: Choice) -> float:
        seen = ranks * subdomains * choice.batch * choice.steps
        return (1.0 + seen / (_S0 * samples)) * costs.iteration(choice, subdomains) / seen

    choices = [Choice(form, *each) for form in costs.messages for each in plans]
    best = {
        form: min((each for each in choices if each.form == form), key=seconds)
        for form in costs.messages
    }
    enough = _HARDLY * min(map(seconds, best.values()))
    preferred = [each for form in best for each in (Choice(form, *plans[0]), best[form])]
    return next(each for each in preferred if seconds(each) <= enough)


def measure(
    comm: Comm,
    network: FlatNetwork,
    subdomain: Subdomain,
    config: TrainConfig,
    forms: Sequence[str] = ("none",),
) -> Costs:
    """What an outer iteration's messages, gradients and local steps take here.

    Every rank calls it, and all get the same numbers. Parameters and buffers are as before.

    Args:
        network: of this rank. subdomain: whose samples are evaluated. config: completed.
        forms: of the vector's message, any number of COMPRESSIONS.
    """
    assert config.batch is not None, "completed settings have one"
    batch, nothing = config.batch, network.vector[:0]
    x, y = next(subdomain.samples.blocks(_MORE * batch), (nothing, nothing))

    def evaluate(count: int) -> None:
        if len(y):
            network.loss_and_gradient(x[:count], y[:count])

    most = np.array([float(len(y))])
    comm.maximum(most)  # the first makes connections
    theta = network.vector.clone()
    with kept(network.module):
        gradient = _agreed(comm, partial(evaluate, batch), _TURNS)
        sample = gradient / batch
        if most[0] >= 2 * batch:  # else their difference would be noise
            more = _agreed(comm, partial(evaluate, len(y)), _TURNS)
            sample = min(max((more - gradient) / (float(most[0]) - batch), 0.01 * sample), sample)
        options = StochasticOptions(local_solver=config.local_solver)
        step = _agreed(comm, _steps(network, options), 1) / _TURNS
    network.vector.copy_(theta)
    messages = {}
    for form in forms:
        message = message_for(form, network.n, 6, network.vector.device, comm)

        def send(message: FusedMessage = message) -> None:
            comm.sum_message(message, (0.0,))
            comm.sum_scalars((0.0,))

        taken = _agreed(comm, send, 1)
        # The same on every rank, and so are the turns: a dear message is not sent for nothing.
        turns = min(_TURNS, int(_SECONDS / max(taken, 1e-9)))
        messages[form] = _agreed(comm, send, turns) if turns > 0 else taken
    return Costs(messages, gradient - batch * sample, max(sample, 1e-12), step)


def _steps(network: FlatNetwork, options: StochasticOptions) -> Callable[[], object]:
    """As many as the same polar factors may last, from the gradient that is there."""
    metric = metric_of(options, network)
    for _ in range(2):  # the first make new ones each
        metric.step(0.0)

    def steps() -> float:
        for _ in range(_TURNS):
            metric.step(0.0)
        return float(network.vector[0])  # which waits for a GPU

    return steps


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
