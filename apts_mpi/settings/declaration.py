"""How a setting is declared: its kind and range, its group in --help, and where it has effect."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from apts_mpi.errors import InputError, did_you_mean, either
from apts_mpi.method.options import (
    BASELINES,
    DETERMINISTIC,
    LOCAL,
    LOCAL_SOLVERS,
    OPTIMIZERS,
    SAMPLED,
)
from apts_mpi.settings.texts import (
    AUTO,
    OURS,
    arguments,
    changes,
    class_weights,
    given,
    interval,
    steps,
    widths,
)


@dataclass(frozen=True)
class Range:
    """The numbers between two bounds; NaN is none of them.

    Attributes:
        low, high: bounds. open: "(" where low is not in it, ")" where high is not, or both.
    """

    low: float
    high: float
    open: str = ""

    def __contains__(self, value: float) -> bool:
        above = self.low < value if "(" in self.open else self.low <= value
        return above and (value < self.high if ")" in self.open else value <= self.high)

    def __str__(self) -> str:
        if not self.open and self.high < math.inf:
            return f"from {self.low} to {self.high}"
        low = f"{'above' if '(' in self.open else 'of at least'} {self.low}"
        high = f"{'below' if ')' in self.open else 'at most'} {self.high}"
        if self.high == math.inf:
            high = "finite" if ")" in self.open else ""
        return " and ".join(filter(None, ("" if self.low == -math.inf else low, high)))


@dataclass(frozen=True)
class Kind:
    """What the values of a setting are.

    Attributes:
        type: of a value. metavar: in ``--help``. must: what a value must be, in words.
        read: the value that a flag's text gives; ValueError or KeyError where it gives none.
        holds: whether a value of the type is one of the kind.
        range: of numbers. choices: of words.
    """

    type: type
    metavar: str
    must: str
    read: Callable[[str], Any] = str
    holds: Callable[[Any], bool] = lambda value: True
    range: Range | None = None
    choices: tuple[str, ...] = ()


def whole(low: int, high: int) -> Kind:
    """Whole numbers from ``low`` to ``high``."""
    span = Range(low, high)
    return Kind(int, "N", f"must be a whole number {span}", int, span.__contains__, span)


def number(low: float, high: float, open: str = "") -> Kind:
    """Real numbers; the bounds as in ``Range``."""
    span = Range(low, high, open)
    return Kind(float, "X", f"must be a number {span}", float, span.__contains__, span)


def one_of(*words: str) -> Kind:
    """One of some words."""
    must = f"must be {either(words)}"
    return Kind(str, "|".join(words), must, holds=words.__contains__, choices=words)


def text(metavar: str, must: str, holds: Callable[[str], bool], *choices: str) -> Kind:
    """A text in some form; ``choices``: words that it may be meant to be."""
    return Kind(str, metavar, f"must be {must}", holds=holds, choices=choices)


def _is_name(words: str) -> bool:
    return words != "" and not any(0xD800 <= ord(c) < 0xE000 for c in words)


ON_OFF = Kind(bool, "on|off", "must be on or off", {"on": True, "off": False}.__getitem__)
WIDTHS = Kind(
    tuple,
    "N,N,...",
    "must be widths from 1 to 1048576, like 128,128",
    widths,
    lambda value: all(1 <= width <= 2**20 for width in value),
)
_STEPS = Range(1, 1000)
STEPS = Kind(
    int,
    "N|auto",
    f"must be a whole number {_STEPS}, or auto",
    steps,
    lambda value: value in _STEPS or value == AUTO,
    _STEPS,
)
FOLDER = text("DIR", "the name of a folder, in UTF-8", _is_name)
FILE = text("FILE", "the name of a file, in UTF-8", _is_name)
INTERVAL = text("N|Ns|off", "like 100 (iterations), 600s (seconds) or off", given(interval))
WEIGHTS = text(
    "X,X,...|balanced",
    "numbers from 0 up, like 1,2,0.5, or balanced",
    lambda words: words == "balanced" or given(class_weights)(words),
    "balanced",
)
ARGUMENTS = text("NAME=VALUE,...", "like width=64,bias=off,act=relu", given(arguments))
LOGGERS = ("csv", "tensorboard", "wandb", "mlflow")
LOGS = text(
    "NAME,...",
    f"one or more of {', '.join(LOGGERS)}, each once, with commas between",
    lambda words: sorted(words.split(",")) == sorted(set(words.split(",")) & set(LOGGERS)),
    *LOGGERS,
)
AUGMENTATIONS = OURS
CHANGES = text(
    "crop,flip,NAME(...),...",
    "crop, flip, or names of torchvision.transforms.v2 with their arguments, like "
    "crop,RandomRotation(15)",
    given(changes),
    *AUGMENTATIONS,
)


@dataclass(frozen=True)
class Where:
    """The runs that a setting has effect in.

    Attributes:
        optimizers, solvers: theirs; the solver is asked about with APTS alone.
        networks, tasks: theirs; empty: of all.
    """

    optimizers: tuple[str, ...] = OPTIMIZERS
    solvers: tuple[str, ...] = LOCAL_SOLVERS
    networks: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()

    def missed(self, optimizer: str, local_solver: str, network: str) -> str:
        """The flag that keeps it from having effect, with its value; empty if none does."""
        if optimizer not in self.optimizers:
            return f"--optimizer {optimizer}"
        if optimizer == "apts" and local_solver not in self.solvers:
            return f"--local-solver {local_solver}"
        return f"--network {network}" if self.networks and network not in self.networks else ""

    def __str__(self) -> str:
        """The flags, or the tasks, that it has effect with; empty if it always has."""
        if self.networks:
            return f"--network {either(self.networks)}"
        if self.tasks:
            return f"{either(self.tasks)} data"
        if self.solvers == LOCAL_SOLVERS:
            if self.optimizers == BASELINES:
                return "--optimizer other than apts"
            return "" if self.optimizers == OPTIMIZERS else f"--optimizer {either(self.optimizers)}"
        others = [each for each in self.optimizers if each != "apts"]
        solvers = f"--local-solver {either(self.solvers)}"
        return f"{solvers}, or --optimizer {either(others)}" if others else solvers


EVERYWHERE = Where()
APTS = Where(("apts",))
SCALED = Where(("apts",), SAMPLED)
PUBLISHED = Where(("apts",), DETERMINISTIC)
SR1 = Where(("apts",), ("sr1",))
STEPPING = Where(("apts", *LOCAL))  # those with steps of their own between messages
RATED = Where(BASELINES)
OVERLAPPING = Where(OPTIMIZERS, DETERMINISTIC)


@dataclass(frozen=True)
class Setting:
    """All that is known of a setting.

    Attributes:
        default: its value where it is not given. kind: of its values. help: what it is, with units.
        name: its field's. group: its heading in ``--help``.
        usual: in words, what stands for a default of None. source: of its default.
        where: the runs that it has effect in; in others it is refused. idle: whether its default
            asks for nothing, so that it may be named anywhere.
        free: whether a run that is resumed may be given another value.
        shown: by ``--help`` ("first"), by ``--help-all`` alone ("all") or by neither ("never").
    """

    default: Any
    kind: Kind
    help: str
    name: str = ""
    group: str = ""
    usual: str = ""
    source: str = ""
    where: Where = EVERYWHERE
    idle: bool = False
    free: bool = False
    shown: str = "all"

    @property
    def flag(self) -> str:
        """Its flag."""
        return "--" + self.name.replace("_", "-")

    def described(self) -> str:
        """Its line in ``--help``."""
        usual = self.usual or ("" if self.default is None else written(self.default))
        span = self.kind.range
        narrow = span is not None and (span.open or span.high <= 2**16) and span.high < math.inf
        source = f" ({self.source})" if self.source else ""
        parts = {
            "with ": str(self.where),
            "": str(span).removeprefix("from ").removeprefix("of ") if narrow else "",
            "default: ": usual + source if usual else "",
        }
        return "; ".join([self.help, *(word + each for word, each in parts.items() if each)])

    def read(self, words: str) -> Any:
        """The value that a flag's text gives.

        Raises:
            InputError: it gives none.
        """
        try:
            return self.kind.read(words)
        except (ValueError, KeyError):
            raise self.refusal(words, self.kind.must) from None

    def check(self, value: Any) -> None:
        """See that a value is of the kind.

        Raises:
            InputError: it is not; the line has flag, value and what it must be.
        """
        if not (value is self.default is None or self.kind.holds(value)):
            raise self.refusal(value, self.kind.must + did_you_mean(value, self.kind.choices))

    def refusal(self, value: Any, why: str) -> InputError:
        """The error that a value is refused with."""
        words = "auto" if self.kind is STEPS and value == AUTO else written(value)
        words = words if words.isprintable() else repr(words)
        return InputError(f"{self.flag} {words[:200]}: {why}")


def written(value: Any) -> str:
    """A value as a flag is given it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def setting(default: Any, kind: Kind, help: str, **others: Any) -> Any:
    """A field of the settings; the arguments are the attributes of ``Setting``."""
    declared = Setting(default, kind, help, **others)
    return field(default=default, metadata={"setting": declared})
