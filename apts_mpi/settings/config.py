"""A run's settings: one frozen dataclass, every range checked, written as TOML."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from apts_mpi.errors import InputError
from apts_mpi.method.options import (
    BASELINES,
    DETERMINISTIC,
    JOINS,
    LOCAL_SOLVERS,
    MOMENTUM,
    NORMS,
    OPTIMIZERS,
    SGD_MOMENTUM,
)
from apts_mpi.networks.sizes import SIZE_NAMES, SIZES
from apts_mpi.settings.declaration import (
    APTS,
    OVERLAPPING,
    PUBLISHED,
    RATED,
    SCALED,
    SR1,
    STEPPING,
    either,
)
from apts_mpi.settings.declaration import option as _option

__all__ = [
    "BASELINES",
    "DETERMINISTIC",
    "LOCAL_SOLVERS",
    "OPTIMIZERS",
    "TrainConfig",
    "plan",
    "with_effect",
]


OWN_NETWORK = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")  # package.module:function
CONTEXT = 64  # tokens of a window of text
AUGMENTATIONS = ("crop", "flip")

# What these settings are where they are not given; an optimizer not named here has none of them.
LEARNING_RATES = {"sgd": 0.1, "local-sgd": 0.1, "adam": 1e-3, "diloco": 1e-3}
LOCAL_STEPS = {"sr1": 5, "first-order": 5, "local-sgd": 20, "diloco": 20}

BASELINE_BATCH = 500  # samples of all ranks together
AUTO = -1  # local steps that the program measures before it trains
LEAST_WORK = 300_000  # sample gradients: the epochs of small data sets come from it
# The scaled solver: samples of all subdomains together an outer iteration, the local steps that it
# has where the minibatches are in their range, and that range. Of text in tokens, as a window is
# as many samples as it has tokens.
OUTER_SAMPLES, OUTER_STEPS, MINIBATCHES = 10_500, 20, (64, 250)
OUTER_TOKENS, TEXT_STEPS, TOKENS = 20_480, 10, (128, 2048)
# A minibatch may have FEWEST where that leaves fewer than SHORT steps, or with --outer-samples.
FEWEST, SHORT = 16, 10


def networks_with(size: str) -> str:
    """The networks that have a size, as a flag."""
    return f"--network {either([name for name, sizes in SIZES.items() if size in sizes])}"


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
    whole = OUTER_SAMPLES if context is None else max(OUTER_TOKENS // context, 1)
    share = (outer or whole) / subdomains
    if context is None:
        low = FEWEST if outer else max(min(low, round(share / SHORT)), FEWEST)
    if batch is None:
        batch = round(min(max(share / (steps or usual), low), high))
    if steps is None:
        part = max(samples / subdomains, 1.0)
        even = part / math.ceil(part / batch)  # a pass is cut into equal minibatches
        steps = min(max(math.ceil(share / even - 1.0 / 3.0), 5), 1000)
    return batch, steps


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that determines a run, besides the number of ranks.

    The text of each field is its line in ``--help``.

    Raises:
        InputError: a value is outside its range; the line names it and the range.
    """

    data: str = _option(
        "digits",
        "shard directory, or 'digits': the embedded set, cut on first use into the cache",
        free=True,
    )
    network: str = _option(
        "mlp",
        "mlp, cnn, resnet (for small images, GroupNorm), transformer (decoder-only, for text), or "
        "your own: package.module:function (docs/networks.md)",
    )
    hidden: tuple[int, ...] | None = _option(
        None,
        "widths of the fully connected hidden layers; default: 128,128 (mlp), 64 (cnn)",
        kind=tuple,
    )
    channels: tuple[int, ...] | None = _option(
        None, "channels of the convolutions; default: 16,32 (cnn)", kind=tuple
    )
    depth: int | None = _option(
        None, "layers, 6n + 2 (resnet, default 20), or blocks (transformer, default 4)", kind=int
    )
    width: int | None = _option(
        None,
        "channels of the first stage (resnet, default 16), or width of the residual stream "
        "(transformer, default 128)",
        kind=int,
    )
    heads: int | None = _option(None, "attention heads; default: 4 (transformer)", kind=int)
    normalization: str | None = _option(
        None,
        "of the layers: 'group' (default), 'batch' or 'none' (resnet)",
        choices=("group", "batch", "none"),
    )
    tied: bool | None = _option(
        None,
        "use the token embedding as output layer too; default: off (transformer)",
        kind=bool,
    )
    context: int | None = _option(
        None, "tokens of a window, one sample of text; default: 64 (text)", kind=int
    )
    label_smoothing: float = _option(
        0.0,
        "part of the target that is spread over all classes, 0 to below 1 (not regression)",
        kind=float,
    )
    class_weights: str | None = _option(
        None,
        "weights of the classes' losses, like 1,2,0.5; or 'balanced': every class the same sum "
        "(classification)",
    )
    augment: str | None = _option(
        None,
        "change training images, no other samples, at random: 'crop' (4 pixels of padding, then a "
        "random window), 'flip' (left to right), or 'crop,flip'",
    )
    stream: bool = _option(
        False,
        "read samples from the shards shortly before they are needed, for data larger than memory; "
        "samples are then shuffled within groups of neighbours",
        kind=bool,
    )
    subdomains_per_rank: int = _option(
        1,
        "subdomains of a rank, whose corrections are computed one after another; each takes "
        "three vectors as long as the parameters",
        kind=int,
        free=True,
        where=APTS,
        idle=True,
    )
    compress: str = _option(
        "none",
        "send corrections in 16 bits, what that rounds off being added to the next one; "
        "where a host has several ranks, with --hierarchical",
        choices=("none", "bf16", "fp16"),
        where=APTS,
        idle=True,
    )
    hierarchical: bool = _option(
        False, "join within each host first, then between hosts", kind=bool, free=True
    )
    gpu_aware: bool = _option(
        False,
        "send from GPU memory where the MPI library can, which is tried at the start; else through "
        "host memory",
        kind=bool,
        free=True,
    )
    precision: str = _option(
        "fp32",
        "of the network's products: fp32, tf32 (GPU), or bf16 (autocast); parameters, corrections "
        "and acceptance stay in fp32",
        choices=("fp32", "tf32", "bf16"),
    )
    compile: bool = _option(False, "compile the network by torch.compile", kind=bool)
    optimizer: str = _option(
        "apts", "training method: apts, or a baseline with a learning rate", choices=OPTIMIZERS
    )
    lr: float | None = _option(
        None,
        "learning rate; default: 0.1 (sgd, local-sgd), 0.001 (adam, diloco)",
        kind=float,
        where=RATED,
    )
    local_solver: str = _option(
        "scaled",
        "local trust regions: 'scaled' metric, every step on a fresh minibatch; or L-SR1 ('sr1') "
        "or linear ('first-order') model, all steps on one batch, as published",
        choices=LOCAL_SOLVERS,
        where=APTS,
    )
    local_steps: int | None = _option(
        None,
        "local steps an outer iteration; default: as many as take some 10,000 samples of all "
        "ranks, at least 5 (scaled), at most 5 (sr1, first-order), 20 (local-sgd, diloco); 'auto': "
        "from the measured cost of a message and of a gradient evaluation, with minibatches of 64 "
        "(scaled)",
        kind=int,
        where=STEPPING,
    )
    consistency: bool = _option(
        True, "first-order consistency term of the local loss", kind=bool, where=PUBLISHED
    )
    norm: str = _option(
        "2",
        "norm of the trust regions; 'inf' only with first-order",
        choices=NORMS,
        where=PUBLISHED,
    )
    join: str = _option(
        "adaptive",
        "how corrections join: 'sum' with local radius Delta/N, 'average' with local radius "
        "Delta, 'adaptive': average times a factor from 1 to 8 that follows the reduction ratio",
        choices=JOINS,
        where=PUBLISHED,
    )
    global_step: bool = _option(
        True, "a trust-region step on the global loss as well", kind=bool, where=PUBLISHED
    )
    radius: float | None = _option(
        None,
        "initial radius, in the norm of the parameters (scaled: of the change of a parameter a "
        "step); default: searched",
        kind=float,
        where=APTS,
    )
    window: int | None = _option(
        None,
        "accept against the largest of this many last losses; default: 5 (scaled), 1: monotone "
        "(sr1, first-order)",
        kind=int,
        where=APTS,
    )
    momentum: float | None = _option(
        None,
        "share of the last accepted correction added to the next, 0 to below 1; default: 0 "
        "(scaled), 0.5 (sr1, first-order)",
        kind=float,
        where=APTS,
    )
    shared_moment: bool = _option(
        True,
        "the joined correction becomes the first moment of every subdomain's next steps",
        kind=bool,
        where=SCALED,
    )
    outer_samples: int | None = _option(
        None,
        "samples of all subdomains between two messages, from which batch and local steps follow; "
        "default: 10,500, of text windows of 20,480 tokens",
        kind=int,
        where=SCALED,
    )
    averaging: float = _option(
        12.0,
        "how much more late iterates weigh in the evaluated average: 0 not, inf: the last one "
        "alone",
        kind=float,
        where=SCALED,
    )
    smoothing: float = _option(
        0.7, "weight of the past in the reduction ratio, 0 to below 1", kind=float, where=SCALED
    )
    grow_above: float = _option(
        0.35, "reduction ratio above which the radius grows", kind=float, where=SCALED
    )
    grow: float = _option(
        2.0,
        "factor by which the radius grows where the ratio is 1, 1 to 10",
        kind=float,
        where=SCALED,
    )
    shrink_below: float = _option(
        -0.5, "reduction ratio below which the radius shrinks", kind=float, where=SCALED
    )
    shrink: float = _option(
        0.8, "factor by which the radius shrinks there, 0 to below 1", kind=float, where=SCALED
    )
    memory: int = _option(5, "pairs of the L-SR1 model, 1 to 10", kind=int, where=SR1)
    batch: int | None = _option(
        None,
        "samples of a subdomain's minibatch; default: by their number 16 to 250, of text 128 to "
        "2,048 tokens (scaled), the "
        "whole shard (sr1, first-order), 500 over all ranks (baselines)",
        kind=int,
    )
    overlap: float = _option(
        0.0,
        "percent of a minibatch added to it from the next one, 0 to 100",
        kind=float,
        where=OVERLAPPING,
        idle=True,
    )
    epochs: float | None = _option(
        None,
        "work to do: gradient evaluations per training sample; a forward one counts a third; "
        "default: 10, or what makes 300,000 evaluations of few samples; 300 (sr1, first-order)",
        kind=float,
        free=True,
    )
    iterations: int | None = _option(
        None, "stop after this many outer iterations", kind=int, free=True
    )
    seed: int = _option(0, "of the initial parameters and of the minibatches", kind=int)
    device: str = _option(
        "auto", "'auto': a GPU where there is one", choices=("auto", "cpu", "cuda"), free=True
    )
    threads: int | None = _option(
        None, "threads a rank; default: the host's cores / its ranks", kind=int, free=True
    )
    evaluate_every: float = _option(
        1.0, "epochs (of work) between evaluations on the test data", kind=float, free=True
    )
    out: str | None = _option(None, "run directory; default: a new one under runs/", free=True)
    checkpoint_every: str = _option(
        "600s",
        "outer iterations (like 100) or seconds (like 600s) between checkpoints, and one at the "
        "end; 'off': only when stopped by a signal or --max-seconds",
        free=True,
    )
    keep: int = _option(2, "checkpoints to keep", kind=int, free=True)
    resume: str | None = _option(
        None,
        "go on from the newest valid checkpoint of this run directory, or from this checkpoint; on "
        "any number of ranks; 'auto': from that of --out where it has one, else start there",
        free=True,
    )
    max_seconds: float | None = _option(
        None, "stop with a checkpoint (status 3) after so many seconds", kind=float, free=True
    )
    stall_warning: float = _option(
        60.0,
        "seconds after which ranks that wait tell which rank has not arrived; 0: never",
        kind=float,
        free=True,
    )
    stall_abort: float = _option(
        600.0, "seconds after which they end the run; 0: never", kind=float, free=True
    )
    trace: str | None = _option(
        None, "write what every rank does when to this new file, a Chrome trace (JSON)", free=True
    )

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):
            choices = item.metadata["choices"]
            value = getattr(self, item.name)
            if choices and value not in choices and not (value is item.default is None):
                self._refuse(item.name, "is none of " + ", ".join(choices))
        if self.local_steps != AUTO:
            self._within("local_steps", 1, 1000)
        self._within("window", 1, 1000)
        self._within("memory", 1, 10)
        self._within("batch", 1, 2**40)
        self._within("overlap", 0, 100)
        self._within("outer_samples", 1, 2**40)
        self._within("iterations", 1, 2**40)
        self._within("seed", 0, 2**62)
        self._within("threads", 1, 4096)
        self._within("evaluate_every", 0, math.inf)
        self._within("keep", 1, 10**6)
        for name in ("max_seconds", "stall_warning", "stall_abort"):
            self._within(name, 0, math.inf)
        self.checkpoint_interval()
        if self.resume == "auto" and self.out is None:
            self._refuse("resume", "needs --out, the run directory to start in or to go on with")
        if self.momentum is not None and not 0 <= self.momentum < 1:
            self._refuse("momentum", "must be at least 0, below 1")
        if not self.averaging >= 0:
            self._refuse("averaging", "must be at least 0")
        if not 0 <= self.smoothing < 1:
            self._refuse("smoothing", "must be at least 0, below 1")
        if not -math.inf < self.shrink_below < self.grow_above < 1:
            self._refuse("grow_above", f"must be above --shrink-below {self.shrink_below}, below 1")
        if not 1 <= self.grow <= 10:
            self._refuse("grow", "must be at least 1, at most 10")
        if not 0 < self.shrink < 1:
            self._refuse("shrink", "must be above 0, below 1")
        if self.epochs is not None and not 0 < self.epochs < math.inf:
            self._refuse("epochs", "must be a positive number")
        if self.radius is not None and not 1e-8 <= self.radius <= 1e3:
            self._refuse("radius", "must be at least 1e-8, at most 1000")
        self._check_network()
        for name, what in (
            ("data", "folder"),
            ("out", "folder"),
            ("resume", "folder"),
            ("trace", "file"),
        ):
            value = getattr(self, name)
            if value == "" or any(0xD800 <= ord(c) < 0xE000 for c in str(value)):
                self._refuse(name, f"must be the name of a {what}, in UTF-8")
        if self.lr is not None and not 0 < self.lr < math.inf:
            self._refuse("lr", "must be a positive number")
        if self.resume is None:  # else they say little without those of the run that goes on
            self.check_effect()

    def check_effect(self) -> None:
        """See that every setting has effect beside the others; those at their defaults need not.

        Raises:
            InputError: one has none; the line names it, and where it has.
        """
        if self.norm == "inf" and self.local_solver != "first-order":
            self._refuse("norm", "needs --local-solver first-order: it alone knows that norm")
        for item in dataclasses.fields(self):
            if getattr(self, item.name) != item.default:
                self._require_effect(item)
        if self.local_steps == AUTO and not SCALED.holds(self.optimizer, self.local_solver):
            self._refuse("local_steps", f"auto is for {SCALED}")
        auto, both = self.local_steps == AUTO, None not in (self.batch, self.local_steps)
        if self.outer_samples is not None and (auto or both):
            given = "auto" if auto else "and --batch"
            self._refuse("outer_samples", f"has no effect with --local-steps {given}; leave it out")
        joins_gradients = self.consistency or self.global_step
        if self.deterministic and not joins_gradients and self.momentum not in (None, 0, MOMENTUM):
            self._refuse(
                "momentum",
                "has no effect with --consistency off and --global-step off: it needs the joined "
                "gradient that either has; leave it out",
            )
        if self.stream and self.batch is None and self.deterministic:
            self._refuse("stream", "needs --batch: a whole shard at once is what does not fit")
        if self.overlap and self.batch is None and self.deterministic:
            self._refuse("overlap", "needs --batch: a whole shard overlaps with nothing")

    def check_given(self, names: Iterable[str]) -> None:
        """See that settings that somebody names have effect, at their defaults too.

        Raises:
            InputError: one has none; the line names it, and where it has.
        """
        given = set(names)
        for item in dataclasses.fields(self):
            idle = item.metadata["idle"] and getattr(self, item.name) == item.default
            if item.name in given and not idle:
                self._require_effect(item)

    def _require_effect(self, item: dataclasses.Field[Any]) -> None:
        where = item.metadata["where"]
        if not where.holds(self.optimizer, self.local_solver):
            missed = where.missed(self.optimizer, self.local_solver)
            own = f", whose momentum is {SGD_MOMENTUM}" if "sgd" in missed else ""
            own = own if item.name == "momentum" else ""
            self._refuse(
                item.name, f"has no effect with {missed}{own}, only with {where}; leave it out"
            )

    def _check_network(self) -> None:
        """Sizes that the network has, in their ranges; loss and augmentation."""
        own = self.network not in SIZES
        if own and not OWN_NETWORK.fullmatch(self.network):
            like = "package.module:function"
            if ".py:" in self.network:
                like += ", which has no .py in it: start where the file lies, or set PYTHONPATH"
            self._refuse("network", f"is none of {', '.join(SIZES)}, nor like {like}")
        sizes = SIZES.get(self.network, {})
        for name in SIZE_NAMES:
            value = getattr(self, name)
            if value is not None and name not in sizes:
                has = ", ".join(f"--{each}" for each in sizes) or "set by its own function"
                others = f"; {networks_with(name)} has it"
                self._refuse(name, f"{self.network} has no such size; its sizes are {has}{others}")
            if isinstance(value, tuple) and not all(1 <= width <= 2**20 for width in value):
                self._refuse(name, "must be widths of 1 to 1048576, like 128,128")
        self._within("depth", 1, 1000)
        self._within("width", 1, 2**16)
        self._within("heads", 1, 1024)
        self._within("context", 1, 2**20)
        self._within("subdomains_per_rank", 1, 1024)
        if not 0 <= self.label_smoothing < 1:
            self._refuse("label_smoothing", "must be at least 0, below 1")
        self.weights_given()
        if not set(self.augmentations) <= set(AUGMENTATIONS):
            self._refuse("augment", "must be crop, flip or crop,flip")

    @property
    def sizes(self) -> dict[str, Any]:
        """What the network takes besides the task, with every default."""
        known = SIZES.get(self.network, {}).items()
        return {k: v if getattr(self, k) is None else getattr(self, k) for k, v in known}

    @property
    def augmentations(self) -> tuple[str, ...]:
        """Names of AUGMENTATIONS, in order, each once."""
        return tuple(dict.fromkeys(self.augment.split(","))) if self.augment is not None else ()

    def weights_given(self) -> tuple[float, ...] | None:
        """The classes' weights; None where none are given or they are 'balanced'."""
        if self.class_weights in (None, "balanced"):
            return None
        try:
            weights = tuple(float(each) for each in str(self.class_weights).split(","))
        except ValueError:
            weights = ()
        if not (weights and all(0 <= each < math.inf for each in weights) and any(weights)):
            self._refuse("class_weights", "must be numbers from 0 up, like 1,2,0.5, or balanced")
        return weights

    @property
    def deterministic(self) -> bool:
        """Whether all of an outer iteration is on one batch: the family as published."""
        return self.optimizer == "apts" and self.local_solver in DETERMINISTIC

    def checkpoint_interval(self) -> tuple[int | None, float | None]:
        """Outer iterations and seconds between checkpoints; None is never."""
        text = self.checkpoint_every
        if text == "off":
            return None, None
        number = re.fullmatch(r"(\d{1,9})(s?)", text)
        if number is None or int(number[1]) < 1:
            self._refuse("checkpoint_every", "must be like 100 (iterations), 600s or off")
        assert number is not None
        return (None, float(number[1])) if number[2] else (int(number[1]), None)

    def completed(self, ranks: int, samples: int, *, language: bool = False) -> TrainConfig:
        """The settings of a run on so many ranks and training samples, with every default.

        Args:
            ranks: how many. samples: of the training set. language: whether they are text.

        Raises:
            InputError: a context for data that have none, or images to be changed in text.
        """
        if self.context is not None and not language:
            self._refuse("context", "is for text; the data are none")
        batch, steps = self.batch, self.local_steps
        subdomains = ranks * self.subdomains_per_rank
        if self.optimizer in BASELINES:
            batch = math.ceil(BASELINE_BATCH / ranks) if batch is None else batch
            steps = LOCAL_STEPS.get(self.optimizer) if steps is None else steps
        elif self.deterministic:
            steps = LOCAL_STEPS[self.local_solver] if steps is None else steps
        elif steps == AUTO:
            least = max(TOKENS[0] // (self.context or CONTEXT), 1) if language else MINIBATCHES[0]
            batch = least if batch is None else batch
        else:
            batch, steps = plan(
                subdomains,
                samples,
                outer=self.outer_samples,
                context=(self.context or CONTEXT) if language else None,
                batch=batch,
                steps=steps,
            )
        momentum, window = self.momentum, self.window
        if self.optimizer == "apts":
            usual = (MOMENTUM, 1) if self.deterministic else (0.0, 5)
            momentum = usual[0] if momentum is None else momentum
            window = usual[1] if window is None else window
        enough = 300.0 if self.deterministic else max(10.0, float(math.ceil(LEAST_WORK / samples)))
        return dataclasses.replace(
            self,
            **self.sizes,
            context=(self.context or CONTEXT) if language else None,
            batch=batch,
            lr=LEARNING_RATES.get(self.optimizer) if self.lr is None else self.lr,
            local_steps=steps,
            outer_samples=None,  # which is in batch and local_steps now
            momentum=momentum,
            window=window,
            epochs=enough if self.epochs is None else self.epochs,
        )

    def _within(self, name: str, low: float, high: float) -> None:
        value = getattr(self, name)
        if value is not None and not low <= value <= high:
            self._refuse(name, f"must be at least {low}" + (f", at most {high}" * (high < 2**40)))

    def _refuse(self, name: str, why: str) -> None:
        value = getattr(self, name)
        shown = ",".join(map(str, value)) if isinstance(value, tuple) else value
        shown = ("off", "on")[shown] if isinstance(shown, bool) else shown
        shown = "auto" if name == "local_steps" and value == AUTO else shown
        shown = str(shown) if str(shown).isprintable() else repr(shown)
        raise InputError(f"--{name.replace('_', '-')} {shown[:200]}: {why}")

    def to_toml(self) -> str:
        """The settings as TOML, but for what is None or has no effect; read back as they are."""
        lines = []
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            has_effect = item.metadata["where"].holds(self.optimizer, self.local_solver)
            if value is not None and (has_effect or value != item.default):
                # JSON's strings, numbers, booleans and lists of numbers are TOML's too.
                value = list(value) if isinstance(value, tuple) else value
                value = "auto" if item.name == "local_steps" and value == AUTO else value
                text = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
                lines.append(f"{item.name} = {'inf' if value == math.inf else text}")
        return "\n".join(lines) + "\n"


def with_effect(values: dict[str, Any]) -> dict[str, Any]:
    """The settings that had effect on the run that wrote them; some versions wrote all."""
    method = TrainConfig.optimizer, TrainConfig.local_solver
    chosen = values.get("optimizer", method[0]), values.get("local_solver", method[1])
    without = {
        item.name
        for item in dataclasses.fields(TrainConfig)
        if not item.metadata["where"].holds(*chosen)
    }
    return {name: value for name, value in values.items() if name not in without}
