"""Every parameter of the method alone over its whole sensible range, on real MPI ranks.

MNIST at N = 2 and 8, everything else at its default; beside it the learning rates of Adam and SGD
over as many decades as the initial radius. What is run stands in sensitivity.toml. Writes
sensitivity.md, sensitivity.jsonl and sensitivity.png; runs that are in sensitivity.jsonl are not
run again, so that it may be interrupted.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from apts_mpi.errors import InputError
from benchmarks.harness import figures
from benchmarks.harness.data import Shards
from benchmarks.harness.jobs import ROOT
from benchmarks.harness.options import add_job_options, check_job_options, job_folder, names
from benchmarks.harness.results import Results, Row
from benchmarks.quality.compare.jobs import run_all
from benchmarks.quality.sensitivity.plan import Plan, Sweep, read_plan, wanted
from benchmarks.quality.sensitivity.report import report

CONFIG = ROOT / "benchmarks" / "sensitivity.toml"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument(
        "--config",
        type=Path,
        default=CONFIG,
        metavar="FILE",
        help="TOML of families, parameters and values (default benchmarks/sensitivity.toml)",
    )
    parser.add_argument(
        "--parameters",
        type=names,
        metavar="A,B",
        help="run these, like radius,sr1-memory,adam-lr (default all)",
    )
    add_job_options(parser)


def run(parsed: argparse.Namespace) -> int:
    """Run what is missing of the selection, write all that is there."""
    check_job_options(parsed)
    figures.pyplot()
    plan = read_plan(parsed.config)
    seeds = parsed.seeds or plan.seeds
    chosen = wanted(_selection(plan, parsed), seeds, parsed.ranks)
    out = Path(parsed.out)
    results = Results(out / "sensitivity.jsonl", fresh=False)
    failed: list[Row] = []
    if not parsed.report_only:
        if parsed.fresh:
            results.forget(chosen)
        missing = [settings for settings in chosen if results.get(settings) is None]
        done = len(chosen) - len(missing)
        print(f"{len(chosen)} runs, {done} of them done before", flush=True)
        if missing:
            try:
                with job_folder(parsed.work) as folder:
                    shards = Shards(folder, mnist=parsed.mnist, cifar=None)
                    limits = {"jobs": parsed.jobs, "timeout": parsed.timeout}
                    failed = run_all(missing, shards, results, **limits)
            except KeyboardInterrupt:
                print("benchmarks: interrupted; the runs that had ended are kept", flush=True)
                return 130
    report(out, plan, sorted({*plan.seeds, *seeds}), results.get)
    return 1 if failed else 0


def _selection(plan: Plan, parsed: argparse.Namespace) -> list[Sweep]:
    """The parameters that the options ask for."""
    everything = {sweep.name: sweep for sweep in plan.sweeps()}
    for name in parsed.parameters or ():
        if name not in everything:
            raise InputError(f"--parameters {name}: is none of {', '.join(everything)}")
    return [everything[name] for name in parsed.parameters or everything]
