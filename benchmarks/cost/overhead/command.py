"""What the method adds to the evaluations it makes: time of an iteration, and memory.

An outer iteration against a bare loop of the same evaluations of loss and gradient, without any
optimizer, in turns; torch's Adam over the same loop beside it. Random data, batch 250, one thread a
rank. Writes cost.md and cost.jsonl; what is in cost.jsonl is not measured again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import apts_mpi
from apts_mpi.errors import InputError
from benchmarks.cost.overhead.cases import METHODS, NETWORKS, SOLVERS
from benchmarks.cost.overhead.report import report
from benchmarks.harness.jobs import RunFailed, mpirun
from benchmarks.harness.options import names, whole_numbers
from benchmarks.harness.progress import Progress
from benchmarks.harness.results import Results, Row, origin


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument(
        "--ranks", type=whole_numbers, default=(1,), help="numbers of ranks, like 1,2 (default 1)"
    )
    parser.add_argument(
        "--networks", type=names, default=tuple(NETWORKS), help="of these widths (default both)"
    )
    parser.add_argument(
        "--repetitions", type=int, metavar="N", help="of each (default 60, large network 15)"
    )
    parser.add_argument(
        "--timeout", type=float, default=1800.0, metavar="S", help="seconds each (default 1800)"
    )
    parser.add_argument("--fresh", action="store_true", help="measure again what is done")


def run(parsed: argparse.Namespace) -> int:
    """Measure what is missing, write all that is there."""
    repetitions = parsed.repetitions
    if (
        min(parsed.ranks) < 1
        or not 0 < parsed.timeout < 1e6
        or not 2 <= (repetitions or 2) <= 10**4
    ):
        raise InputError("--ranks and --timeout must be positive, --repetitions 2 to 10000")
    for name in parsed.networks:
        if name not in NETWORKS:
            raise InputError(f"--networks {name}: is none of {', '.join(NETWORKS)}")
    out = Path(parsed.out)
    results = Results(out / "cost.jsonl", fresh=False)
    todo = [
        (ranks, network, solver)
        for ranks in sorted(parsed.ranks, reverse=True)  # mpirun before MPI starts in here
        for network in parsed.networks
        for solver in SOLVERS
        if parsed.fresh or results.get(settings(ranks, network, solver)) is None
    ]
    progress, failures = Progress(len(todo)), 0
    for ranks, network, solver in todo:
        told = f"N = {ranks}, {network}, {solver}"
        line = [network, solver, str(repetitions or NETWORKS[network].repetitions)]
        try:
            rows = _measure(ranks, line, parsed.timeout)
        except RunFailed as error:
            failures += 1
            progress.say(f"{told}: failed: {error}")
            continue
        for method, row in rows.items():
            if method == solver or solver == SOLVERS[0]:  # Adam over the default's loop
                wanted = settings(ranks, network, method)
                results.forget([wanted])
                results.add(wanted, {**row, **origin()})
        progress.say(f"{told}: {rows[solver]['overhead'][1]:+.1f} %")
    every = sorted({1, 2, *parsed.ranks})
    report(out, [results.get(s) for s in _everything(every)])
    return 1 if failures else 0


def settings(ranks: int, network: str, method: str) -> Row:
    """What a row is about."""
    version = apts_mpi.__version__
    return {"apts_mpi": version, "ranks": ranks, "network": network, "method": method}


def _everything(ranks: Sequence[int]) -> list[Row]:
    return [settings(n, name, method) for name in NETWORKS for n in ranks for method in METHODS]


def _measure(ranks: int, line: list[str], timeout: float) -> dict[str, Row]:
    """Rows by method of a network and a solver; on one rank in this process."""
    if ranks == 1:
        from benchmarks.cost.overhead.worker import measured  # starts MPI

        return measured(*line)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.json"
        mpirun(ranks, ["-m", "benchmarks.cost.overhead.worker", *line, str(path)], timeout=timeout)
        rows: dict[str, Row] = json.loads(path.read_text(encoding="utf-8"))
        return rows
