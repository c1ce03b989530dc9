"""Every setting of the method alone over its whole sensible range.

MNIST at N = 2 and 8, a ResNet and a Transformer at N = 8, everything else at its default; beside it
the learning rates of Adam and Muon over as many decades as the first radius. What is run stands in
sensitivity.toml. Writes sensitivity.md, sensitivity.jsonl and sensitivity.png; runs that are in
sensitivity.jsonl are not run again, so that it may be interrupted.
"""

from __future__ import annotations

from apts_mpi.errors import InputError
from benchmarks.harness.command import Command, Namespace, Rounds
from benchmarks.harness.data import CIFAR, Shards
from benchmarks.harness.jobs import ROOT
from benchmarks.harness.measure import Session
from benchmarks.harness.options import JOB_OPTIONS, config, names, option
from benchmarks.harness.runs import jobs
from benchmarks.quality.sensitivity.plan import Plan, Sweep, read_plan, wanted
from benchmarks.quality.sensitivity.report import draw, section

CONFIG = ROOT / "benchmarks" / "sensitivity.toml"


def check(options: Namespace) -> None:
    """What is asked for must be in the plan."""
    selection(read_plan(options.config), options)


def plan(session: Session) -> Rounds:
    """All runs of the parameters that are asked for."""
    options = session.options
    whole = read_plan(options.config)
    chosen = wanted(selection(whole, options), options.seeds or whole.seeds, options.ranks)
    yield jobs(session, chosen, Shards(session.folder, mnist=options.mnist, cifar=options.cifar))


def selection(plan: Plan, options: Namespace) -> list[Sweep]:
    """The parameters that the options ask for.

    Raises:
        InputError: one is not in the plan.
    """
    everything = {sweep.name: sweep for sweep in plan.sweeps()}
    for name in options.parameters or ():
        if name not in everything:
            raise InputError(f"--parameters {name}: is none of {', '.join(everything)}")
    return [everything[name] for name in options.parameters or everything]


COMMAND = Command(
    name="sensitivity",
    options=(
        config(CONFIG, "TOML of families, parameters and values"),
        option(
            "--parameters",
            type=names,
            metavar="A,B",
            help="run these, like radius,text-momentum,adam-lr (default all)",
        ),
        CIFAR,
        *JOB_OPTIONS,
    ),
    libraries=("matplotlib",),
    check=check,
    plan=plan,
    section=section,
    draw=draw,
)
