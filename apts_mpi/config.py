"""A run's settings: one frozen dataclass, read from and written to TOML, every range checked."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from apts_mpi.errors import InputError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

BASELINES = ("adam", "sgd", "local-sgd", "diloco")
OPTIMIZERS = ("apts", *BASELINES)
LOCAL_SOLVERS = ("sr1", "first-order")
NORMS = ("2", "inf")
JOINS = ("adaptive", "average", "sum")

# What these settings are where they are not given; an optimizer not named here has none of them.
LEARNING_RATES = {"sgd": 0.1, "local-sgd": 0.1, "adam": 1e-3, "diloco": 1e-3}
LOCAL_STEPS = {"apts": 5, "local-sgd": 20, "diloco": 20}
BASELINE_BATCH = 500  # samples of all ranks together


def _option(default: Any, text: str, *, choices: tuple[str, ...] = (), kind: type = str) -> Any:
    """A field with what the command line needs to know of it; ``kind`` is its value's type."""
    return field(default=default, metadata={"help": text, "choices": choices, "kind": kind})


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that determines a run, besides the number of ranks.

    The text of each field is its line in ``--help``.

    Raises:
        InputError: a value is outside its range; the line names it and the range.
    """

    data: str = _option(
        "digits", "shard directory, or 'digits': the embedded set, cut on first use into the cache"
    )
    network: str = _option("mlp", "network by name", choices=("mlp",))
    hidden: tuple[int, ...] = _option((128, 128), "widths of the hidden layers, e.g. 128,128")
    optimizer: str = _option(
        "apts", "training method: apts, or a baseline with a learning rate", choices=OPTIMIZERS
    )
    lr: float | None = _option(
        None,
        "learning rate of a baseline; default: 0.1 (sgd, local-sgd), 0.001 (adam, diloco)",
        kind=float,
    )
    local_solver: str = _option(
        "sr1", "model of the local trust regions: L-SR1 or linear", choices=LOCAL_SOLVERS
    )
    local_steps: int | None = _option(
        None,
        "local steps an outer iteration; default: at most 5 (apts), 20 (local-sgd, diloco)",
        kind=int,
    )
    consistency: bool = _option(True, "first-order consistency term of the local loss", kind=bool)
    norm: str = _option(
        "2", "norm of the trust regions; 'inf' only with first-order", choices=NORMS
    )
    join: str = _option(
        "adaptive",
        "how corrections join: 'sum' with local radius Delta/N, 'average' with local radius "
        "Delta, 'adaptive': average times a factor from 1 to 8 that follows the reduction ratio",
        choices=JOINS,
    )
    global_step: bool = _option(True, "a trust-region step on the global loss as well", kind=bool)
    radius: float | None = _option(
        None, "initial global radius, in the norm of the parameters; default: searched", kind=float
    )
    window: int = _option(
        1, "accept against the largest of this many last losses; 1: monotone", kind=int
    )
    momentum: float = _option(
        0.5, "share of the last accepted correction added to the next, 0 to below 1", kind=float
    )
    memory: int = _option(5, "pairs of the L-SR1 model, 1 to 10", kind=int)
    batch: int | None = _option(
        None,
        "samples of a rank's minibatch; default: the whole shard (apts), 500 over all ranks "
        "(baselines)",
        kind=int,
    )
    overlap: float = _option(
        0.0, "percent of a minibatch added to it from the next one, 0 to 100", kind=float
    )
    epochs: float = _option(
        300.0,
        "work to do: gradient evaluations per training sample; a forward one counts a third",
        kind=float,
    )
    iterations: int | None = _option(None, "stop after this many outer iterations", kind=int)
    seed: int = _option(0, "of the initial parameters and of the minibatches", kind=int)
    device: str = _option(
        "auto", "'auto': a GPU where there is one", choices=("auto", "cpu", "cuda")
    )
    threads: int | None = _option(
        None, "threads a rank; default: the host's cores / its ranks", kind=int
    )
    evaluate_every: float = _option(
        1.0, "epochs (of work) between evaluations on the test data", kind=float
    )
    out: str | None = _option(None, "run directory; default: a new one under runs/")

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):
            choices = item.metadata["choices"]
            if choices and getattr(self, item.name) not in choices:
                self._refuse(item.name, "is none of " + ", ".join(choices))
        self._within("local_steps", 1, 1000)
        self._within("window", 1, 1000)
        self._within("memory", 1, 10)
        self._within("batch", 1, 2**40)
        self._within("overlap", 0, 100)
        self._within("iterations", 1, 2**40)
        self._within("seed", 0, 2**62)
        self._within("threads", 1, 4096)
        self._within("evaluate_every", 0, math.inf)
        if not 0 <= self.momentum < 1:
            self._refuse("momentum", "must be at least 0, below 1")
        if not 0 < self.epochs < math.inf:
            self._refuse("epochs", "must be a positive number")
        if self.radius is not None and not 1e-8 <= self.radius <= 1e3:
            self._refuse("radius", "must be at least 1e-8, at most 1000")
        if not all(1 <= width <= 2**20 for width in self.hidden):
            self._refuse("hidden", "must be widths of 1 to 1048576, like 128,128")
        for name in ("data", "out"):
            value = getattr(self, name)
            if value == "" or any(0xD800 <= ord(c) < 0xE000 for c in str(value)):
                self._refuse(name, "must be the name of a folder, in UTF-8")
        if self.norm == "inf" and self.local_solver == "sr1":
            self._refuse("norm", "needs --local-solver first-order: L-SR1 steps are in the 2-norm")
        if self.lr is not None:
            if self.optimizer not in LEARNING_RATES:
                self._refuse("lr", f"{self.optimizer} has no learning rate to set")
            if not 0 < self.lr < math.inf:
                self._refuse("lr", "must be a positive number")
        if self.local_steps is not None and self.optimizer not in LOCAL_STEPS:
            self._refuse("local_steps", f"{self.optimizer} has none: it joins every step")
        if self.overlap and self.batch is None and self.optimizer not in BASELINES:
            self._refuse("overlap", "needs --batch: a whole shard overlaps with nothing")

    def completed(self, ranks: int) -> TrainConfig:
        """The settings of a run on so many ranks, with what its optimizer takes by default."""
        batch = self.batch
        if batch is None and self.optimizer in BASELINES:
            batch = math.ceil(BASELINE_BATCH / ranks)
        lr, local_steps = self.lr, self.local_steps
        return dataclasses.replace(
            self,
            batch=batch,
            lr=LEARNING_RATES.get(self.optimizer) if lr is None else lr,
            local_steps=LOCAL_STEPS.get(self.optimizer) if local_steps is None else local_steps,
        )

    def _within(self, name: str, low: float, high: float) -> None:
        value = getattr(self, name)
        if value is not None and not low <= value <= high:
            self._refuse(name, f"must be at least {low}" + (f", at most {high}" * (high < 2**40)))

    def _refuse(self, name: str, why: str) -> None:
        value = getattr(self, name)
        shown = ",".join(map(str, value)) if isinstance(value, tuple) else value
        raise InputError(f"--{name.replace('_', '-')} {shown}: {why}")

    def to_toml(self) -> str:
        """The settings as TOML; what is None is left out, and read back as None."""
        lines = []
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if value is not None:
                # JSON's strings, numbers, booleans and lists of numbers are TOML's too.
                value = list(value) if isinstance(value, tuple) else value
                text = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
                lines.append(f"{item.name} = {'inf' if value == math.inf else text}")
        return "\n".join(lines) + "\n"


def read_toml(path: Path) -> dict[str, Any]:
    """The settings a TOML file names, typed and ready to be overridden by flags.

    Raises:
        InputError: the file cannot be read, is not TOML, or names an unknown or mistyped setting.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such configuration file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as text: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path}: is not valid TOML: {error}") from None
    known = {item.name: item.metadata["kind"] for item in dataclasses.fields(TrainConfig)}
    for name, value in values.items():
        if name not in known:
            raise InputError(
                f"{path}: unknown setting {name!r}; known are {', '.join(sorted(known))}"
            )
        values[name] = _typed(path, name, value, known[name])
    return values


def _typed(path: Path, name: str, value: Any, kind: type) -> Any:
    if name == "hidden":
        if isinstance(value, list) and all(type(width) is int for width in value):
            return tuple(value)
        raise InputError(f"{path}: hidden = {value!r} must be a list of integers, like [128, 128]")
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise InputError(f"{path}: {name} = {value!r} must be of type {kind.__name__}")
    return value
