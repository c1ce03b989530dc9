"""What ``sensitivity`` runs: its TOML, and the runs behind every parameter's range."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apts_mpi.errors import InputError
from apts_mpi.settings.config import SETTINGS, TrainConfig
from apts_mpi.settings.defaults import completed
from benchmarks.harness.data import SOURCES
from benchmarks.harness.plan_file import check, fields, load, typed
from benchmarks.harness.results import Row
from benchmarks.harness.runs import AVERAGING, MEASURES, Measure

Get = Callable[[Row], Row | None]  # the run of some settings, if it is done

KINDS: dict[str, Any] = {
    name: [int] if each.kind.type is tuple else each.kind.type for name, each in SETTINGS.items()
}


@dataclass(frozen=True)
class Point:
    """A value of a parameter.

    Attributes:
        text: the value. default: whether it is. near: within a factor of two of that.
        settings: of its run, but for the seed.
    """

    text: str
    default: bool
    near: bool
    settings: Row


@dataclass(frozen=True, kw_only=True)
class Family:
    """Runs that differ in one setting; see ``sensitivity.toml``.

    Attributes:
        shared: settings of all runs. values: by parameter. limits: what a choice may cost, by
            parameter.
    """

    name: str
    data: str
    samples: int
    measured: str = "accuracy"
    optimizer: str
    ranks: tuple[int, ...]
    simulated: bool = False
    epochs: float
    batch: int = 0
    most_lost: float | None = None
    near_lost: float | None = None
    shared: dict[str, Any]
    values: dict[str, tuple[Any, ...]]
    limits: dict[str, float]

    @property
    def measure(self) -> Measure:
        """What its runs are judged by."""
        return MEASURES[self.measured]

    @property
    def network(self) -> str:
        """Flags of its network; the sizes are settings of its runs."""
        return f"--network {self.shared.get('network', 'mlp')}"

    def completed(self, ranks: int, **changes: Any) -> TrainConfig:
        """The settings of a run with every default.

        Raises:
            InputError: a value is outside its range.
        """
        given = {**self.shared, **changes}
        if self.simulated:
            given["subdomains_per_rank"], ranks = ranks, 1
        config = TrainConfig(optimizer=self.optimizer, epochs=self.epochs, **given)
        task = "language" if self.data == "text" else "classification"
        return completed(config, ranks, self.samples, task=task)

    def settings(self, ranks: int, **changes: Any) -> Row:
        """Of a run, but for the seed, as ``runs.command`` takes them."""
        row = dict(
            **{"data": self.data, "network": self.network.split(), "epochs": self.epochs},
            **{"ranks": ranks, "optimizer": self.optimizer},
            **({"simulated": True} if self.simulated else {}),
        )
        given = {name: each for name, each in self.shared.items() if name != "network"}
        if self.optimizer in AVERAGING:
            lr = self.completed(ranks, **changes).lr
            return {**row, "arguments": flags(given), "batch": self.batch, "lr": lr}
        return {**row, "arguments": flags({**given, **changes})}


@dataclass(frozen=True)
class Sweep:
    """A parameter of a family."""

    family: Family
    field: str

    @property
    def name(self) -> str:
        """For --parameters."""
        flag = self.field.replace("_", "-")
        return flag if self.family.name == "apts" else f"{self.family.name}-{flag}"

    @property
    def label(self) -> str:
        """For tables and plots."""
        flag = flag_of(self.field)
        return flag if self.family.name == "apts" else f"{self.family.name} {flag}"

    @property
    def range(self) -> str:
        """From the first to the last value."""
        values = self.family.values[self.field]
        return f"{shown(values[0])} to {shown(values[-1])}"

    def points(self, ranks: int) -> list[Point]:
        """The values in order, the default among them."""
        family, name = self.family, self.field
        default = family.completed(ranks)
        listed: list[tuple[Any, dict[str, Any]]] = []
        for value in family.values[name]:
            same = family.completed(ranks, **{name: value}) == default
            listed.append((value, {} if same else {name: value}))
        if all(changes for _, changes in listed):
            listed.append((getattr(default, name), {}))
            listed.sort(key=lambda item: -math.inf if item[0] is None else item[0])
        usual = getattr(default, name)

        def near(value: Any) -> bool:
            numbers = isinstance(value, (int, float)) and isinstance(usual, (int, float))
            return numbers and bool(value and usual) and 0.5 <= value / usual <= 2.0

        return [
            Point(shown(value), not changes, near(value), family.settings(ranks, **changes))
            for value, changes in listed
        ]


@dataclass(frozen=True)
class Plan:
    """All families, over these seeds where no others are asked for."""

    seeds: tuple[int, ...]
    families: tuple[Family, ...]

    def sweeps(self) -> list[Sweep]:
        """The parameters of all families."""
        return [Sweep(family, name) for family in self.families for name in family.values]


def wanted(
    sweeps: Iterable[Sweep], seeds: Sequence[int], ranks: Sequence[int] | None = None
) -> list[Row]:
    """The settings of all runs of some parameters, each once.

    Args:
        ranks: only these, and one rank, which stands for all numbers of them; default all.
    """
    found: dict[str, Row] = {}
    for sweep in sweeps:
        for number in sweep.family.ranks:
            if ranks is None or number in ranks or sweep.family.optimizer in AVERAGING:
                for point in sweep.points(number):
                    for seed in seeds:
                        settings = {**point.settings, "seed": seed}
                        found.setdefault(repr(settings), settings)
    return list(found.values())


def flag_of(name: str) -> str:
    """The flag of a setting."""
    return "--" + name.replace("_", "-")


def flags(values: dict[str, Any]) -> list[str]:
    """Settings as the command line takes them."""
    return [text for name, value in values.items() for text in (flag_of(name), shown(value))]


def shown(value: Any) -> str:
    """A value as the command line takes it; what is not given is searched."""
    if value is None:
        return "searched"
    if isinstance(value, tuple):
        return ",".join(map(shown, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


# ---- the TOML ------------------------------------------------------------------------------

_PLAN = {"seeds": [int], "families": [dict]}
_NAMED = ("shared", "values", "limits")  # "settings", "parameters" and "most_lost_of" of the file
_LISTS = {name: [kind] for name, kind in KINDS.items() if isinstance(kind, type)}
_FAMILY = {
    **fields(Family, without=_NAMED),
    **dict.fromkeys(("settings", "parameters", "most_lost_of"), dict),
}


def read_plan(path: Path) -> Plan:
    """The plan of a TOML file.

    Raises:
        InputError: the file cannot be read, is not of the form that ``sensitivity.toml`` explains,
            or a value is none that the program takes.
    """
    values = load(path)
    try:
        table = typed("the file", values, _PLAN, needed=_PLAN)
        check(bool(table["seeds"]) and min(table["seeds"]) >= 0, "seeds are numbers from 0 up")
        families = tuple(map(_family, table["families"]))
        names = [family.name for family in families]
        check(bool(names) and len(set(names)) == len(names), "families need names of their own")
        for family in families:
            for ranks in family.ranks:
                for name in family.values:
                    Sweep(family, name).points(ranks)
    except (ValueError, InputError) as error:
        raise InputError(f"--config {path}: {error}; see benchmarks/sensitivity.toml") from None
    return Plan(table["seeds"], families)


def _family(table: dict[str, Any]) -> Family:
    where = f"family {table.get('name', '')!r}"
    needed = ("name", "data", "samples", "optimizer", "ranks", "epochs", "parameters")
    values = typed(where, table, _FAMILY, needed=needed)
    shared = typed(where, values.pop("settings", {}), KINDS)
    parameters = typed(where, values.pop("parameters"), _LISTS)
    limits = typed(where, values.pop("most_lost_of", {}), dict.fromkeys(parameters, float))
    family = Family(**values, shared=shared, values=parameters, limits=limits)
    check(family.data in SOURCES, f"{where}: data is none of {', '.join(SOURCES)}")
    check(family.samples > 0, f"{where}: samples must be positive")
    check(family.measured in MEASURES, f"{where}: measured is none of {', '.join(MEASURES)}")
    check(min(family.ranks, default=0) > 0, f"{where}: ranks must be positive numbers")
    check(all(parameters.values()), f"{where}: a parameter has no values")
    averaging = family.optimizer in AVERAGING
    check(
        averaging or family.optimizer == "apts",
        f"{where}: optimizer is {', '.join(('apts', *AVERAGING))}",
    )
    check((family.batch > 0) == averaging, f"{where}: batch is for baselines, which need it")
    check(not averaging or set(parameters) == {"lr"}, f"{where}: lr is its only parameter")
    return family
