"""The method with no flag set against tuned baselines, at equal work, on real MPI ranks.

MNIST, CIFAR-10 and the embedded digits; Adam, SGD, local SGD and DiLoCo over grids of learning
rates and batches. What is run stands in compare.toml, or in another plan: beyond.toml has
convolutional and residual networks and a Transformer. Writes compare.md, compare.jsonl and a plot a
data set, named as the plan; runs that are there are not run again, so that it may be interrupted.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from apts_mpi.errors import InputError
from benchmarks.harness import figures
from benchmarks.harness.data import Shards
from benchmarks.harness.jobs import ROOT
from benchmarks.harness.options import add_job_options, check_job_options, job_folder, names
from benchmarks.harness.results import Results, Row
from benchmarks.quality.compare.jobs import run_all
from benchmarks.quality.compare.plan import AVERAGING, DataSet, Group, groups, read_plan
from benchmarks.quality.compare.report import report

CONFIG = ROOT / "benchmarks" / "compare.toml"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument(
        "--config",
        type=Path,
        default=CONFIG,
        metavar="FILE",
        help="TOML of sets, methods and grids (default benchmarks/compare.toml)",
    )
    parser.add_argument("--sets", type=names, metavar="A,B", help="run these (default all)")
    parser.add_argument("--methods", type=names, metavar="A,B", help="run these (default all)")
    add_job_options(parser)
    parser.add_argument(
        "--cifar",
        type=Path,
        metavar="DIR",
        help="folder of CIFAR-10's binary files, or the one above (default "
        "$APTS_MPI_TEST_DATA/cifar10, or shared/data/cifar10 beside the checkout)",
    )


def run(parsed: argparse.Namespace) -> int:
    """Run what is missing of the selection, write all that is there."""
    check_job_options(parsed)
    figures.pyplot()
    plan = read_plan(parsed.config)
    chosen = _selection(plan, parsed)
    out = Path(parsed.out)
    name = parsed.config.stem  # of the results: those of another plan have files of their own
    results = Results(out / f"{name}.jsonl", fresh=False)
    if parsed.fresh and not parsed.report_only:
        results.forget(_everything(chosen, parsed.seeds))
    failures = 0
    if not parsed.report_only:
        try:
            with job_folder(parsed.work) as folder:
                shards = Shards(folder, mnist=parsed.mnist, cifar=parsed.cifar)
                for group in chosen:  # before long work, so that nothing is amiss after it
                    if _missing([group], results, parsed.seeds):
                        shards.original(group.data.source)
                for data in plan:
                    own = [group for group in chosen if group.data == data]
                    if own:
                        failures += _run_set(own, shards, results, parsed)
                        report(out, plan, results.get, name)
        except KeyboardInterrupt:
            print("benchmarks: interrupted; the runs that had ended are kept", flush=True)
            return 130
    else:
        report(out, plan, results.get, name)
    return 1 if failures else 0


def _run_set(own: list[Group], shards: Shards, results: Results, parsed: argparse.Namespace) -> int:
    """The grids on the first seed, then the finalists; returns how many runs failed."""
    failed: list[Row] = []
    for stage in ("grid", "finalists"):
        results.read()
        todo = [s for s in _missing(own, results, parsed.seeds) if s not in failed]
        if todo:
            print(f"{own[0].data.name}, {stage}: {len(todo)} runs to do", flush=True)
            failed += run_all(todo, shards, results, jobs=parsed.jobs, timeout=parsed.timeout)
    return len(failed)


def _missing(own: list[Group], results: Results, seeds: tuple[int, ...] | None) -> list[Row]:
    """The runs that are known to be needed and are not done; each once."""
    wanted = [settings for group in own for settings in group.wanted(results.get, seeds)]
    missing = [settings for settings in wanted if results.get(settings) is None]
    return list({repr(settings): settings for settings in missing}.values())


def _selection(plan: tuple[DataSet, ...], parsed: argparse.Namespace) -> list[Group]:
    """The groups that the options ask for."""
    everything = [group for data in plan for group in groups(data)]
    sets, methods = parsed.sets, parsed.methods
    for option, given, known in (
        ("--sets", sets, [data.name for data in plan]),
        ("--methods", methods, [method.name for method in plan[0].methods]),
    ):
        for name in given or ():
            if name not in known:
                raise InputError(f"{option} {name}: is none of {', '.join(known)}")
    return [
        group
        for group in everything
        if (sets is None or group.data.name in sets)
        and (methods is None or group.method.name in methods)
        and (
            parsed.ranks is None
            or group.ranks in parsed.ranks
            or group.method.optimizer in AVERAGING  # one rank stands for all numbers of them
        )
    ]


def _everything(chosen: list[Group], seeds: tuple[int, ...] | None) -> Iterator[Row]:
    for group in chosen:
        for candidate in group.candidates():
            for seed in group.data.seeds:
                if seeds is None or seed in seeds:
                    yield {**candidate, "seed": seed}
