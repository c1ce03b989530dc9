"""Against the authors' curves: MNIST, 6 minibatches per pass, 5 percent overlap, N = 2, 4, 6.

The set-up of arXiv 2502.05133 on real MPI ranks, first order and L-SR1, 10 of their epochs = 10
passes = 60 outer iterations. Needs the four MNIST files. Writes published.md, published.jsonl and
published.png; runs that are in published.jsonl are not run again.
"""

from __future__ import annotations

import math
from pathlib import Path

from apts_mpi.data import read_info
from benchmarks.harness.command import Command, Namespace, Rounds
from benchmarks.harness.data import Shards
from benchmarks.harness.measure import Job, Outcome, Piece, Session
from benchmarks.harness.options import MNIST, option, several, timeout, whole
from benchmarks.harness.results import KEPT, Row, curve, metrics, summary
from benchmarks.harness.worker import PROGRAM
from benchmarks.quality.published.authors import (
    EXTRACT,
    MINIBATCHES,
    ORDERS,
    OVERLAP,
    read_reference,
)
from benchmarks.quality.published.report import HIDDEN, draw, section


def check(options: Namespace) -> None:
    """The published curves must be readable."""
    read_reference(options.reference)


def plan(session: Session) -> Rounds:
    """A job per number of ranks."""
    shards, jobs = Shards(session.folder, mnist=session.options.mnist), []
    for ranks in session.options.ranks:
        data, samples = shards.path("mnist", ranks), 0
        if session.missing([_job(ranks, data, samples, session.options)]):
            shards.make("mnist", ranks)
            samples = read_info(data).splits["train"].total
        jobs.append(_job(ranks, data, samples, session.options))
    yield jobs


def _job(ranks: int, data: Path, samples: int, options: Namespace) -> Job:
    pieces = [
        _piece(ranks, solver, seed, options.iterations, data, samples)
        for solver in ORDERS
        for seed in options.seeds
    ]
    return Job(task=PROGRAM, ranks=ranks, pieces=pieces)


def _piece(ranks: int, solver: str, seed: int, iterations: int, data: Path, samples: int) -> Piece:
    settings = dict(
        **{"ranks": ranks, "local_solver": solver, "seed": seed, "iterations": iterations},
        **{"minibatches": MINIBATCHES, "overlap": OVERLAP},
    )
    command = _command(settings, samples)

    def keep(outcome: Outcome) -> tuple[list[Row], str]:
        rows = metrics(outcome.folder)
        curves = {name: curve(rows, name) for name in ("epoch", "loss", "test_accuracy")}
        figures = summary(outcome.folder, KEPT)
        words = f"{100 * figures['test_accuracy']:.1f} %"
        return [{"command": " ".join(command), **figures, "curves": curves}], words

    return Piece(
        settings=[settings],
        words=f"N = {ranks}, {solver}, seed {seed}",
        arguments={"lines": [[*command, "--data", str(data), "--out", "{folder}/run"]]},
        keep=keep,
    )


def _command(settings: Row, samples: int) -> list[str]:
    """The program's arguments for a run on so many training samples, but for --data and --out."""
    batch = math.ceil(samples / settings["ranks"] / MINIBATCHES)
    return [
        *("train", "--network", "mlp", "--hidden", HIDDEN, "--device", "cpu"),
        *("--batch", str(batch), "--overlap", str(OVERLAP), "--local-steps", "5"),
        *("--local-solver", settings["local_solver"], "--global-step", "on"),
        *("--iterations", str(settings["iterations"]), "--epochs", "1000000"),
        *("--evaluate-every", "0", "--seed", str(settings["seed"])),
    ]


COMMAND = Command(
    name="published",
    options=(
        MNIST,
        option(
            "--reference",
            type=Path,
            default=EXTRACT,
            metavar="FILE",
            help="CSV of the published curves (default: the extract in benchmarks/reference)",
        ),
        several("--ranks", (2, 4, 6)),
        several("--seeds", (0, 1, 2), "of the initial parameters and minibatches", least=0),
        whole("--iterations", 60, f"outer ones, {MINIBATCHES} per pass", least=MINIBATCHES),
        timeout(1800.0),
    ),
    libraries=("matplotlib",),
    check=check,
    plan=plan,
    section=section,
    draw=draw,
)
