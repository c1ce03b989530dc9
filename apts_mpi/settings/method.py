"""The settings of the method, and of the baselines beside it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

from apts_mpi.method.options import (
    JOINS,
    LOCAL_SOLVERS,
    MOMENTUM,
    NORMS,
    OPTIMIZERS,
)
from apts_mpi.method.schedule import SCHEDULES
from apts_mpi.settings import declaration as of
from apts_mpi.settings.declaration import APTS, PUBLISHED, SCALED, number, one_of, setting, whole

_METHOD = "docs/method.md"
_PAPER = "arXiv 2502.05133"
_scaled = partial(setting, where=SCALED, source=_METHOD)
_rule = partial(_scaled, shown="never")
_published = partial(setting, where=PUBLISHED)


@dataclass(frozen=True, kw_only=True)
class Method:
    """The optimizer and what it does between two messages."""

    optimizer: str = setting(
        "apts",
        one_of(*OPTIMIZERS),
        "training method: apts, or a baseline with a learning rate",
        shown="first",
    )
    lr: float | None = setting(
        None,
        number(0, 1e30, "("),
        "learning rate of a baseline; apts has none",
        usual="0.1 (sgd, local-sgd), 0.001 (adam, adamw, diloco), 0.003 (muon, muloco), 0.0025 "
        "(schedule-free), 1, times what it finds itself (prodigy)",
        where=of.RATED,
        shown="first",
    )
    schedule: str = setting(
        "constant",
        one_of(*SCHEDULES),
        "learning rate over --epochs, after the warm-up: 'constant', 'cosine' to 0 at the end, or "
        "'wsd': constant, then linear to 0 over the last 20 percent; of inner steps (local-sgd, "
        "diloco, muloco)",
        where=of.RATED,
    )
    warmup: float = setting(
        0.0,
        number(0, 100, ")"),
        "percent of --epochs in which the learning rate rises to --lr",
        where=of.RATED,
    )
    batch: int | None = setting(
        None,
        whole(1, 2**40),
        "samples of a minibatch of one subdomain: per rank, where a rank has one",
        usual="16 to 250, of text 128 to 2,048 tokens (spectral, scaled); the whole shard (sr1, "
        "first-order); 500 over all ranks (baselines)",
        shown="first",
    )
    overlap: float = setting(
        0.0,
        number(0, 100),
        "percent of a minibatch added to it from the next one",
        where=of.OVERLAPPING,
        idle=True,
    )
    local_solver: str = setting(
        "spectral",
        one_of(*LOCAL_SOLVERS),
        "local trust regions, every step on a fresh minibatch: 'spectral': hidden matrices in the "
        "norm of their largest singular value, all else in a 'scaled' metric, or all in that one; "
        "or an L-SR1 ('sr1') or linear ('first-order') model, all steps on one batch, as published",
        where=APTS,
    )
    local_steps: int | None = setting(
        None,
        of.STEPS,
        "local steps per outer iteration; 'auto': these, --batch and --compress from the measured "
        "cost of messages and of a gradient evaluation (spectral, scaled)",
        usual="as many as take --outer-samples, at least 5 (spectral, scaled); "
        "at most 5 (sr1, first-order); 20 (local-sgd, diloco, muloco)",
        where=of.STEPPING,
    )
    outer_samples: int | None = _scaled(
        None,
        whole(1, 2**40),
        "samples of all subdomains between two messages, from which batch and local steps follow",
        usual="10,500; of cnn 2,500, of resnet, timm and torchvision 1,250; of text windows of "
        "10,240 tokens; at most 1/25 of the run's",
    )
    radius: float | None = setting(
        None,
        number(1e-8, 1000),
        "initial radius, in the norm of the parameters (spectral, scaled: the change of a "
        "parameter in a local step)",
        usual="searched",
        where=APTS,
    )
    momentum: float | None = setting(
        None,
        number(0, 1, ")"),
        "share of the last accepted correction that is added to the next one; not the momentum of "
        "a gradient",
        usual=f"0.6 (spectral), 0 (scaled), {MOMENTUM} (sr1, first-order)",
        where=APTS,
    )
    weight_decay: float = _scaled(
        0.0,
        number(0, 1e6),
        "decoupled weight decay: a local step multiplies all parameters by 1 - radius times this; "
        "part of the correction that the loss judges",
    )
    cooldown: float | None = _scaled(
        None,
        number(0, 100),
        "last percent of --epochs over which the length of local steps falls to 0",
        usual="25, of text 50 (spectral), 0 (scaled)",
    )
    shared_moment: bool = _scaled(
        True,
        of.ON_OFF,
        "the joined correction becomes the first moment of every subdomain's next steps",
    )
    averaging: float = _scaled(
        12.0,
        number(0, math.inf),
        "how much more late iterates weigh in the average that is evaluated: 0: no more, inf: the "
        "last one alone",
    )
    # Of the acceptance rule (trust_region.radius.NoisyRule), flags that --help does not show.
    window: int | None = setting(
        None,
        whole(1, 1000),
        "accept against the largest of this many last losses",
        usual="5 (spectral, scaled), 1: monotone (sr1, first-order)",
        source=_METHOD,
        where=APTS,
        shown="never",
    )
    smoothing: float = _rule(0.7, number(0, 1, ")"), "weight of the past in the reduction ratio")
    grow_above: float = _rule(
        0.35, number(-math.inf, 1, "()"), "reduction ratio above which the radius grows"
    )
    grow: float = _rule(2.0, number(1, 10), "factor by which the radius grows where the ratio is 1")
    shrink_below: float = _rule(
        -0.5, number(-math.inf, 1, "()"), "reduction ratio below which the radius shrinks"
    )
    shrink: float = _rule(0.8, number(0, 1, "()"), "factor by which the radius shrinks there")


@dataclass(frozen=True, kw_only=True)
class Published:
    """What the method as published has: ``--local-solver sr1`` and ``first-order``."""

    consistency: bool = _published(
        True, of.ON_OFF, "the local loss has the first-order consistency term", source=_PAPER
    )
    norm: str = _published(
        "2",
        one_of(*NORMS),
        "norm of the trust regions; 'inf' with first-order alone",
        source=_PAPER,
    )
    join: str = _published(
        "adaptive",
        one_of(*JOINS),
        "how corrections join: 'sum' with local radius Delta/N, 'average' with local radius Delta, "
        "'adaptive': the average times a factor from 1 to 8 that follows the reduction ratio",
    )
    global_step: bool = _published(
        True, of.ON_OFF, "a trust-region step on the global loss as well", source=_PAPER
    )
    memory: int = setting(5, whole(1, 10), "pairs of the L-SR1 model", where=of.SR1)
