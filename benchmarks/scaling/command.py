"""The commands ``strong`` and ``weak``: runs made, their rows written."""

from __future__ import annotations

import dataclasses
import os
import uuid
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from apts_mpi.comm.clock import PHASES
from apts_mpi.errors import InputError
from benchmarks.harness.command import Command, Namespace, Rounds
from benchmarks.harness.data import cut
from benchmarks.harness.jobs import ENVIRONMENT, ROOT, mpirun
from benchmarks.harness.measure import Job, Outcome, Piece, Session
from benchmarks.harness.options import (
    MNIST,
    REPETITIONS,
    config,
    names,
    numbers,
    option,
    timeout,
)
from benchmarks.harness.results import Row, origin
from benchmarks.scaling.findings import overhead
from benchmarks.scaling.plan import SPLIT, Plan, Run, jobs, ranks_of, read_plan
from benchmarks.scaling.section import command_section

WORK = {
    "strong": "the same work on more and more ranks.\n\n"
    "Fixed data and work: N ranks divide the local steps or the minibatch of one.",
    "weak": "the same work per rank on more and more ranks.\n\n"
    "Fixed work per rank: N ranks do N times the work of one between two messages.",
}


def command(kind: str) -> Command:
    """The command; kind is "strong" or "weak"."""
    return Command(
        name=kind,
        about=f"""Communication against compute, {WORK[kind]}
Every run is split into phases on every rank. Writes {kind}.jsonl, a row for every
rank, repetition and phase, and {kind}.md; runs that are in {kind}.jsonl are not run again.
""",
        options=(
            config(ROOT / "benchmarks" / f"{kind}.toml", "TOML of methods, networks, ranks"),
            option(
                "--ranks",
                type=numbers(0),
                help="numbers of ranks (default those of the file; in a SLURM allocation powers of "
                "two)",
            ),
            option("--methods", type=names, help="run these of the file (default all)"),
            option("--networks", help="hidden layers in place of the file's: '128,128 1024'"),
            REPETITIONS,
            option(
                "--launch",
                metavar="COMMAND",
                help="starts the ranks (default 'mpirun -n {ranks}'; with SLURM's own 'srun -n "
                "{ranks}')",
            ),
            timeout(600.0),
            MNIST,
            option(
                "--work",
                type=Path,
                metavar="DIR",
                help="keeps the shards; all nodes must see it (default a temporary folder; in an "
                "allocation of several nodes a folder in --out)",
            ),
        ),
        plan=partial(plan, kind),
        section=partial(command_section, kind),
        libraries=("scipy",),
    )


def asked(kind: str, options: Namespace) -> Plan:
    """The file's plan with the command line's changes.

    Raises:
        InputError: it cannot be used, or does not have what is asked for.
    """
    found = read_plan(options.config, strong=kind == "strong")
    changes: Row = {"ranks": ranks_of(found, options.ranks)}
    if options.networks:
        changes["networks"] = tuple(options.networks.split())
    if options.repetitions:
        changes["repetitions"] = options.repetitions
    unknown = set(options.methods or ()) - {method.name for method in found.methods}
    if unknown:
        raise InputError(f"--methods {','.join(sorted(unknown))}: none of {options.config}")
    return dataclasses.replace(found, **changes)


def plan(kind: str, session: Session) -> Rounds:
    """A job for every repetition and number of ranks; a piece for every run."""
    options = session.options
    found = asked(kind, options)
    name, shards = cut(found.data, session.folder, options.mnist)
    found = dataclasses.replace(found, data=name)
    yield [
        Job(
            task="benchmarks.scaling.task:task",
            ranks=(ranks := runs[0].settings["ranks"]),
            pieces=[piece(run, shards) for run in runs],
            start=partial(mpirun, ranks, launch=options.launch),
        )
        for runs in jobs(found, kind, methods=options.methods, how=how(options.launch))
    ]


def how(launch: str | None) -> str:
    """What of the way that ranks are started decides times: launcher, MPI's settings, cores."""
    settings = sorted(
        f"{name}={value}"
        for name, value in {**ENVIRONMENT, **os.environ}.items()
        if name.startswith(("OMPI_MCA_", "UCX_"))
    )
    return " ".join([launch or "mpirun", str(origin()["cores"]), *settings])


def piece(run: Run, shards: Path) -> Piece:
    """A run, with a row for every rank and phase, or a single one where the clock is tried."""
    s = run.settings
    split = s["benchmark"] == SPLIT
    rows = [s]
    if not split:
        rows = [{**s, "rank": rank, "phase": p} for rank in range(s["ranks"]) for p in PHASES]
    return Piece(
        settings=rows,
        words=f"{s['method']}, {s['hidden']}, N = {s['ranks']}, batch {s['batch']}",
        arguments={
            "line": ["--data", str(shards), *run.arguments],
            "warm_up": run.warm_up,
            "alternate": split,
        },
        keep=partial(clock_rows, run.warm_up) if split else phase_rows,
    )


def _slowest(measured: Sequence[Row]) -> list[float | None]:
    """Seconds of every outer iteration on its slowest rank; None where one was not timed."""
    columns = zip(*(values["walls"] for values in measured), strict=True)
    return [None if None in each else max(each) for each in columns]


def clock_rows(warm_up: int, outcome: Outcome) -> tuple[list[Row], str]:
    """The row of a run with the clock on and off in turn, by pairs of neighbours."""
    first = outcome.values[0]
    own = {name: value for name, value in first.items() if name not in ("phases", "walls")}
    # On in odd iterations, counted from 1. The last one's time has the run's end in it.
    turns = list(enumerate(_slowest(outcome.values), start=warm_up + 1))[:-1]
    pairs = [
        (one, two) if number % 2 else (two, one)
        for (number, one), (_, two) in zip(turns[::2], turns[1::2], strict=False)
        if one is not None and two is not None
    ]
    on, off = (list(column) for column in zip(*pairs, strict=True))
    cost = overhead(on, off).text("{:.2f}".format)
    return [{"on": on, "off": off, **own}], f"the clock costs {cost} %"


def phase_rows(outcome: Outcome) -> tuple[list[Row], str]:
    """A row for every rank and phase, in this order."""
    name, rows = uuid.uuid4().hex[:12], []
    for values in outcome.values:
        own = {key: value for key, value in values.items() if key not in ("phases", "walls")}
        for phase in PHASES:
            seconds = [float(f"{value:.4g}") for value in values["phases"][phase]]
            rows.append({"run": name, "seconds": seconds, **own})
    known = [value for value in _slowest(outcome.values) if value is not None]
    return rows, f"{1e3 * float(np.median(known)):.1f} ms per outer iteration"


STRONG, WEAK = command("strong"), command("weak")
