"""The runs of ``strong`` and ``weak``: made, their rows written, their tables told."""

from __future__ import annotations

import argparse
import json
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from apts_mpi.clock import PHASES
from apts_mpi.data import load_source, write_shards
from apts_mpi.data.sources import Source
from apts_mpi.errors import InputError
from benchmarks.compare.jobs import ENDED
from benchmarks.launch import ROOT, Progress, Results, Row, RunFailed, mpirun, origin, whole_numbers
from benchmarks.options import job_folder, names
from benchmarks.published.command import find_mnist
from benchmarks.scaling import report as scaling_report
from benchmarks.scaling.plan import SPLIT, Run, jobs, positive, ranks_of, read_plan


def add_arguments(parser: argparse.ArgumentParser, kind: str) -> None:
    """Options of both benchmarks; kind is "strong" or "weak"."""
    parser.add_argument(
        "--config",
        type=Path,
        default=ROOT / "benchmarks" / f"{kind}.toml",
        metavar="FILE",
        help=f"TOML of methods, networks, ranks (default benchmarks/{kind}.toml)",
    )
    parser.add_argument(
        "--ranks",
        type=whole_numbers,
        help="numbers of ranks (default those of the file; in a SLURM allocation powers of two)",
    )
    parser.add_argument("--methods", type=names, help="run these of the file (default all)")
    parser.add_argument("--networks", help="hidden layers in place of the file's: '128,128 1024'")
    parser.add_argument(
        "--repetitions", type=positive, metavar="K", help="of every run (default the file's)"
    )
    parser.add_argument(
        "--launch",
        metavar="COMMAND",
        help="starts the ranks (default 'mpirun -n {ranks}'; with SLURM's own 'srun -n {ranks}')",
    )
    parser.add_argument(
        "--timeout", type=float, default=600.0, metavar="S", help="seconds a run (default 600)"
    )
    parser.add_argument(
        "--mnist",
        type=Path,
        metavar="DIR",
        help="folder of the four IDX files (default $APTS_MPI_TEST_DATA/mnist, or "
        "shared/data/mnist beside the checkout)",
    )
    parser.add_argument(
        "--work", type=Path, metavar="DIR", help="keeps the shards (default a temporary folder)"
    )
    parser.add_argument("--fresh", action="store_true", help="forget all runs that are done")
    parser.add_argument(
        "--report-only", action="store_true", help="run nothing, write what the runs so far tell"
    )


def run(parsed: argparse.Namespace, kind: str) -> int:
    """Make the runs that are missing, and write the tables; returns the exit status."""
    plan = read_plan(parsed.config, strong=kind == "strong")
    changes: Row = {"ranks": ranks_of(plan, parsed.ranks)}
    if parsed.networks:
        changes["networks"] = tuple(parsed.networks.split())
    if parsed.repetitions:
        changes["repetitions"] = parsed.repetitions
    plan = type(plan)(**{**vars(plan), **changes})
    unknown = set(parsed.methods or ()) - {method.name for method in plan.methods}
    if unknown:
        raise InputError(f"--methods {','.join(sorted(unknown))}: none of {parsed.config}")
    out = Path(parsed.out)
    results = Results(out / f"{kind}.jsonl", fresh=parsed.fresh and not parsed.report_only)
    failed = 0
    if not parsed.report_only:
        todo = [
            batch
            for runs in jobs(plan, kind, methods=parsed.methods)
            if (batch := [one for one in runs if not is_done(one, results)])
        ]
        with job_folder(parsed.work) as folder:
            shards = cut(plan.data, folder, parsed.mnist)
            failed = make(todo, shards, folder, results, parsed.timeout, parsed.launch)
    scaling_report.write(out / f"{kind}.md", results.rows(), kind)
    return 1 if failed else 0


def is_done(run: Run, results: Results) -> bool:
    """Whether the results have a run's last row, which is written when the others are there."""
    if run.settings["benchmark"] == SPLIT:
        return results.get(run.settings) is not None
    return results.get({**run.settings, "rank": 0, "phase": PHASES[-1]}) is not None


def cut(data: str, folder: Path, mnist: Path | None) -> Path:
    """Shards of the data, made where they are not there; one, of which every rank reads a part.

    Where MNIST is not found and was not asked for by name, random samples of its shape stand in:
    they take the same time.
    """
    source: Source | None = None
    if data == "mnist":
        try:
            source = load_source("mnist", path=find_mnist(mnist))
        except InputError as error:
            if mnist is not None:
                raise
            print(f"{error}; timing random samples of its shape instead", flush=True)
            source = like_mnist()
    else:
        source = load_source(data)
    path = folder / f"{source.name}-1"
    if not path.exists():
        write_shards(source, path, shards=1, exist_ok=True)
    return path


def like_mnist() -> Source:
    """Random samples in the shape of MNIST."""
    chance = np.random.default_rng(0)
    x = chance.integers(0, 256, (70_000, 28, 28), dtype=np.uint8)
    y = chance.integers(0, 10, 70_000)
    classes = tuple(str(digit) for digit in range(10))
    return Source("mnist-shaped", x[:60_000], y[:60_000], x[60_000:], y[60_000:], classes)


def make(
    todo: Sequence[list[Run]],
    shards: Path,
    folder: Path,
    results: Results,
    timeout: float,
    launch: str | None,
) -> int:
    """Make runs, an MPI job for every list of them, rows written as each ends; returns failures."""
    progress = Progress(sum(map(len, todo)))
    failed = 0
    for number, runs in enumerate(todo):
        with tempfile.TemporaryDirectory(dir=folder) as name:
            place = Path(name)
            pieces = [
                {
                    "arguments": [
                        *("--data", str(shards), "--out", str(place / f"out{i}")),
                        *one.arguments,
                    ],
                    "warm_up": one.warm_up,
                    "alternate": one.settings["benchmark"] == SPLIT,
                    "folder": str(place / f"run{i}"),
                }
                for i, one in enumerate(runs)
            ]
            (place / "runs.json").write_text(json.dumps(pieces), encoding="utf-8")
            ended = 0

            def heard(line: str, runs: list[Run] = runs, place: Path = place) -> bool:
                nonlocal ended
                found = ENDED.search(line)
                if found is None or int(found[1]) != ended:
                    return False
                told = record(runs[ended], place / f"run{ended}", results)
                progress.say(f"{_words(runs[ended])}: {told}")
                ended += 1
                return True

            worker = ["-m", "benchmarks.scaling.worker", str(place / "runs.json")]
            try:
                mpirun(
                    runs[0].settings["ranks"],
                    worker,
                    timeout=timeout,
                    heard=heard,
                    launch=launch,
                )
            except RunFailed as error:
                failed += len(runs) - ended
                print(f"job {number + 1}: {error}", flush=True)
    return failed


def record(run: Run, folder: Path, results: Results) -> str:
    """Add the rows of a run from its ranks' files; returns a few words on it."""
    made = origin()
    ranks = range(run.settings["ranks"])
    measured = [
        json.loads((folder / f"rank-{rank}.json").read_text(encoding="utf-8")) for rank in ranks
    ]
    slowest = [max(each) for each in zip(*(m["walls"] for m in measured), strict=True)]
    if run.settings["benchmark"] == SPLIT:
        own = {k: v for k, v in measured[0].items() if k not in ("phases", "walls")}
        # The clock was off in the second iteration, and in every other one from there.
        off, on = (slowest[(run.warm_up + odd) % 2 :: 2] for odd in (1, 0))
        results.add(run.settings, {"on": on, "off": off, **own, **made})
        return f"the clock costs {100 * scaling_report.overhead(on, off):.2f} %"
    name = uuid.uuid4().hex[:12]
    for rank in reversed(ranks):  # rank 0's last
        own = dict(measured[rank])
        phases = own.pop("phases")
        del own["walls"]
        for phase in PHASES:
            seconds = [float(f"{value:.4g}") for value in phases[phase]]
            results.add(
                {**run.settings, "rank": rank, "phase": phase},
                {"run": name, "seconds": seconds, **own, **made},
            )
    return f"{1e3 * float(np.median(slowest)):.1f} ms an outer iteration"


def _words(run: Run) -> str:
    s = run.settings
    return f"{s['method']}, {s['hidden']}, N = {s['ranks']}, batch {s['batch']}"
