"""The runs of ``strong`` and ``weak``: made, their rows written, their tables told."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from apts_mpi.comm.clock import PHASES
from apts_mpi.errors import InputError
from benchmarks.harness import figures
from benchmarks.harness.data import cut
from benchmarks.harness.jobs import ENVIRONMENT, ROOT, RunFailed, mpirun
from benchmarks.harness.options import job_folder, names, positive, shared_folder, whole_numbers
from benchmarks.harness.progress import Progress
from benchmarks.harness.results import Results, Row, origin
from benchmarks.harness.worker import ENDED
from benchmarks.scaling import table as scaling_table
from benchmarks.scaling.plan import SPLIT, Run, jobs, ranks_of, read_plan


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
        "--work",
        type=Path,
        metavar="DIR",
        help="keeps the shards; all nodes must see it (default a temporary folder; in an "
        "allocation of several nodes a folder in --out)",
    )
    parser.add_argument("--fresh", action="store_true", help="forget all runs that are done")
    parser.add_argument(
        "--report-only", action="store_true", help="run nothing, write what the runs so far tell"
    )


def run(parsed: argparse.Namespace, kind: str) -> int:
    """Make the runs that are missing, and write the tables; returns the exit status."""
    figures.require("scipy")
    plan = read_plan(parsed.config, strong=kind == "strong")
    changes: Row = {"ranks": ranks_of(plan, parsed.ranks)}
    if parsed.networks:
        changes["networks"] = tuple(parsed.networks.split())
    if parsed.repetitions:
        changes["repetitions"] = parsed.repetitions
    plan = dataclasses.replace(plan, **changes)
    if not 0 < parsed.timeout < 1e6:
        raise InputError(f"--timeout {parsed.timeout:g}: must be positive")
    unknown = set(parsed.methods or ()) - {method.name for method in plan.methods}
    if unknown:
        raise InputError(f"--methods {','.join(sorted(unknown))}: none of {parsed.config}")
    out = Path(parsed.out)
    results = Results(out / f"{kind}.jsonl", fresh=parsed.fresh and not parsed.report_only)
    failed = 0
    if not parsed.report_only:
        with job_folder(parsed.work or shared_folder(out)) as folder:
            name, shards = cut(plan.data, folder, parsed.mnist)
            plan = dataclasses.replace(plan, data=name)
            todo = [
                batch
                for runs in jobs(plan, kind, methods=parsed.methods, how=how(parsed.launch))
                if (batch := [one for one in runs if not is_done(one, results)])
            ]
            failed = make(todo, shards, folder, results, parsed.timeout, parsed.launch)
    scaling_table.write(out / f"{kind}.md", results.rows(), kind)
    return 1 if failed else 0


def is_done(run: Run, results: Results) -> bool:
    """Whether the results have a run's last row, which is written when the others are there."""
    if run.settings["benchmark"] == SPLIT:
        return results.get(run.settings) is not None
    return results.get({**run.settings, "rank": 0, "phase": PHASES[-1]}) is not None


def how(launch: str | None) -> str:
    """What of the way that ranks are started decides times: launcher, MPI's settings, cores."""
    settings = sorted(
        f"{name}={value}"
        for name, value in {**ENVIRONMENT, **os.environ}.items()
        if name.startswith(("OMPI_MCA_", "UCX_"))
    )
    return " ".join([launch or "mpirun", str(origin()["cores"]), *settings])


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
    lost: list[str] = []  # runs that failed on all ranks alike, so that others went on
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
                if found[2]:
                    lost.append(found[2])
                    told = f"failed: {found[2]}"
                else:
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
    return failed + len(lost)


def record(run: Run, folder: Path, results: Results) -> str:
    """Add the rows of a run from its ranks' files; returns a few words on it."""
    made = origin()
    ranks = range(run.settings["ranks"])
    measured = [
        json.loads((folder / f"rank-{rank}.json").read_text(encoding="utf-8")) for rank in ranks
    ]
    columns = zip(*(m["walls"] for m in measured), strict=True)
    slowest = [None if None in each else max(each) for each in columns]
    if run.settings["benchmark"] == SPLIT:
        own = {k: v for k, v in measured[0].items() if k not in ("phases", "walls")}
        # On in odd iterations, counted from 1. The last one's time has the run's end in it.
        turns = list(enumerate(slowest, start=run.warm_up + 1))[:-1]
        pairs = [
            (one, two) if number % 2 else (two, one)
            for (number, one), (_, two) in zip(turns[::2], turns[1::2], strict=False)
            if one is not None and two is not None
        ]
        on, off = (list(column) for column in zip(*pairs, strict=True))
        results.add(run.settings, {"on": on, "off": off, **own, **made})
        cost = scaling_table.shown(scaling_table.overhead(on, off), ".2f")
        return f"the clock costs {cost} %"
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
    known = [value for value in slowest if value is not None]
    return f"{1e3 * float(np.median(known)):.1f} ms an outer iteration"


def _words(run: Run) -> str:
    s = run.settings
    return f"{s['method']}, {s['hidden']}, N = {s['ranks']}, batch {s['batch']}"
