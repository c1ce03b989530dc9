"""What ``network`` runs: methods, networks, links and hosts of its TOML file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from apts_mpi.errors import InputError
from benchmarks.harness.hosts import bits_per_second
from benchmarks.harness.mpi_settings import SETTINGS
from benchmarks.harness.plan_file import check, fields, load, typed
from benchmarks.harness.results import digest

DDP = "ddp-adam"
UNLIMITED = "unlimited"


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way to train.

    Attributes:
        name: in tables; "ddp-adam" is PyTorch's. arguments: of our program, for the others.
        batches, learning_rates: to be tuned; minibatches of all ranks. None of them: nothing is.
        like: the method whose minibatch and learning rate it takes.
    """

    name: str
    arguments: tuple[str, ...] = ()
    batches: tuple[int, ...] = ()
    learning_rates: tuple[float, ...] = ()
    like: str = ""

    @property
    def tuned(self) -> bool:
        """Whether it has learning rates of its own."""
        return bool(self.learning_rates)


@dataclass(frozen=True, kw_only=True)
class Network:
    """Hidden layers, and the epochs after which a run has failed."""

    hidden: str
    epochs: float


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a TOML file says; ``network.toml`` explains the names."""

    data: str
    target: float
    hosts: tuple[int, ...]
    links: tuple[str, ...]
    repetitions: int
    mpi: str
    evaluate_every: int
    networks: tuple[Network, ...]
    methods: tuple[Method, ...]

    def method(self, name: str) -> Method:
        """By name."""
        return next(method for method in self.methods if method.name == name)

    def key(self, network: Network, method: Method) -> str:
        """What decides a run's figures besides its settings, in 8 hex digits."""
        values = (self.data, self.target, self.evaluate_every, self.mpi, network.epochs)
        return digest([*values, *method.arguments])


_METHOD, _NETWORK = fields(Method), fields(Network)
_PLAN = {**fields(Plan), "networks": [dict], "methods": [dict]}


def read_plan(path: Path) -> Plan:
    """The plan of a TOML file.

    Raises:
        InputError: it cannot be read, or is not of the form of ``network.toml``.
    """
    try:
        values = typed("the file", load(path), _PLAN, needed=_PLAN)
        networks = tuple(
            Network(**typed("networks", table, _NETWORK, needed=_NETWORK))
            for table in values.pop("networks")
        )
        methods = tuple(
            Method(**typed("methods", table, _METHOD, needed=("name",)))
            for table in values.pop("methods")
        )
        plan = Plan(**values, networks=networks, methods=methods)
        check(plan.data in ("mnist", "digits"), f"data {plan.data!r} is neither mnist nor digits")
        check(bool(networks and methods and plan.links), "networks, methods or links are missing")
        check(all(n.epochs > 0 for n in networks), "epochs must be positive")
        check(0 < plan.target < 1, "target is an accuracy between 0 and 1")
        check(min(*plan.hosts, plan.repetitions, plan.evaluate_every) > 0, "numbers from 1 up")
        check(plan.mpi in SETTINGS, f"mpi {plan.mpi!r} is none of {', '.join(SETTINGS)}")
        names = [method.name for method in methods]
        check(len(set(names)) == len(names), "methods share a name")
        for method in methods:
            check(bool(method.batches) == method.tuned, f"{method.name}: rates and batches")
            liked = [m for m in methods if m.name == method.like and m.tuned]
            check(not method.like or bool(liked), f"{method.name}: like {method.like!r}, not tuned")
        for link in plan.links:
            if link != UNLIMITED:
                bits_per_second(link)
    except (ValueError, InputError) as error:
        raise InputError(f"--config {path}: {error}; see benchmarks/network.toml") from None
    return plan
