"""Rows of results made up for the tests of the report, and what they look at."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="the benchmarks need matplotlib: pip install .[bench]")

from apts_mpi.comm.clock import PHASES
from benchmarks.harness.phase_runs import points, runs
from benchmarks.harness.results import Row
from benchmarks.harness.sections import Section, Table
from benchmarks.scaling.series import Network, Series, networks

SAMPLES = 60_000
SETUP = {
    **{"parameters": 118_282, "host": "node", "cores": 2, "threads": 1, "device": "cpu"},
    **{"date": "2026-01-02", "commit": "abc1234", "versions": {"python": "3.11", "torch": "2.13"}},
}


def scaling(
    kind: str = "strong",
    method: str = "apts",
    ranks: int = 1,
    *,
    spent: dict[str, float],
    iterations: int = 10,
    evaluations: float = 6000.0,
    batch: int = 250,
    repetitions: int = 3,
    noise: float = 0.0,
    hidden: str = "128,128",
    **changes: Any,
) -> list[Row]:
    """Rows of a configuration whose ranks all spend the same seconds a phase and iteration.

    Args:
        evaluations: sample gradients of all ranks, all iterations.
    """
    chance = np.random.default_rng([ranks, len(method)])
    rows = []
    for repetition in range(repetitions):
        for rank in range(ranks):
            for phase in PHASES:
                each = spent.get(phase, 0.0) * (1 + noise * chance.random(iterations))
                settings = {
                    **{"benchmark": kind, "method": method, "data": "mnist", "hidden": hidden},
                    **{"ranks": ranks, "batch": batch, "repetition": repetition},
                    **{"rank": rank, "phase": phase},
                }
                sent = 4 * 118_282 * iterations if phase == "allreduce" else 0
                values = {
                    **{"run": f"{kind}{method}{ranks}{batch}{repetition}"},
                    **{"seconds": [float(f"{s:.6g}") for s in each], "cpu_seconds": 5.0},
                    **{"evaluations": evaluations, "samples": SAMPLES, "bytes": sent},
                    **{"messages": iterations, "oversubscribed": False, "binding": [rank]},
                    "local_steps": None,
                }
                rows.append({"settings": settings, **values, **SETUP, **changes})
    return rows


def micro(latency: float = 1e-6, bandwidth: float = 1e9, slower: float = 1.0) -> list[Row]:
    """Messages that follow Hockney's model to the letter, those of our layer slower by a factor."""
    return [
        {
            "settings": {
                **{"benchmark": "micro", "operation": operation, "through": through},
                **{"bytes": nbytes, "ranks": 2, "hosts": 1, "link": "none", "mpi": mpi},
            },
            "seconds": [(latency + nbytes / bandwidth) * factor * scale] * 5,
            **SETUP,
        }
        for operation in ("allreduce", "broadcast")
        for mpi, scale in (("defaults", 1.0), ("tuned", 0.5))
        for through, factor in (("mpi4py", 1.0), ("comm-untimed", slower), ("comm", 1.3))
        for nbytes in (4**k for k in range(1, 12))
    ]


def network(seconds: dict[str, float | None], link: str = "1gbit", **settings: Any) -> list[Row]:
    """A run a method that reaches the target after so many seconds."""
    rows = []
    for method, reached in seconds.items():
        end = reached or 10.0
        curve = {
            "seconds": [end * k / 8 for k in range(1, 9)],
            "epoch": [k / 2 for k in range(1, 9)],
            "test_accuracy": [0.972 - 0.2 / k**2 for k in range(1, 9)],
            "bytes": [1e6 * k for k in range(1, 9)],
        }
        rows.append(
            {
                "settings": {
                    **{"benchmark": "network", "hosts": 2, "link": link, "method": method},
                    **{"hidden": "128,128", "batch": 250, "lr": None, "repetition": 0, **settings},
                },
                **{"target": 0.97, "seconds_to_target": reached, "epochs_to_target": 4.0},
                **{"bytes_to_target": 8e6, "seconds_per_epoch": end / 4, "curve": curve},
                **{"messages_per_epoch": 6.0, "bytes_per_epoch": 2e6, **SETUP},
            }
        )
    return rows


def prediction(of: Row, measured: float, predicted: float) -> Row:
    """A point of the cost model's proof."""
    settings = {"benchmark": "project", "kind": "prediction", "of": of}
    return {"settings": settings, "measured": measured, "predicted": predicted}


def projection(method: str, efficiencies: dict[int, float], network: str = "1 Gbit/s") -> list[Row]:
    """A method's projection by ranks."""
    return [
        {
            "settings": {
                **{"benchmark": "project", "kind": "projection", "method": method},
                **{"parameters": 10**8, "network": network, "ranks": ranks},
            },
            **{"seconds_per_epoch": 100 / ranks / efficiency, "efficiency": efficiency},
        }
        for ranks, efficiency in efficiencies.items()
    ]


def compared(
    optimizer: str, accuracy: float | None, messages: int, seed: int = 0, **settings: Any
) -> Row:
    """A run of ``compare``."""
    known = {"data": "mnist", "hidden": "128,128", "ranks": 2, "optimizer": optimizer}
    row: Row = {"settings": {**known, "arguments": [], "seed": seed, **settings}}
    if accuracy is None:
        return {**row, "test_accuracy": None, "diverged": "not finite"}
    curves = {
        "epoch": [float(k) for k in range(1, 11)],
        "test_accuracy": [accuracy - 0.1 / k + 0.01 for k in range(1, 11)],
        "messages": [messages * k / 10 for k in range(1, 11)],
    }
    sent = {"vector_allreduces": messages, "bytes_allreduced": 473_128 * messages}
    return {**row, "test_accuracy": accuracy, "curves": curves, **sent, **SETUP}


def everything() -> list[Row]:
    """Rows of every kind, as a real set of results has them."""
    rows: list[Row] = []
    methods = {"apts": 0.02, "adam": 0.15, "sgd": 0.7}
    for kind in ("strong", "weak"):
        for name, talk in methods.items():
            for ranks in (1, 2, 4):
                share = ranks if kind == "strong" else 1
                more = 0.0 if ranks == 1 else 0.1 * talk
                spent = {
                    **{"gradient": 0.1 * (1 + 0.03 * (ranks > 1)) / share, "data": 0.004 / share},
                    **{"algebra": 0.01 / share, "allreduce": more, "other": 0.001},
                    **{"wait": more / 3, "evaluation": 0.01},
                }
                work = 6000.0 * (1 if kind == "strong" else ranks)
                rows += scaling(
                    kind,
                    name,
                    ranks,
                    spent=spent,
                    evaluations=work,
                    noise=0.2,
                    oversubscribed=ranks > 2,
                )
    for link, factor in (("100mbit", 6.0), ("1gbit", 1.5), ("unlimited", 1.0)):
        rows += network({"apts": 3.0, "apts-auto": 2.8, "diloco": 4.0, "adam": None}, link)
        rows += network({"ddp-adam": 3.4 * factor}, link, lr=1e-3)
    of = {k: v for k, v in rows[0]["settings"].items() if k not in ("rank", "phase", "repetition")}
    rows += [prediction({**of, "ranks": n}, 0.12 / n, 0.125 / n) for n in (1, 2)]
    reach = {2**k: 1 / (1 + 0.002 * 2**k) for k in range(1, 13)}
    rows += projection("apts", reach) + projection("adam", {n: e**3 for n, e in reach.items()})
    rows += [compared("apts", 0.981, 58, seed) for seed in range(2)]
    rows += [compared("adam", 0.977, 1200, seed, ranks=1, lr=1e-3) for seed in range(2)]
    rows += [compared("diloco", 0.979, 60, lr=1e-3), compared("sgd", None, 0, ranks=1, lr=9.0)]
    return rows + micro()


def written(path: Path, rows: Iterable[Row]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def one_network(rows: list[Row], kind: str = "strong") -> Network:
    made, missing = runs(rows)
    assert missing == 0
    (found,) = networks(points(made), kind)
    return found


def one_series(rows: list[Row], kind: str = "strong") -> Series:
    (series,) = one_network(rows, kind).series
    return series


def told(section: Section | None) -> str:
    """All findings of a section, a line each."""
    assert section is not None
    return "\n".join(f"{'WARNING ' if one.warning else ''}{one.text}" for one in section.findings)


def tables_of(section: Section | None) -> list[Table]:
    assert section is not None
    return [part for one in section.walk() for part in one.parts if isinstance(part, Table)]


def cell(table: Table, row: int, heading: str) -> str:
    return str(table.rows[row][list(table.header).index(heading)])


def strong_pair(method: str = "apts", **changes: Any) -> list[Row]:
    """1 s and 0.625 s an iteration of the same work: efficiency 0.8; a tenth is communication."""
    one = {"gradient": 0.9, "algebra": 0.05, "data": 0.05, "evaluation": 7.0}
    two = {"gradient": 0.5, "algebra": 0.025, "data": 0.025, "wait": 0.0125, "allreduce": 0.0625}
    return scaling(method=method, spent=one) + scaling(
        method=method, ranks=2, spent=two, **{"batch": 125, **changes}
    )
