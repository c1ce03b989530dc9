"""The methods' choices by name, and the options of each, which check themselves."""

from __future__ import annotations

import math
import operator
from dataclasses import asdict, dataclass
from numbers import Real
from typing import Any

from apts_mpi.trust_region.radius import FIRST_ORDER_RULE, NoisyRule, RadiusRule

# N ranks take the steps of one with the joined batch; or steps of their own between messages.
AVERAGING = ("adam", "adamw", "sgd", "muon", "schedule-free", "prodigy")
LOCAL = ("local-sgd", "diloco", "muloco")
BASELINES = (*AVERAGING, *LOCAL)
OPTIMIZERS = ("apts", *BASELINES)
SAMPLED, DETERMINISTIC = ("spectral", "scaled"), ("sr1", "first-order")
LOCAL_SOLVERS = (*SAMPLED, *DETERMINISTIC)
NORMS = ("2", "inf")
JOINS = ("adaptive", "average", "sum")
MOMENTUM = 0.5  # of the family as published
MOMENTA = {"scaled": 0.0, "spectral": 0.6}  # where none is given
ROOM = 0.25  # measured (docs/trials.md)
COOLDOWNS = {"scaled": 0.0, "spectral": 0.25}
SGD_MOMENTUM = 0.9  # of sgd and of local-sgd's steps


@dataclass(frozen=True, kw_only=True)
class APTSOptions:
    """Options of ``APTS``, each with the source of its default.

    Attributes:
        local_solver: "sr1" (L-SR1 model, exact subproblem) or "first-order"; the paper (arXiv
            2502.05133) has both, and the second-order one is the faster one on our data.
        local_steps: most local trust-region steps per subdomain and iteration; the paper's 5.
        subdomains: per rank, each with a batch of its own; as many on every rank.
        consistency: whether the local objective has the term that makes it first-order
            consistent; on, as in the paper.
        norm: "2" or "inf" (first order only) of the trust regions.
        join: "sum" (the paper's), "average", or "adaptive" relaxation of the corrections, which
            needs no choice by the number of subdomains (docs/decisions.md).
        global_step: whether step 6 is taken; on, as in the paper.
        radius: initial Delta in the units of the norm; by default searched at the first step.
        window: how many of the last losses the reference of rho is the largest of; 1 is monotone,
            as in Conn, Gould, Toint 2000, Alg. 6.1.1.
        momentum: share of the last accepted correction added to the next one, 0 to below 1. Not in
            the paper; measured (docs/decisions.md). It needs g, so that without consistency and
            global step there is none.
        memory: pairs that an L-SR1 model keeps, 1 to 10; 5, as is usual (Nocedal and Wright 2006,
            section 7.2).
        rule: when steps are taken and how radii follow; by default the solver's own.
        compress: how corrections are sent: "none", or "bf16", "fp16", "int8", "int4"
            (comm/compression.py), whose residuals may take |s| beyond Delta by what rounding lost
            before.

    Raises:
        TypeError, ValueError: an option is outside its range, or has no effect beside the others.
    """

    local_solver: str = "sr1"
    local_steps: int = 5
    subdomains: int = 1
    consistency: bool = True
    norm: str = "2"
    join: str = "adaptive"
    global_step: bool = True
    radius: float | None = None
    window: int = 1
    momentum: float = MOMENTUM
    memory: int = 5
    rule: RadiusRule | None = None
    compress: str = "none"

    def __post_init__(self) -> None:
        if self.local_solver not in DETERMINISTIC:
            raise ValueError(f"local_solver {self.local_solver!r} is none of {DETERMINISTIC}")
        if self.norm not in NORMS or (self.norm == "inf" and self.local_solver == "sr1"):
            raise ValueError(f"norm {self.norm!r}: '2', or 'inf' with the first-order solver")
        if self.join not in JOINS:
            raise ValueError(f"join {self.join!r} is none of {JOINS}")
        _count(self, "local_steps", "window", "subdomains", "memory")
        _switch(self, "consistency", "global_step")
        _check_momentum(self.momentum)
        if self.memory != APTSOptions.memory and self.local_solver != "sr1":
            raise ValueError(
                f"memory {self.memory} has no effect with the {self.local_solver} solver, which "
                "keeps no pairs: leave it out"
            )
        if self.momentum not in (0.0, MOMENTUM) and not (self.consistency or self.global_step):
            raise ValueError(
                f"momentum {self.momentum} has no effect without consistency and global_step: it "
                "needs the joined gradient that either has; leave it out"
            )
        first_radius(self.radius)
        low, high = self.radius_rule.minimum, self.radius_rule.maximum
        if self.radius is not None and not low <= self.radius <= high:
            raise ValueError(f"radius {self.radius} is outside {low} to {high}")

    @property
    def radius_rule(self) -> RadiusRule:
        """The rule given, or the solver's own."""
        first_order = self.local_solver == "first-order"
        return self.rule or (FIRST_ORDER_RULE if first_order else RadiusRule())

    def kept(self) -> dict[str, Any]:
        """What a saved state belongs to, as plain values: all but the initial radius."""
        return _plain(self, self.radius_rule, without=("radius",))


@dataclass(frozen=True, kw_only=True)
class StochasticOptions:
    """Options of ``StochasticAPTS``; the defaults were measured (docs/trials.md).

    Attributes:
        local_solver: "spectral" (hidden matrices have the spectral norm, all else a diagonal
            metric) or "scaled" (all has the diagonal metric), which bounds the local steps
            (trust_region/metric.py).
        local_steps: per subdomain and outer iteration.
        subdomains: per rank, each with minibatches of its own; as many on every rank.
        radius: initial Delta; by default searched. It is cut where that many would not lower the
            loss.
        shared: whether the joined correction becomes every subdomain's first moment.
        momentum: mu, 0 to below 1; 0.6 with "spectral", 0 with "scaled".
        weight_decay: w; a local step multiplies all parameters by ``1 - radius w`` before it moves
            them. Decoupled, as AdamW's (Loshchilov and Hutter, arXiv 1711.05101); off.
        cooldown: last part of the run, 0 to 1, over which the steps' length falls to 0, where the
            length of the run is known; 0.25 with "spectral", 0 with "scaled".
        classification: whether that is the task, on all ranks alike. Its loss has no minimum: in a
            fully connected network it is then how far an iteration goes that is bounded
            (``room``), in place of its steps' lengths.
        averaging: how much more late iterates weigh in the average: the j-th enters with weight
            (1 + averaging) / (j + averaging) (Shamir and Zhang, arXiv 1212.1824). 0 is the plain
            mean, infinity the last iterate alone.
        rule: when corrections are taken and how Delta follows.
        compress: how corrections are sent: "none", or "bf16", "fp16", "int8", "int4"
            (comm/compression.py).
        ahead: whether local steps are taken before their losses are looked at, for the same result
            (trust_region/scaled.py); by default on a GPU. Takes three vectors more.

    Raises:
        TypeError, ValueError: an option is outside its range.
    """

    local_solver: str = "spectral"
    local_steps: int = 20
    subdomains: int = 1
    radius: float | None = None
    shared: bool = True
    momentum: float | None = None
    weight_decay: float = 0.0
    cooldown: float | None = None
    classification: bool = False
    averaging: float = 12.0
    rule: NoisyRule | None = None
    compress: str = "none"
    ahead: bool | None = None

    def __post_init__(self) -> None:
        if self.local_solver not in SAMPLED:
            raise ValueError(f"local_solver {self.local_solver!r} is none of {SAMPLED}")
        _count(self, "local_steps", "subdomains")
        _real(self, "weight_decay", "averaging")
        _check_momentum(self.mu)
        if not 0.0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay {self.weight_decay} is outside [0, inf)")
        if not self.averaging >= 0.0:
            raise ValueError(f"averaging {self.averaging} is negative")
        if self.cooldown is None:
            object.__setattr__(self, "cooldown", COOLDOWNS[self.local_solver])
        if not 0.0 <= self._last_part <= 1.0:
            raise ValueError(f"cooldown {self.cooldown} is outside [0, 1]")
        _switch(self, "shared", "classification")
        first_radius(self.radius)

    @property
    def radius_rule(self) -> NoisyRule:
        """The rule given, or the usual one."""
        return self.rule or NoisyRule()

    @property
    def mu(self) -> float:
        """The momentum given, or the usual one."""
        return MOMENTA[self.local_solver] if self.momentum is None else self.momentum

    @property
    def window(self) -> int:
        """Control losses whose largest the loss at the trial point is judged against."""
        return self.radius_rule.window

    def cooling(self, done: float) -> float:
        """What the steps' length is multiplied by after that part of the run; 1 at first."""
        return min((1.0 - done) / self._last_part, 1.0) if self._last_part > 0.0 else 1.0

    @property
    def _last_part(self) -> float:
        """The cooldown, which is a number once the options are made."""
        return COOLDOWNS[self.local_solver] if self.cooldown is None else self.cooldown

    def weight(self, accepted: int) -> float:
        """Of the newest of so many iterates in the average; 1: it is the last one alone."""
        h = self.averaging
        return 1.0 if math.isinf(h) else (1.0 + h) / (accepted + h)

    @property
    def room(self) -> float:
        """Of the size of a fully connected network's matrices, how far an iteration may go."""
        return ROOM if self.classification else 1.0

    def kept(self) -> dict[str, Any]:
        """What a saved state belongs to, as plain values: not where and how it starts."""
        return _plain(self, self.radius_rule, without=("radius", "ahead", "classification"))


Options = APTSOptions | StochasticOptions


def first_radius(radius: Any) -> float:
    """An initial radius; NaN where it is to be searched.

    Raises:
        TypeError, ValueError: it is none.
    """
    if radius is None:
        return math.nan
    if isinstance(radius, bool) or not isinstance(radius, Real):
        raise TypeError(f"radius is {shown(radius)}: give a positive number, or None to search it")
    value = float(radius)
    if not 0.0 < value < math.inf:
        raise ValueError(f"radius {radius} must be positive")
    return value


def shown(value: Any) -> str:
    """What a value is, for a line about it."""
    if value is None:
        return "nothing (None)"
    if hasattr(value, "requires_grad"):  # without an import of torch
        return f"a tensor of shape {tuple(value.shape)}"
    article = "an" if type(value).__name__[0] in "aeiou" else "a"
    return f"{article} {type(value).__name__}"


def _count(options: Options, *names: str) -> None:
    """See that these are whole numbers from 1 up, and keep them as such."""
    for name in names:
        value = getattr(options, name)
        try:
            number = operator.index(value)
        except TypeError:
            raise TypeError(f"{name} is {shown(value)}: give a whole number from 1 up") from None
        if number < 1:
            raise ValueError(f"{name} {number} must be at least 1")
        object.__setattr__(options, name, number)


def _switch(options: Options, *names: str) -> None:
    for name in names:
        if not isinstance(value := getattr(options, name), bool):
            raise TypeError(f"{name} is {shown(value)}: give True or False")


def _real(options: Options, *names: str) -> None:
    for name in names:
        value = getattr(options, name)
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(f"{name} is {shown(value)}: give a number")


def _check_momentum(momentum: float) -> None:
    if not 0.0 <= momentum < 1.0:
        raise ValueError(f"momentum {momentum} is outside [0, 1)")


def _plain(
    options: Options, rule: RadiusRule | NoisyRule, *, without: tuple[str, ...]
) -> dict[str, Any]:
    left_out = {*without, "rule"}
    values = {name: value for name, value in vars(options).items() if name not in left_out}
    return {**values, **asdict(rule)}
