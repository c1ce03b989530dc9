"""Additive correction of 1 to 8 ranks on i.i.d., uneven and label-skewed data.

Real MPI ranks on shards of the embedded digits, full batch, without global step and momentum, so
that the joined correction works alone: first order and L-SR1; join sum, average and adaptive;
consistency on and off. Writes corrections.md, corrections.jsonl and a plot per
local solver.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from apts_mpi.data import load_source, write_shards
from benchmarks.harness.command import Command, Rounds
from benchmarks.harness.measure import Job, Outcome, Piece, Session
from benchmarks.harness.options import real, several, timeout
from benchmarks.harness.results import KEPT, Row, curve, metrics, summary
from benchmarks.harness.worker import PROGRAM
from benchmarks.quality.corrections.report import DATA, JOINS, SOLVERS, command, draw, section


def plan(session: Session) -> Rounds:
    """A job per number of ranks."""
    options = session.options
    jobs = [
        Job(
            task=PROGRAM,
            ranks=ranks,
            pieces=[
                _piece(settings, _shards(session.folder, settings))
                for settings in _settings(ranks, options.seeds, options.work)
            ],
        )
        for ranks in options.ranks
    ]
    digits = load_source("digits")
    for job in session.missing(jobs):
        for piece in job.pieces:
            (settings,) = piece.settings
            path = _shards(session.folder, settings)
            if not path.exists():
                kind, ranks, seed = (settings[name] for name in ("data", "ranks", "seed"))
                write_shards(digits, path, shards=ranks, seed=seed, **_cut(kind, ranks))
    yield jobs


def _shards(folder: Path, settings: Row) -> Path:
    return folder / "-".join(str(settings[name]) for name in ("data", "ranks", "seed"))


def _cut(kind: str, ranks: int) -> dict[str, Any]:
    if kind == "uneven":
        return {"sizes": [i + 1 for i in range(ranks)]}
    return {"dirichlet": 0.1} if kind == "skewed" else {}


def _settings(ranks: int, seeds: Sequence[int], work: float) -> list[Row]:
    """The runs of one number of ranks; on one rank most variants are the same."""
    data = list(DATA) if ranks > 1 else ["i.i.d."]
    joins = JOINS if ranks > 1 else JOINS[1:]
    terms = (True, False) if ranks > 1 else (True,)
    return [
        dict(
            **{"ranks": ranks, "data": kind, "local_solver": solver, "join": join},
            **{"consistency": term, "seed": seed, "work": work},
            momentum=0.0,  # the joined correction of one iteration alone
        )
        for kind, solver, term, join, seed in itertools.product(data, SOLVERS, terms, joins, seeds)
    ]


def _piece(settings: Row, shards: Path) -> Piece:
    shown = [str(v) for k, v in settings.items() if k not in ("work", "momentum")]
    return Piece(
        settings=[settings],
        words=", ".join(shown),
        arguments={"lines": [[*command(settings, str(shards)), "--out", "{folder}/run"]]},
        keep=keep,
    )


def keep(outcome: Outcome) -> tuple[list[Row], str]:
    """The summary's figures, and curves by outer iteration."""
    curves = {name: curve(metrics(outcome.folder), name) for name in ("epoch", "loss")}
    row = {**summary(outcome.folder, KEPT), "curves": curves}
    return [row], f"loss {row['train_loss']:.4f}"


COMMAND = Command(
    name="corrections",
    options=(
        several("--ranks", (1, 2, 4, 8)),
        several("--seeds", (0, 1, 2), "of the shards and the initial parameters", least=0),
        real(
            "--work",
            40.0,
            "of a run: gradient evaluations per sample; a forward one counts a third",
            least=1e-9,
            most=1e6,
        ),
        timeout(60.0),
    ),
    libraries=("matplotlib",),
    plan=plan,
    section=section,
    draw=draw,
)
