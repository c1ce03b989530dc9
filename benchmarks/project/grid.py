"""Projections: the cost model where nothing was measured. Every number from here is one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from benchmarks.project.fit import costs_of
from benchmarks.project.model import Costs, Parts, iteration, work_of
from benchmarks.project.plan import Accelerator, Method, Plan
from benchmarks.project.rows import Measured

MEASURED = "measured"  # who computes: a core as it was measured
FLOPS = 6  # per parameter and sample: 2 forward, 4 backward
# Bytes of memory that pass per parameter: in a local step those of Adam (four vectors read, three
# written); in joining and judging some ten vectors are read and five written.
STEP_BYTES, JOIN_BYTES = 28, 60


@dataclass(frozen=True)
class Projection:
    """One method, size, network and computer, by ranks from 1 up.

    Attributes:
        compute: MEASURED or the accelerator's name. parts: of an outer iteration.
        epoch: seconds. efficiency: of one rank's epoch by the method's own plan for one rank.
    """

    method: str
    parameters: int
    network: str
    compute: str
    parts: dict[int, Parts]
    epoch: dict[int, float]
    efficiency: dict[int, float]


def project(plan: Plan, alone: Sequence[Measured]) -> list[Projection]:
    """All of a plan.

    Args:
        alone: configurations measured on one rank.

    Raises:
        InputError: there are none.
    """
    devices = (None, plan.accelerator) if plan.accelerator else (None,)
    found = []
    for device in devices:
        for parameters in plan.parameters:
            for method in plan.methods:
                ranked = {
                    ranks: (
                        work_of(method.costs, parameters, *shape),
                        _costs(method, shape[0], parameters, alone, device),
                    )
                    for ranks in (1, *plan.ranks)
                    if (shape := method.shape(ranks, plan.samples)) is not None
                }
                for network in plan.networks:
                    link = replace(network.link, copy=device.copy) if device else network.link
                    parts, epoch = {}, {}
                    for ranks, (work, costs) in ranked.items():
                        parts[ranks] = iteration(work, costs, link, ranks)
                        each = ranks * work.batch * work.evaluations
                        epoch[ranks] = parts[ranks].total * plan.samples / each
                    found.append(
                        Projection(
                            method=method.label,
                            parameters=parameters,
                            network=network.name,
                            compute=device.name if device else MEASURED,
                            parts=parts,
                            epoch=epoch,
                            efficiency={n: epoch[1] / (n * t) for n, t in epoch.items()},
                        )
                    )
    return found


def pays_to(epoch: Mapping[int, float], gain: float) -> int:
    """The ranks up to which every doubling makes an epoch at least ``gain`` times as fast.

    Args:
        epoch: seconds by ranks: 1, 2, 4, ...
    """
    last, *more = sorted(epoch)
    for ranks in more:
        if not epoch[last] / epoch[ranks] >= gain:
            break
        last = ranks
    return last


def _costs(
    method: Method,
    batch: int,
    parameters: int,
    alone: Sequence[Measured],
    device: Accelerator | None,
) -> Costs:
    """What a rank takes by itself; on a device, data and the rest take as long as measured."""
    costs, _ = costs_of(method.costs, "", batch, parameters, alone)
    if device is None:
        return costs
    return replace(
        costs,
        gradient=FLOPS * parameters / device.flops,
        evaluation=device.launch,
        step=STEP_BYTES * parameters / device.memory,
        join=JOIN_BYTES * parameters / device.memory,
    )
