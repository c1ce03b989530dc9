"""What is projected: ``project.toml``, every name and number in it checked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from apts_mpi.errors import InputError
from apts_mpi.settings.defaults import LOCAL_STEPS, plan
from benchmarks.harness.plan_file import check, fields, load, typed
from benchmarks.project.model import Link
from benchmarks.project.rows import METHODS


@dataclass(frozen=True, kw_only=True)
class Network:
    """An assumed network: its link, and where its numbers are from."""

    name: str
    link: Link
    source: str


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way to train on any number of ranks.

    Attributes:
        label: in tables. method: as on the command line. global_batch: samples of all ranks'
            minibatches. least_batch: of a rank's. local_steps: of methods that have them.
    """

    label: str
    method: str
    global_batch: int = 0
    least_batch: int = 1
    local_steps: int = 0

    @property
    def costs(self) -> str:
        """Whose measured costs it has."""
        return METHODS.get(self.method, self.method)

    def shape(self, ranks: int, samples: int) -> tuple[int, int | None] | None:
        """A rank's minibatch and local steps; None where it would have no sample."""
        if self.method == "apts":
            return plan(ranks, samples)
        if self.least_batch == 1 and ranks > self.global_batch:
            return None
        batch = max(math.ceil(self.global_batch / ranks), self.least_batch)
        return batch, self.local_steps or None


@dataclass(frozen=True, kw_only=True)
class Accelerator:
    """An assumed device: operations and bytes of memory per second, seconds per evaluation
    besides, and bytes per second between it and its host.
    """

    name: str
    flops: float
    memory: float
    launch: float
    copy: float


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a TOML file says; its comments explain the names."""

    ranks: tuple[int, ...]
    parameters: tuple[int, ...]
    samples: int
    pays: float
    networks: tuple[Network, ...]
    methods: tuple[Method, ...]
    accelerator: Accelerator | None = None


_METHOD, _ACCELERATOR = fields(Method), fields(Accelerator)
_NETWORK = {"name": str, "latency": float, "bandwidth": float, "source": str}
_PLAN = {
    **{**fields(Plan), "reduction": float},
    **{"networks": [dict], "methods": [dict], "accelerator": dict},
}


def read_plan(path: Path) -> Plan:
    """The plan of a TOML file.

    Raises:
        InputError: it cannot be read, or is not of the form of ``project.toml``.
    """
    try:
        values = typed("the file", load(path), _PLAN, needed=_PLAN.keys() - {"accelerator"})
        reduction, device = values.pop("reduction"), values.pop("accelerator", None)
        check(0 <= reduction < 1, "reduction must be at least 0, below 1")
        networks = tuple(_network(table, reduction) for table in values.pop("networks"))
        methods = tuple(_method(table) for table in values.pop("methods"))
        made = Plan(
            **values,
            networks=networks,
            methods=methods,
            accelerator=None if device is None else _accelerator(device),
        )
        _check(made)
    except ValueError as error:
        raise InputError(f"--config {path}: {error}; see benchmarks/project.toml") from None
    return made


def _check(made: Plan) -> None:
    for name, numbers in (("ranks", made.ranks), ("parameters", made.parameters)):
        check(bool(numbers) and min(numbers) > 0, f"{name} must be positive numbers")
    doublings = [2 ** (i + 1) for i in range(len(made.ranks))]
    check(list(made.ranks) == doublings, "ranks must be 2, 4, 8, ... without a gap")
    check(made.samples >= made.ranks[-1], "samples must be one per rank at least")
    check(made.pays > 1, "pays must be above 1")
    for kind, labels in (
        ("networks", [network.name for network in made.networks]),
        ("methods", [method.label for method in made.methods]),
    ):
        check(bool(labels) and len(set(labels)) == len(labels), f"{kind} need names of their own")


def _network(table: dict[str, object], reduction: float) -> Network:
    where = f"network {table.get('name', '')!r}"
    values = typed(where, table, _NETWORK, needed=_NETWORK)
    check(0 <= values["latency"] < 1, f"{where}: latency must be at least 0, below 1 s")
    check(0 < values["bandwidth"] < math.inf, f"{where}: bandwidth must be positive")
    link = Link(values["latency"], 1.0 / values["bandwidth"], reduction)
    return Network(name=values["name"], link=link, source=values["source"])


def _method(table: dict[str, object]) -> Method:
    where = f"method {table.get('label', '')!r}"
    method = Method(**typed(where, table, _METHOD, needed=("label", "method")))
    known = ("apts", "adam", "sgd", *sorted({"local-sgd", "diloco"} & LOCAL_STEPS.keys()))
    check(method.method in known, f"{where}: method is none of {', '.join(known)}")
    if method.method != "apts":
        check(
            method.global_batch > 0 and method.least_batch > 0,
            f"{where}: global_batch and least_batch must be positive",
        )
        local = method.method in LOCAL_STEPS
        check(local == (method.local_steps > 0), f"{where}: local_steps are for local methods")
    return method


def _accelerator(table: dict[str, object]) -> Accelerator:
    device = Accelerator(**typed("accelerator", table, _ACCELERATOR, needed=_ACCELERATOR))
    check(
        min(device.flops, device.memory, device.copy) > 0 and device.launch >= 0,
        "accelerator: rates must be positive",
    )
    return device
