"""What ``compare`` runs: its TOML, the grids, and who continues to the other seeds."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apts_mpi.errors import InputError
from apts_mpi.method.options import LOCAL, OPTIMIZERS
from benchmarks.harness.data import SOURCES
from benchmarks.harness.plan_file import check, fields, load, typed
from benchmarks.harness.results import Row
from benchmarks.harness.runs import AVERAGING, MEASURES, Measure

Get = Callable[[Row], Row | None]  # the run of some settings, if it is done


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way to train, with the grid it is tuned over; see ``compare.toml``."""

    name: str
    optimizer: str
    arguments: tuple[str, ...] = ()
    learning_rates: tuple[float, ...] = ()
    batches: tuple[int, ...] = ()
    samples_per_message: int = 0
    finalists: int = 0
    least_ranks: int = 1
    also_ranks: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """A data set with the runs on it; ``methods`` as they are for this set."""

    name: str
    source: str
    hidden: tuple[int, ...] = ()
    network: tuple[str, ...] = ()
    simulated: bool = False
    measured: str = "accuracy"
    least: float | None = None
    fewer: int = 20
    ranks: tuple[int, ...]
    epochs: float
    seeds: tuple[int, ...]
    margin: float = 0.2
    rank_loss: float | None = None
    shown: int
    methods: tuple[Method, ...]

    @property
    def measure(self) -> Measure:
        """What its runs are judged by."""
        return MEASURES[self.measured]

    @property
    def points(self) -> str:
        """The unit of a difference between two."""
        return self.measure.points

    @property
    def described(self) -> str:
        """Its network in a few words."""
        if self.network:
            return " ".join(self.network).replace("--network ", "").replace("--", "")
        return "hidden layers " + "-".join(map(str, self.hidden))


@dataclass(frozen=True)
class Group:
    """A method on a data set with so many ranks: what is tuned on its own."""

    data: DataSet
    method: Method
    ranks: int

    def candidates(self) -> list[Row]:
        """The settings of each point of the grid, but for the seed; one point without a grid."""
        common = dict(
            **{"data": self.data.source, **self._network(), "epochs": self.data.epochs},
            **{"ranks": self.ranks, "optimizer": self.method.optimizer},
            arguments=list(self.method.arguments),
        )
        if not self.method.learning_rates:
            return [common]
        points = []
        for batch, lr in itertools.product(self.method.batches, self.method.learning_rates):
            point = {**common, "batch": batch, "lr": lr}
            if self.method.optimizer in LOCAL:
                point["local_steps"] = max(1, round(self.method.samples_per_message / batch))
            points.append(point)
        return points

    def _network(self) -> Row:
        if not self.data.network:
            return {"hidden": ",".join(map(str, self.data.hidden))}
        simulated = self.data.simulated and self.method.optimizer == "apts"
        return {
            "network": list(self.data.network),
            **({"simulated": True} if simulated else {}),
        }

    def finalists(self, get: Get) -> list[Row] | None:
        """The candidates for all seeds; None while the first seed's runs are not all done."""
        candidates = self.candidates()
        if not 0 < self.method.finalists < len(candidates):
            return candidates
        scored = []
        for candidate in candidates:
            row = get({**candidate, "seed": self.data.seeds[0]})
            if row is None:
                return None
            # Of equals the larger batch: it needs fewer messages.
            scored.append((self.data.measure.score(row), candidate.get("batch", 0), candidate))
        scored.sort(key=lambda one: one[:2], reverse=True)
        return [candidate for _, _, candidate in scored[: self.method.finalists]]

    def wanted(self, get: Get, seeds: Iterable[int] | None = None) -> list[Row]:
        """The settings of all runs that are known to be needed, done or not.

        Args:
            get: looks up runs that are done. seeds: only these; default the set's.
        """
        first, chosen = self.data.seeds[0], self.finalists(get)
        pairs = [(candidate, first) for candidate in self.candidates()]
        for candidate in chosen or []:
            pairs += [(candidate, seed) for seed in self.data.seeds if seed != first]
        allowed = self.data.seeds if seeds is None else tuple(seeds)
        return [{**candidate, "seed": seed} for candidate, seed in pairs if seed in allowed]


def groups(data: DataSet) -> list[Group]:
    """All groups of a set: the methods on all numbers of ranks, but for gradient averaging.

    That is the same on any number of ranks, but for a network with BatchNorm, whose statistics are
    of the minibatch of a rank: ``also_ranks``.
    """
    return [
        Group(data, method, ranks)
        for method in data.methods
        for ranks in ((1, *method.also_ranks) if method.optimizer in AVERAGING else data.ranks)
        if ranks >= method.least_ranks or method.optimizer in AVERAGING
    ]


# ---- the TOML ------------------------------------------------------------------------------

_METHOD = fields(Method)
_GRID = {"batches": [int], "samples_per_message": int}  # of all methods of a set that have them
_SET = {**fields(DataSet), **_GRID, "only": [str], "methods": dict}


def read_plan(path: Path) -> tuple[DataSet, ...]:
    """The data sets of a TOML file, each with its methods.

    Raises:
        InputError: the file cannot be read, or is not of the form that ``compare.toml`` explains.
    """
    values = load(path)
    try:
        tables = typed("the file", values, {"methods": [dict], "sets": [dict]})
        methods = [_method(table) for table in tables.get("methods", ())]
        sets = tuple(_data_set(table, methods) for table in tables.get("sets", ()))
        for what, names in (("methods", methods), ("sets", sets)):
            check(bool(names), f"the file has no [[{what}]]")
            check(len({item.name for item in names}) == len(names), f"{what} share a name")
    except ValueError as error:
        raise InputError(f"--config {path}: {error}; see benchmarks/compare.toml") from None
    return sets


def _method(table: dict[str, Any]) -> Method:
    where = f"method {table.get('name', '')!r}"
    values = typed(where, table, _METHOD, needed=("name", "optimizer"))
    method = Method(**values)
    check(
        method.optimizer in OPTIMIZERS,
        f"{where}: optimizer {method.optimizer!r} is none of {', '.join(OPTIMIZERS)}",
    )
    tuned = method.optimizer != "apts"
    for name in ("learning_rates", "batches"):
        check(
            bool(values.get(name)) == tuned,
            f"{where}: {name} are for the optimizers that are tuned, which need them",
        )
    local = method.optimizer in LOCAL
    check((method.samples_per_message > 0) == local, f"{where}: samples_per_message is for {LOCAL}")
    numbers = (*method.learning_rates, *method.batches, method.least_ranks)
    check(min(numbers) > 0 and method.finalists >= 0, f"{where}: has a number that is too small")
    return method


def _data_set(table: dict[str, Any], methods: list[Method]) -> DataSet:
    where = f"set {table.get('name', '')!r}"
    values = typed(where, table, _SET, needed=("name", "ranks", "epochs", "seeds"))
    changes, only = values.pop("methods", {}), values.pop("only", ())
    grid = {name: values.pop(name) for name in _GRID if name in values}
    unknown = set(changes).union(only) - {method.name for method in methods}
    check(not unknown, f"{where}: changes {', '.join(sorted(unknown))}, which is no method")
    own = []
    for method in methods:
        if only and method.name not in only:
            continue
        given = {k: v for k, v in dataclasses.asdict(method).items() if v not in ((), 0)}
        change = changes.get(method.name, {})
        check(isinstance(change, dict), f"{where}: methods.{method.name} is no table")
        common = {name: value for name, value in grid.items() if name in given}
        whole = {**given, **common, **change, "name": method.name}
        lists = {k: list(v) if isinstance(v, tuple) else v for k, v in whole.items()}
        own.append(_method(lists))
    values = {"source": values["name"], **values, "methods": tuple(own)}
    check(bool(values["ranks"] and values["seeds"]), f"{where}: ranks or seeds are missing")
    data = DataSet(**{"shown": max(values["ranks"]), **values})
    known = f"is none of {', '.join(SOURCES)}"
    check(data.source in SOURCES, f"{where}: source {data.source!r} {known}")
    both = bool(data.hidden) == bool(data.network)
    check(not both, f"{where}: needs hidden, or network: flags of the program")
    check(not data.simulated or bool(data.network), f"{where}: simulated needs network")
    check(data.measured in MEASURES, f"{where}: measured is none of {', '.join(MEASURES)}")
    check(min(*data.hidden, *data.ranks, data.epochs) > 0, f"{where}: needs positive numbers")
    check(min(data.seeds) >= 0, f"{where}: seeds are numbers from 0 up")
    check(data.shown in data.ranks, f"{where}: shown = {data.shown} is none of its ranks")
    return data
