"""What ``network`` runs: its TOML file, and what is run of it given what has come out so far."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from apts_mpi.errors import InputError
from benchmarks.harness.hosts import bits_per_second
from benchmarks.harness.mpi_settings import SETTINGS
from benchmarks.harness.plan_file import check, fields, load, typed
from benchmarks.harness.results import Row, digest

DDP = "ddp-adam"
OUTSIDE = {DDP: "adam", "ddp-muon": "muon"}  # PyTorch's own, by their optimizers
UNLIMITED = "unlimited"
TUNED_ON = 2  # ranks of this machine; the minibatch of all ranks is what counts


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way to train.

    Attributes:
        name: in tables; those of OUTSIDE are PyTorch's. arguments: of our program, for the others.
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


@dataclass(frozen=True)
class Choice:
    """The runs of a plan.

    Attributes:
        get: looks up the row of settings.
    """

    plan: Plan
    get: Callable[[Row], Row | None]

    def tuning(self, network: Network, method: Method) -> list[Row]:
        """Settings of the runs that find a method's learning rates."""
        place = {"benchmark": "network-tune", "hosts": TUNED_ON, "link": "none", "repetition": 0}
        return [
            self._settings(network, method, batch, lr, place)
            for batch in method.batches
            for lr in method.learning_rates
        ]

    def best_rate(self, network: Network, method: Method, batch: int) -> float | None:
        """The learning rate that needed least work to the target; None where no run reached it."""
        tried = [s for s in self.tuning(network, method) if s["batch"] == batch]
        found = self._first(tried, "epochs_to_target")
        return found and found[1]

    def wanted(
        self, link: str, network: Network, method: Method, hosts: int, repetition: int
    ) -> list[Row]:
        """The runs of a method and seed over a link.

        With seed 0 these are all minibatches at their best rates, with others the minibatch that
        was soonest at the target over this link. None while that is not known.
        """
        tuned = self.plan.method(method.like) if method.like else method
        pairs: list[tuple[int | None, float | None]]
        if not tuned.tuned:
            pairs = [(None, None)]
        elif method.like or repetition:
            first = self.wanted(link, network, tuned, hosts, 0)
            best = self._first(first, "seconds_to_target")
            pairs = [] if best is None else [best]
        else:
            rates = [(batch, self.best_rate(network, tuned, batch)) for batch in tuned.batches]
            pairs = [(batch, lr) for batch, lr in rates if lr is not None]
        place = {"benchmark": "network", "hosts": hosts, "link": link, "repetition": repetition}
        return [self._settings(network, method, *pair, place) for pair in pairs]

    def _first(self, tried: Sequence[Row], name: str) -> tuple[int, float] | None:
        """Minibatch and rate that needed least to the target."""
        rows = [row for row in map(self.get, tried) if row is not None and row[name] is not None]
        reached = [(row[name], row["settings"]["batch"], row["settings"]["lr"]) for row in rows]
        return min(reached)[1:] if reached else None

    def _settings(
        self, network: Network, method: Method, batch: int | None, lr: float | None, place: Row
    ) -> Row:
        of = {"method": method.name, "hidden": network.hidden, "batch": batch, "lr": lr}
        return {**place, **of, "plan": self.plan.key(network, method)}
