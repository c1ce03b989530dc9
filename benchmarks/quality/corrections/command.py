"""Additive correction of 1 to 8 ranks on i.i.d., uneven and label-skewed data.

Real MPI ranks on shards of the embedded digits, full batch, without global step and momentum, so
that the joined correction works alone: first order and L-SR1; join sum, average and adaptive;
consistency on and off. Writes corrections.md, corrections.jsonl and a plot a local solver.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import apts_mpi
from apts_mpi.errors import InputError
from benchmarks.harness import figures
from benchmarks.harness.jobs import RunFailed, mpirun
from benchmarks.harness.options import whole_numbers
from benchmarks.harness.progress import Progress
from benchmarks.harness.results import Results, Row, outcome
from benchmarks.quality.corrections.report import DATA, HIDDEN, JOINS, SOLVERS, plot, write


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument(
        "--ranks",
        type=whole_numbers,
        default=(1, 2, 4, 8),
        help="numbers of ranks (default 1,2,4,8)",
    )
    parser.add_argument(
        "--seeds",
        type=whole_numbers,
        default=(0, 1, 2),
        help="of the split into shards and the initial parameters (default 0,1,2)",
    )
    parser.add_argument(
        "--work",
        type=float,
        default=40.0,
        metavar="X",
        help="of a run: gradient evaluations a sample; a forward one counts a third (default 40)",
    )
    parser.add_argument(
        "--timeout", type=float, default=60.0, metavar="S", help="seconds a run (default 60)"
    )
    parser.add_argument("--fresh", action="store_true", help="forget the runs that are done")


def run(parsed: argparse.Namespace) -> int:
    """Run what is missing, write all."""
    if min(parsed.ranks) < 1 or not 0 < parsed.work < 1e6 or not 0 < parsed.timeout < 1e6:
        raise InputError("--ranks, --work and --timeout must be positive")
    figures.pyplot()
    out = Path(parsed.out)
    results = Results(out / "corrections.jsonl", fresh=parsed.fresh)
    wanted = [
        settings
        for ranks in parsed.ranks
        for settings in _settings(ranks, parsed.seeds, parsed.work)
    ]
    missing = [settings for settings in wanted if results.get(settings) is None]
    print(f"{len(wanted)} runs, {len(wanted) - len(missing)} of them done before", flush=True)
    progress, failures = Progress(len(missing)), 0
    for ranks in parsed.ranks:
        todo = [settings for settings in missing if settings["ranks"] == ranks]
        if todo:
            failures += _run_all(ranks, todo, results, progress, parsed.timeout)
    rows = [row for row in map(results.get, wanted) if row is not None]
    if rows:
        for solver in SOLVERS:
            plot(out / f"corrections_{solver}.png", rows, solver)
        command = " ".join(_command(rows[-1]["settings"], "DIR"))
        write(out / "corrections.md", rows, parsed.work, command)
    return 1 if failures else 0


def _settings(ranks: int, seeds: Sequence[int], work: float) -> list[Row]:
    """The runs of one number of ranks; on one rank most variants are the same."""
    data = list(DATA) if ranks > 1 else ["i.i.d."]
    joins = JOINS if ranks > 1 else JOINS[1:]
    terms = (True, False) if ranks > 1 else (True,)
    return [
        {
            "apts_mpi": apts_mpi.__version__,
            "ranks": ranks,
            "data": kind,
            "local_solver": solver,
            "join": join,
            "consistency": term,
            "seed": seed,
            "work": work,
            "momentum": 0.0,  # the joined correction of one iteration alone
        }
        for kind, solver, term, join, seed in itertools.product(data, SOLVERS, terms, joins, seeds)
    ]


def _run_all(
    ranks: int, todo: list[Row], results: Results, progress: Progress, timeout: float
) -> int:
    """All runs of one number of ranks in one MPI job; returns how many failed."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shards = {(s["data"], s["seed"]): folder / f"{s['data']}-{s['seed']}" for s in todo}
        lines = [
            [
                *("shard", "digits", "--out", str(path), "--shards", str(ranks)),
                *("--seed", str(seed), *_cut(kind, ranks)),
            ]
            for (kind, seed), path in shards.items()
        ]
        first = len(lines)
        for number, settings in enumerate(todo):
            data = shards[settings["data"], settings["seed"]]
            lines.append([*_command(settings, str(data)), "--out", str(folder / f"run{number}")])
        (folder / "lines.json").write_text(json.dumps(lines), encoding="utf-8")
        done = 0

        def heard(line: str) -> None:
            nonlocal done
            word, number, *why = [*line.split(" ", 2), "", ""][:3]
            if word != "ended" or int(number) < first:
                return
            settings = todo[int(number) - first]
            text = ", ".join(
                f"{v}" for k, v in settings.items() if k not in ("apts_mpi", "work", "momentum")
            )
            if why[0]:
                progress.say(f"{text}: failed: {why[0]}")
                return
            row = results.add(settings, outcome(folder / f"run{int(number) - first}"))
            done += 1
            progress.say(f"{text}: loss {row['train_loss']:.4f}")

        worker = ["-m", "benchmarks.harness.worker", str(folder / "lines.json")]
        try:
            mpirun(ranks, worker, timeout=60 + timeout * len(todo), heard=heard)
        except RunFailed as error:
            print(f"benchmarks: {error}", flush=True)
        return len(todo) - done


def _cut(kind: str, ranks: int) -> list[str]:
    sizes = ",".join(str(i + 1) for i in range(ranks))
    return {"i.i.d.": [], "uneven": ["--sizes", sizes], "skewed": ["--dirichlet", "0.1"]}[kind]


def _command(settings: Row, data: str) -> list[str]:
    """The program's arguments for a run, but for its --out."""
    return [
        *("train", "--data", data, "--hidden", HIDDEN, "--device", "cpu"),
        *("--global-step", "off", "--momentum", str(settings["momentum"])),
        *("--threads", "1", "--evaluate-every", "1e6", "--epochs", str(settings["work"])),
        *("--local-solver", settings["local_solver"], "--join", settings["join"]),
        *("--consistency", "on" if settings["consistency"] else "off"),
        *("--seed", str(settings["seed"])),
    ]
