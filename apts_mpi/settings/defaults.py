"""What settings are where they are not given, from the data and the number of subdomains."""

from __future__ import annotations

import dataclasses
import math

from apts_mpi.method.options import BASELINES, LOCAL, MOMENTA, MOMENTUM
from apts_mpi.settings.config import TrainConfig
from apts_mpi.settings.texts import AUTO

CONTEXT = 64  # tokens of a window of text
# An optimizer or local solver not named here has none.
LEARNING_RATES = {
    **dict.fromkeys(("sgd", "local-sgd"), 0.1),
    **dict.fromkeys(("adam", "adamw", "diloco"), 1e-3),
    **dict.fromkeys(("muon", "muloco"), 3e-3),
    **{"schedule-free": 2.5e-3, "prodigy": 1.0},  # their packages' own
}
SPECTRAL_COOLDOWN, TEXT_COOLDOWN = 25.0, 50.0  # percent of a run
LOCAL_STEPS = {"sr1": 5, "first-order": 5, **dict.fromkeys(LOCAL, 20)}
BASELINE_BATCH = 500  # samples of all ranks together
LEAST_WORK = 300_000  # sample gradients: the epochs of small data sets come from it
# Evaluation takes at most this share of a run's work; a forward evaluation is 1/3 of a gradient.
SHARE, FORWARD = 0.1, 3
# The spectral and scaled solvers: samples of all subdomains together in an outer iteration, the
# local steps it has where the minibatches are in their range, and that range. Of text in tokens, as
# a window is as many samples as it has tokens.
OUTER_SAMPLES, OUTER_STEPS, MINIBATCHES = 10_500, 20, (64, 250)
# Convolutions compute more for each parameter that is sent.
OUTER_IMAGES = {"cnn": 2_500, **dict.fromkeys(("resnet", "timm", "torchvision"), 1_250)}
OUTER_TOKENS, TEXT_STEPS, TOKENS = 10_240, 10, (128, 2048)
ITERATIONS = 25  # an iteration takes at most that part of the run's samples
# A minibatch may have FEWEST where more would leave fewer than SHORT steps, or where an iteration
# takes other than OUTER_SAMPLES.
FEWEST, SHORT = 16, 10


def outer_samples(context: int | None, network: str = "mlp", *, run: float = math.inf) -> int:
    """Of all subdomains between two messages.

    Args:
        context: tokens of one, of text. run: sample gradients of the whole run.
    """
    if context is None:
        usual = OUTER_IMAGES.get(_family(network), OUTER_SAMPLES)
    else:
        usual = OUTER_TOKENS // context
    return int(max(min(usual, run / ITERATIONS), 1))


def _family(network: str) -> str:
    """Where it comes from, or its own name."""
    return network.partition(":")[0]


def plan(
    subdomains: int,
    samples: int,
    *,
    outer: int | None = None,
    context: int | None = None,
    batch: int | None = None,
    steps: int | None = None,
) -> tuple[int, int]:
    """Samples of a minibatch and local steps of the scaled solver, where they are not given.

    An outer iteration takes about ``outer`` samples over all ranks, its control batch (a third of a
    minibatch more) included; OUTER_STEPS steps unless minibatches would leave their range, SHORT
    ones before they are smaller than that, and never fewer than five.

    Args:
        subdomains: how many. samples: of the training set, over all of them.
        outer: samples between two messages; default OUTER_SAMPLES, or OUTER_TOKENS of text.
        context: tokens of a window, where the samples are those.
    """
    usual, (low, high) = OUTER_STEPS, MINIBATCHES
    if context is not None:
        usual, low, high = TEXT_STEPS, max(TOKENS[0] // context, 1), max(TOKENS[1] // context, 1)
    outer = outer or outer_samples(context)
    share = outer / subdomains
    if context is None:
        low = max(min(low, round(share / SHORT)), FEWEST) if outer == OUTER_SAMPLES else FEWEST
    if batch is None:
        batch = round(min(max(share / (steps or usual), low), high))
    if steps is None:
        part = max(samples / subdomains, 1.0)
        even = part / math.ceil(part / batch)  # a pass is cut into equal minibatches
        steps = min(max(math.ceil(share / even - 1.0 / 3.0), 5), 1000)
    return batch, steps


def completed(
    config: TrainConfig,
    ranks: int,
    samples: int,
    *,
    task: str = "classification",
    judged: int = 0,
) -> TrainConfig:
    """The settings of a run on so many ranks and training samples, with every default.

    Args:
        ranks: how many. samples: of the training set. task: what it is for.
        judged: validation and test samples of an evaluation.

    Raises:
        InputError: a setting has no effect on such a task.
    """
    config.check_task(task)
    c = config
    batch, steps = c.batch, c.local_steps
    enough = 300.0 if c.deterministic else max(10.0, float(math.ceil(LEAST_WORK / samples)))
    epochs = enough if c.epochs is None else c.epochs
    context = (c.context or CONTEXT) if task == "language" else None
    if c.optimizer in BASELINES:
        batch = math.ceil(BASELINE_BATCH / ranks) if batch is None else batch
        steps = LOCAL_STEPS.get(c.optimizer) if steps is None else steps
    elif c.deterministic:
        steps = LOCAL_STEPS[c.local_solver] if steps is None else steps
    elif steps == AUTO:
        least = max(TOKENS[0] // context, 1) if context else MINIBATCHES[0]
        batch = least if batch is None else batch
    else:
        batch, steps = plan(
            ranks * c.subdomains_per_rank,
            samples,
            outer=c.outer_samples or outer_samples(context, c.network, run=epochs * samples),
            context=context,
            batch=batch,
            steps=steps,
        )
    momentum, window, cooldown, compress = c.momentum, c.window, c.cooldown, c.compress
    if c.optimizer == "apts":
        spectral = c.local_solver == "spectral"
        usual = (MOMENTUM, 1) if c.deterministic else (MOMENTA[c.local_solver], 5)
        if cooldown is None and not c.deterministic:
            cooldown = (TEXT_COOLDOWN if context else SPECTRAL_COOLDOWN) * spectral
        if compress is None and steps != AUTO:  # of text messages are twice as frequent
            compress = "none" if c.deterministic or ranks == 1 or not context else "int8"
        momentum = usual[0] if momentum is None else momentum
        window = usual[1] if window is None else window
    every = c.evaluate_every
    if every is None:
        every = max(judged / (SHARE * FORWARD * samples), 1.0)
    return dataclasses.replace(
        c,
        **c.sizes,
        context=context,
        batch=batch,
        lr=LEARNING_RATES.get(c.optimizer) if c.lr is None else c.lr,
        local_steps=steps,
        outer_samples=None,  # which is in batch and local_steps now
        momentum=momentum,
        window=window,
        cooldown=cooldown,
        compress=compress,
        epochs=epochs,
        evaluate_every=every,
    )
