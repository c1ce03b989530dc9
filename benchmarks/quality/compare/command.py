"""The method with no flag set against tuned baselines, at equal work, on real MPI ranks.

MNIST, CIFAR-10 and the embedded digits; Adam, AdamW, SGD, Muon, Schedule-Free, Prodigy, local SGD,
DiLoCo and MuLoCo over grids of learning rates and batches. What is run stands in compare.toml, or
in another plan: beyond.toml has convolutional and residual networks and a Transformer. Writes
compare.md, compare.jsonl and a plot per data set, named as the plan; runs that are there are not
run again, so that it may be interrupted.
"""

from __future__ import annotations

from apts_mpi.errors import InputError
from benchmarks.harness.command import Command, Namespace, Rounds
from benchmarks.harness.data import CIFAR, Shards
from benchmarks.harness.jobs import ROOT
from benchmarks.harness.measure import Session
from benchmarks.harness.options import JOB_OPTIONS, config, names, option
from benchmarks.harness.runs import AVERAGING, jobs
from benchmarks.quality.compare.plan import DataSet, Group, groups, read_plan
from benchmarks.quality.compare.section import draw_png, section

CONFIG = ROOT / "benchmarks" / "compare.toml"


def check(options: Namespace) -> None:
    """What is asked for must be in the plan."""
    selection(read_plan(options.config), options)


def plan(session: Session) -> Rounds:
    """Set by set, the grids on the first seed, then the finalists."""
    options, results = session.options, session.results
    chosen = selection(read_plan(options.config), options)
    if options.fresh:  # finalists are chosen anew
        results.forget(
            {**candidate, "seed": seed}
            for group in chosen
            for candidate in group.candidates()
            for seed in group.data.seeds
            if options.seeds is None or seed in options.seeds
        )
    shards = Shards(session.folder, mnist=options.mnist, cifar=options.cifar)
    for group in chosen:  # before long work, so that nothing is amiss after it
        if any(results.get(settings) is None for settings in group.wanted(results.get)):
            shards.original(group.data.source)
    for name in dict.fromkeys(group.data.name for group in chosen):
        for stage in ("grid", "finalists"):
            print(f"{name}, {stage}:", flush=True)
            results.read()  # what others have added meanwhile
            own = [group for group in chosen if group.data.name == name]
            wanted = [s for group in own for s in group.wanted(results.get, options.seeds)]
            yield jobs(session, wanted, shards)


def selection(plan: tuple[DataSet, ...], options: Namespace) -> list[Group]:
    """The groups that the options ask for.

    Raises:
        InputError: one asks for what is not in the plan.
    """
    everything = [group for data in plan for group in groups(data)]
    sets, methods = options.sets, options.methods
    for flag, given, known in (
        ("--sets", sets, [data.name for data in plan]),
        ("--methods", methods, [method.name for method in plan[0].methods]),
    ):
        for name in given or ():
            if name not in known:
                raise InputError(f"{flag} {name}: is none of {', '.join(known)}")
    return [
        group
        for group in everything
        if (sets is None or group.data.name in sets)
        and (methods is None or group.method.name in methods)
        and (
            options.ranks is None
            or group.ranks in options.ranks
            or group.method.optimizer in AVERAGING  # one rank stands for all numbers of them
        )
    ]


COMMAND = Command(
    name=lambda options: str(options.config.stem),  # results of another plan have their own files
    options=(
        config(CONFIG, "TOML of sets, methods and grids"),
        option("--sets", type=names, metavar="A,B", help="run these (default all)"),
        option("--methods", type=names, metavar="A,B", help="run these (default all)"),
        *JOB_OPTIONS,
        CIFAR,
    ),
    libraries=("matplotlib",),
    check=check,
    plan=plan,
    section=section,
    draw=draw_png,
)
