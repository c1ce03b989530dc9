"""What the cost model says of configurations that were measured, without having seen them.

A prediction takes no time from the configuration it predicts: what a rank does by itself comes from
runs on one rank, messages from ``micro``, and how much ranks that share a machine slow each other
down from other methods' runs. Its numbers are given: of ranks and samples, of the evaluations and
messages that L-SR1 and first order made, and of the local steps that apts-auto chose.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from benchmarks.project.fit import Fitted, costs_of, typical
from benchmarks.project.model import Costs, Link, Parts, iteration
from benchmarks.project.rows import Measured


def transfer_of(
    target: Measured, fits: dict[tuple[int, str, str], Fitted]
) -> tuple[Fitted, str] | None:
    """The network of a configuration and its name; None where ``micro`` has none like it.

    Where several MPI settings were measured: those of the run if it names them, else those that the
    benchmarks start it with (``launch.ENVIRONMENT`` within a host, the tuned ones between hosts).
    """
    within = ("yield", "defaults", "tuned")
    usual = within if target.link == "none" else ("tuned", "yield", "defaults")
    for hosts in (target.hosts, *sorted({h for h, _, _ in fits} - {target.hosts})):
        if (hosts == 1) != (target.hosts == 1):
            continue
        place = (hosts, target.link)
        here = {key[2]: found for key, found in fits.items() if key[:2] == place}
        for mpi in (target.mpi, *usual, *sorted(here)):
            if mpi in here:
                return here[mpi], f"{hosts} hosts, {target.link}, {mpi or 'defaults'}"
    return None


# ---- predictions -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prediction:
    """A measured configuration and what the model says of it.

    Attributes:
        of: the configuration. measured: median seconds of its outer iterations. parts: predicted.
        alone: predicted without the slow-down of ranks that share a machine. slowdown: that factor.
        source: what the parameters are from, in words.
    """

    of: Measured
    measured: float
    parts: Parts
    alone: float
    slowdown: float
    source: str


def predict(
    scaling: Sequence[Measured],
    network: Sequence[Measured],
    fits: dict[tuple[int, str, str], Fitted],
) -> tuple[list[Prediction], list[Measured]]:
    """Predictions of all configurations of more than one rank, and those that cannot be made.

    Raises:
        InputError: there is no run on one rank to take parameters from.
    """
    alone = [m for m in scaling if m.ranks == 1]
    made, left = [], []
    for target in (*(m for m in scaling if m.ranks > 1), *network):
        found = transfer_of(target, fits)
        if found is None:
            left.append(target)
            continue
        costs, donors = costs_for(target, alone)
        slow, peers = slowdown(target, scaling, alone)

        # On as many ranks of this network, but for how much they slow each other down.
        parts = partial(iteration, target.work, costs, found[0], target.ranks)
        names = sorted({f"{m.of['benchmark']} {m.method} batch {m.of['batch']}" for m in donors})
        shared = f"; slow-down {slow:.2f} from {peers}" if peers else ""
        made.append(
            Prediction(
                of=target,
                measured=typical(target.seconds),
                parts=parts(slowdown=slow),
                alone=parts().total,
                slowdown=slow,
                source=f"N = 1 of {', '.join(names)}; micro {found[1]}{shared}",
            )
        )
    return made, left


def costs_for(target: Measured, alone: Sequence[Measured]) -> tuple[Costs, list[Measured]]:
    """``costs_of`` a measured configuration."""
    return costs_of(target.method, target.hidden, target.work.batch, target.parameters, alone)


def slowdown(
    target: Measured, scaling: Sequence[Measured], alone: Sequence[Measured]
) -> tuple[float, str]:
    """How much slower a rank is beside the others of its machine, and from whose runs.

    The median, over other configurations with as many ranks on a machine, of the time that a rank
    took by itself over what the model says of it. Never from the configuration itself: for
    ``strong`` and ``weak``, some of whose runs are the same, from other methods' runs; for
    ``network`` from theirs. Ranks beyond the cores take turns.
    """
    cores = target.cores or max((m.cores for m in scaling), default=0)
    together = min(target.together, cores) if cores else target.together
    peers = [m for m in scaling if m.together == together > 1]
    if target.of["benchmark"] == "network":
        peers = [m for m in peers if m.method == target.method] or peers
    else:
        peers = [m for m in peers if m.method != target.method]
    factor, whose = 1.0, ""
    if peers:
        factor = typical(_busy_ratio(m, alone) for m in peers)
        whose = ", ".join(sorted({m.method for m in peers}))
    return factor * target.together / max(together, 1), whose


def _busy_ratio(m: Measured, alone: Sequence[Measured]) -> float:
    costs, _ = costs_for(m, alone)
    return typical(np.concatenate(m.busy)) / iteration(m.work, costs, Link(0.0, 0.0), m.ranks).busy
