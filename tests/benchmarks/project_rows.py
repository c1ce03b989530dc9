"""Rows of measurements that the cost model made itself."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("scipy", reason="the benchmarks need scipy: pip install .[bench]")

from apts_mpi.comm.clock import PHASES
from benchmarks.harness.results import Row
from benchmarks.project.model import SCALARS_BYTES, Costs, Link, doubling, iteration, work_of
from benchmarks.project.spread import Spread

N = 118_282
LINKS = {"none": Link(2e-6, 1 / 4e9), "100mbit": Link(1e-4, 1 / 12e6)}
EVEN = Spread((1.0,))
MADE = {
    "apts": Costs(1.1e-5, 0.0, 2e-4, 3e-3, 1e-7, 5e-4, EVEN),
    "adam": Costs(1.2e-5, 0.0, 3e-4, 0.0, 1e-7, 4e-4, EVEN),
    "diloco": Costs(1.15e-5, 0.0, 4e-4, 2e-3, 1e-7, 3e-4, EVEN),
    "apts-sr1": Costs(1.0e-5, 0.0, 5e-3, 0.0, 1e-7, 6e-4, EVEN),
}
SLOWDOWN = 1.2
STEPS = {"apts": 40, "diloco": 40}
REACHED = {"target": 0.9, "curve": {"seconds": [1.0], "test_accuracy": [0.9]}}
COUNTS = {"evaluations": 8 + 1 / 3, "vectors": 3.0}  # of an L-SR1 iteration


def scaling_rows(
    benchmark: str, method: str, ranks: int, batch: int, steps: int | None, *, cores: int = 2
) -> Iterator[Row]:
    """The rows of two repetitions, as ``strong`` and ``weak`` write them."""
    counts = COUNTS if method == "apts-sr1" else {}
    work = work_of(method, N, batch, steps, **counts)
    slow = SLOWDOWN if ranks > 1 else 1.0
    parts = iteration(work, MADE[method], LINKS["none"], ranks, slowdown=slow)
    message = parts.vector + parts.scalar
    phases = dict.fromkeys(PHASES, 0.0)
    phases.update(data=parts.data, gradient=parts.compute, algebra=parts.algebra)
    phases.update(other=parts.other, allreduce=0.75 * message, wait=0.25 * message)
    phases["evaluation"] = 7.0  # is not the iteration's
    iterations = 12
    for repetition in (0, 1):
        for rank in range(ranks):
            for phase in PHASES:
                yield {
                    "settings": {
                        **{"benchmark": benchmark, "method": method, "data": "mnist"},
                        **{"hidden": "128,128", "ranks": ranks, "batch": batch},
                        **{"repetition": repetition, "rank": rank, "phase": phase},
                    },
                    **{"run": f"{benchmark}{method}{ranks}{repetition}", "cpu_seconds": 1.0},
                    "seconds": [phases[phase]] * iterations,
                    "evaluations": iterations * ranks * batch * work.evaluations,
                    **{"samples": 60000, "bytes": 1, "messages": round(iterations * work.vectors)},
                    **{"parameters": N, "host": "here", "cores": cores, "threads": 1},
                    **{"oversubscribed": ranks > cores, "local_steps": steps},
                    **{"date": "2026-11-23", "commit": "abc", "versions": {"python": "3.11"}},
                }


def micro_rows() -> Iterator[Row]:
    for link, own in LINKS.items():
        for mpi in ("yield", "tuned") if link == "none" else ("tuned", "defaults"):
            for ranks in (2, 4) if link != "none" else (2,):
                for nbytes in (4, 4096, 473_128, 4_194_304):
                    # Settings and ways that are not to be used are ten times as slow.
                    usual = mpi == ("yield" if link == "none" else "tuned")
                    for through in ("comm-untimed", "message"):
                        factor = 1.0 if usual and through == "comm-untimed" else 10.0
                        seconds = factor * doubling(nbytes, ranks, own)
                        yield {
                            "settings": {
                                **{"benchmark": "micro", "operation": "allreduce"},
                                **{"through": through, "bytes": nbytes, "ranks": ranks},
                                **{"hosts": 1 if link == "none" else ranks},
                                **{"link": link, "mpi": mpi},
                            },
                            "seconds": [seconds, 0.9 * seconds, 1.2 * seconds],
                        }


def network_rows() -> Iterator[Row]:
    link = LINKS["100mbit"]
    for method, costs, steps in (("apts", "apts", 21), ("adam", "adam", None)):
        for hosts in (2, 4):
            slow = SLOWDOWN * hosts / 2
            work = work_of(costs, N, 250, steps)
            parts = iteration(work, MADE[costs], link, hosts, slowdown=slow)
            # Over four hosts the message is by recursive doubling, as micro has measured it.
            barrier = doubling(0, hosts, link)
            message = barrier + doubling(4 * (N + (60 if steps else 20)), hosts, link)
            message += barrier + doubling(SCALARS_BYTES, hosts, link) if steps else 0.0
            yield {
                "settings": {
                    **{"benchmark": "network", "hosts": hosts, "link": "100mbit"},
                    **{"method": method, "hidden": "128,128", "batch": None, "lr": None},
                    "repetition": 0,
                },
                **{"parameters": N, "local_steps": steps, "rank_batch": 250, "cores": 2},
                **{"seconds_per_epoch": 1.0, "mpi": "tuned", **REACHED},
                "iteration_seconds": [9.0] + [parts.busy + message] * 5,
            }
    of = {"benchmark": "network", "method": "ddp-adam", "hosts": 2, "hidden": "16", "link": "1gbit"}
    yield {"settings": of, "parameters": N, **REACHED}


def made_rows() -> list[Row]:
    """All of a measurement, four ranks on two cores included, twice as slow as they should be."""
    rows: list[Row] = []
    for method in MADE:
        steps = STEPS.get(method)
        for ranks in (1, 2, 4):
            batch = 250 if steps else 500 // ranks
            own = steps and steps // ranks
            rows += scaling_rows("strong", method, ranks, batch, own)
            rows += scaling_rows("weak", method, ranks, 250, steps and steps // 2)
    for row in rows:
        if row["settings"]["ranks"] == 4:
            row["seconds"] = [2 * t for t in row["seconds"]]
    return [*rows, *micro_rows(), *network_rows()]
