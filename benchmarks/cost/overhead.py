"""What the method adds to the evaluations it makes: time of an iteration, and memory.

An outer iteration against a bare loop of the same evaluations of loss and gradient, without any
optimizer, in turns; torch's Adam over the same loop beside it. Random data, one thread per rank:
fully connected networks at batch 250, and iterations of few local steps of a ResNet-20 at 128
images and a Transformer of 10 million parameters at 8,192 tokens. Writes cost.md and cost.jsonl;
what is in cost.jsonl is not measured again.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks.cost.cases import COST, verdict
from benchmarks.harness import tables
from benchmarks.harness.command import Command, Namespace, Rounds
from benchmarks.harness.measure import Job, Outcome, Piece, Session
from benchmarks.harness.options import number, option, several, some_of, timeout
from benchmarks.harness.results import Row, in_order
from benchmarks.harness.sections import Part, Section, Table, bullets

if TYPE_CHECKING:
    from apts_mpi.comm.communicator import Comm

SOLVERS = ("spectral", "scaled", "sr1", "first-order")
METHODS = (*SOLVERS, "adam")
FAST = [name for name, case in COST.items() if case.steps is None]  # others: the default alone
ELASTIC = 2.0  # percent
VECTORS = 6.0  # besides parameters and gradient; L-SR1 two more per pair
TITLES = {
    "spectral": "default (spectral)",
    "scaled": "scaled",
    "sr1": "L-SR1",
    "first-order": "first order",
    "adam": "torch's Adam, same loop",
}
HEADER = [
    *("network", "method", "N", "gradients + losses", "bare, ms", "with, ms"),
    *("added, % of time", "added, % of processor", "% of operations", "vectors", "at most"),
]


def plan(session: Session) -> Rounds:
    """A job for every number of ranks; a piece for every network and local solver."""
    yield [
        Job(
            task="benchmarks.cost.overhead:task",
            ranks=ranks,
            pieces=[
                _piece(ranks, network, solver, session.options.repetitions)
                for network in session.options.networks
                for solver in (SOLVERS if network in FAST else SOLVERS[:1])
            ],
        )
        for ranks in session.options.ranks
    ]


def _piece(ranks: int, network: str, solver: str, repetitions: int | None) -> Piece:
    # Adam's loop is measured with each solver's, and kept from the default's.
    methods = [solver, "adam"] if solver == SOLVERS[0] else [solver]

    def keep(outcome: Outcome) -> tuple[list[Row], str]:
        rows = outcome.values[0]
        return [rows[name] for name in methods], f"{rows[solver]['overhead'][1]:+.1f} %"

    times = repetitions or COST[network].repetitions
    return Piece(
        settings=[settings(ranks, network, method) for method in methods],
        words=f"N = {ranks}, {network}, {solver}",
        arguments={"network": network, "solver": solver, "repetitions": times},
        keep=keep,
    )


def settings(ranks: int, network: str, method: str) -> Row:
    """What a row is about."""
    return dict(ranks=ranks, network=network, method=method)


def task(comm: Comm, folder: Path, network: str, solver: str, repetitions: int) -> dict[str, Row]:
    """The rows of a network by method, the solver and Adam over its loop; rank 0's times."""
    from apts_mpi.training.provenance import versions
    from benchmarks.cost.contest import added, middle, of_iterations, recorded
    from benchmarks.cost.memory import PeakVectors

    load, contest = os.getloadavg()[0], recorded(COST[network], solver, comm)
    with PeakVectors(contest.own.n) as peak:
        contest.method.iterate(*map(peak.unseen, contest.draws))
    operations = contest.operations()
    turns, gradients, forwards = [], [], []
    for turn in contest.turns(repetitions):
        turns.append(turn)
        gradients.append(sum(with_gradient for _, with_gradient in contest.calls))
        forwards.append(len(contest.calls) - gradients[-1])
    common = {
        "parameters": contest.own.n,
        "local_steps": contest.config.local_steps,
        "memory": contest.config.memory,
        "gradients": median(gradients),
        "forwards": median(forwards),
        "repetitions": repetitions,
        "seconds_bare": middle(turns, "bare"),
        "threads_per_rank": 1,
        "elastic": of_iterations(turns, "keep"),
        "load": max(load, os.getloadavg()[0]),
        "versions": versions(),
    }

    def row(way: str, held: int, most: int | None, operations: float) -> Row:
        vector = 4 * contest.own.n
        return {
            **common,
            "operations": operations,
            "seconds": middle(turns, way),
            "overhead": added(turns, way),
            "overhead_processor": added(turns, way, clock=1),
            "held": held / vector,
            "peak": None if most is None else most / vector,
        }

    most = contest.held + peak.most
    return {
        solver: row("own", contest.held, most, operations),
        "adam": row("adam", contest.adam_held, None, 0.0),
    }


def vectors_allowed(row: Row) -> float:
    """What a method may hold besides parameters and gradient, in vectors."""
    return VECTORS + (2.0 * row["memory"] if row["settings"]["method"] == "sr1" else 0.0)


def verdicts(rows: Sequence[Row]) -> list[str]:
    """A sentence per goal: time of the default on one rank, by the processor's; memory of all."""
    found = []
    for row in rows:
        method, network = row["settings"]["method"], row["settings"]["network"]
        name = f"{TITLES[method]}, {network}"
        if row["settings"]["ranks"] == 1 and method == SOLVERS[0]:
            added = row["overhead_processor"][1]
            found.append(
                verdict(name, added, "% of processor time added", COST[network].goal, " %")
            )
        if row["settings"]["ranks"] == 1 and method != "adam":
            held, allowed = round(row["held"], 2), vectors_allowed(row)
            found.append(verdict(name, held, "vectors held", allowed))
            if "elastic" in row:  # not in older rows
                what = "% of an iteration's time by --elastic"
                found.append(verdict(name, row["elastic"][1], what, ELASTIC, " %"))
    return found


def section(rows: list[Row], options: Namespace) -> Section:
    """What the rows say."""
    rows = in_order(rows, network=COST, ranks=None, method=METHODS)
    load = max(row["load"] for row in rows)
    cores = min(row["cores"] for row in rows)
    parts: list[Part] = [
        "An outer iteration against a bare loop that makes the same evaluations of loss and "
        "gradient on the same minibatches through the same kind of network, without any optimizer; "
        "in turns within one process, random data, one thread per rank; fully connected: "
        f"batch 250, ResNet: 128 images, {COST['resnet-20'].steps} local steps, Transformer: 8,192 "
        f"tokens, {COST['transformer-10M'].steps} local steps. Added: median [quartiles] of the "
        "ratio less one; of the processor's time other load disturbs less; operations: of matrix "
        "products and convolutions, as torch counts them. "
        "With more than one rank the messages, and waiting for them, are included, and the "
        "processor's time says nothing. Adam: one step per gradient. Vectors: memory beyond "
        "the network's own two (parameters, gradient), in their length: held between iterations, "
        "and at most within one, outside the network's evaluations. By --elastic: its copy of what "
        "all ranks have alike, median, of the method's own iteration; it sends nothing.",
        Table("", HEADER, list(map(_line, rows)), text=2),
        bullets(verdicts(rows)),
        f"Repetitions: {', '.join(sorted({str(row['repetitions']) for row in rows}))}. Load of the "
        f"machine while measuring: up to {load:.1f} on {cores} cores"
        + (", **so that times are disturbed.**" if load > cores else "."),
        tables.foot(rows, "cost --ranks 1,2"),
    ]
    return Section("What the method adds to the evaluations it makes", parts)


def _line(row: Row) -> list[Any]:
    s = row["settings"]
    return [
        *(s["network"], TITLES[s["method"]], s["ranks"]),
        f"{row['gradients']:g} + {row['forwards']:g}",
        *(f"{1000 * row[name]:.1f}" for name in ("seconds_bare", "seconds")),
        tables.quartiles(row["overhead"]),
        tables.quartiles(row["overhead_processor"]) if s["ranks"] == 1 else "-",
        f"{row['operations']:.1f}",
        f"{row['held']:.1f}",
        "-" if row["peak"] is None else f"{row['peak']:.1f}",
    ]


COMMAND = Command(
    name="cost",
    options=(
        several("--ranks", (1,)),
        option("--networks", type=some_of(COST), default=(*COST,), help="(default all)"),
        option(
            "--repetitions",
            type=number(int, 2, 10**4),
            metavar="N",
            help="of each (default 60, large networks fewer)",
        ),
        timeout(1800.0, "seconds for each"),
    ),
    plan=plan,
    section=section,
)
