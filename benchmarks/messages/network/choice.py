"""Which runs ``network`` makes, given what has come out so far."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.harness.results import Row
from benchmarks.messages.network.plan import Method, Network, Plan

TUNED_ON = 2  # ranks of this machine; the minibatch of all ranks is what counts


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
