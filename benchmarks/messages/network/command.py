"""Time to an accuracy over narrow links: real messages between hosts made on this machine.

Two or more hosts (network namespaces) with a link of a limited rate, real Open MPI over TCP between
them, and PyTorch's own DistributedDataParallel with gloo as a reference from outside. What has
learning rates is tuned before, without links. Needs root and MNIST's four files. Writes
network.jsonl and network.md; runs that are in network.jsonl are not run again.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from apts_mpi.data import read_info
from apts_mpi.errors import InputError
from benchmarks.harness.command import Command, Namespace, Rounds
from benchmarks.harness.data import cut, find
from benchmarks.harness.hosts import INTERFACE, Hosts, missing
from benchmarks.harness.jobs import ROOT
from benchmarks.harness.measure import Job, Outcome, Piece, Session
from benchmarks.harness.mpi_settings import SETTINGS
from benchmarks.harness.options import (
    MNIST,
    REPETITIONS,
    WORK,
    config,
    names,
    numbers,
    option,
    timeout,
)
from benchmarks.harness.results import Row
from benchmarks.messages.network.plan import (
    OUTSIDE,
    UNLIMITED,
    Choice,
    Method,
    Network,
    Plan,
    read_plan,
)
from benchmarks.messages.network.section import section

ONE_THREAD = {"OMP_NUM_THREADS": "1"}


def check(options: Namespace) -> str | None:
    """What is asked for must be in the plan; why there can be no hosts here."""
    chosen(read_plan(options.config), options)
    return None if options.report_only else missing()


def plan(session: Session) -> Rounds:
    """The rates, tuned without links; then link by link in random order."""
    options = session.options
    whole = read_plan(options.config)  # in it is found what the runs of its part depend on
    part, choice = chosen(whole, options), Choice(whole, session.results.get)
    find(whole.data, options.mnist)  # nothing can stand in where there is an accuracy to reach
    _, shards = cut(whole.data, session.folder, options.mnist)
    make = partial(job, whole, shards)
    for network in part.networks:
        tunings = [(method, choice.tuning(network, method)) for method in part.methods]
        yield [make(network, method, runs) for method, runs in tunings if runs]
    for hosts in part.hosts:
        places = list(itertools.product(part.links, part.networks))
        random.Random(0).shuffle(places)
        for link, network in places:
            for repetition, methods in _turns(part):
                jobs = [
                    make(network, method, [run], between=True)
                    for method in methods
                    for run in choice.wanted(link, network, method, hosts, repetition)
                ]
                if session.missing(jobs):
                    with Hosts(hosts, link=None if link == UNLIMITED else link) as made:
                        start = partial(
                            made.mpirun, settings=SETTINGS[whole.mpi], variables=ONE_THREAD
                        )
                        yield [replace(one, start=start) for one in jobs]


def _turns(part: Plan) -> Iterator[tuple[int, list[Method]]]:
    """Seeds with methods in random order; with seed 0 what takes another's minibatch comes last."""
    chance, methods = random.Random(1), list(part.methods)
    chance.shuffle(methods)
    yield 0, [method for method in methods if not method.like]
    yield 0, [method for method in methods if method.like]
    for repetition in range(1, part.repetitions):
        chance.shuffle(methods)
        yield repetition, list(methods)


def job(
    plan: Plan,
    shards: Path,
    network: Network,
    method: Method,
    runs: Sequence[Row],
    *,
    between: bool = False,
) -> Job:
    """Runs of a method by the same ranks; ``between`` hosts, or on this machine alone."""
    # A little less often, so that rounding does not skip an evaluation.
    every = 0.9 * plan.evaluate_every / read_info(shards).samples
    more = {"data": plan.data, "mpi": plan.mpi}
    lost = {"seconds_to_target": None, "epochs_to_target": None, **more}

    def keep(outcome: Outcome) -> tuple[list[Row], str]:
        row = {**figures(outcome.values, plan.target), **more}
        seconds = row["seconds_to_target"]
        return [row], "not reached" if seconds is None else f"{seconds:.2f} s"

    def arguments(settings: Row) -> Row:
        if method.name in OUTSIDE:
            return {
                "optimizer": OUTSIDE[method.name],
                **{"data": str(shards), "hidden": network.hidden, "epochs": network.epochs},
                **{"batch": settings["batch"], "lr": settings["lr"]},
                **{"seed": settings["repetition"], "evaluate_every": every},
                **{"target": plan.target, "interface": INTERFACE if between else "lo"},
            }
        line = [
            *("--data", str(shards), "--hidden", network.hidden, "--epochs", f"{network.epochs:g}"),
            *("--seed", str(settings["repetition"]), "--device", "cpu", "--threads", "1"),
            *(*method.arguments, "--evaluate-every", f"{every:g}"),
        ]
        if settings["lr"] is not None:
            batch = math.ceil(settings["batch"] / settings["hosts"])
            line += ["--lr", f"{settings['lr']:g}", "--batch", str(batch)]
        return {"line": line, "target": plan.target}

    return Job(
        task=f"benchmarks.messages.network.task:{'ddp' if method.name in OUTSIDE else 'ours'}",
        ranks=runs[0]["hosts"],
        pieces=[
            Piece(
                settings=[run],
                words=", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in run.values()),
                arguments=arguments(run),
                keep=keep,
                diverged=lambda why: [{**lost, "diverged": why}],
            )
            for run in runs
        ],
    )


def figures(measured: Sequence[Row], target: float) -> Row:
    """What is kept of all ranks' records of a run; the clock is that of the rank furthest on."""
    own = dict(measured[0])
    # A rank that is late makes another wait in the next iteration: maxima of single iterations
    # would count that twice.
    clocks = [itertools.accumulate(m["iteration_seconds"]) for m in measured]
    seconds = [max(passed) for passed in zip(*clocks, strict=True)]
    each = [max(column) for column in zip(*(m["iteration_seconds"] for m in measured), strict=True)]
    accuracies, epochs = own.pop("test_accuracy"), own.pop("epoch")
    spent = {"seconds": seconds, "bytes": own.pop("bytes"), "messages": own.pop("messages")}
    own["iteration_seconds"] = [float(f"{value:.4g}") for value in each[:500]]
    evaluated = [i for i, accuracy in enumerate(accuracies) if accuracy is not None]
    hit = next((i for i in evaluated if accuracies[i] >= target), None)
    return {
        "target": target,
        "epochs_to_target": None if hit is None else epochs[hit],
        **{f"{k}_to_target": None if hit is None else v[hit] for k, v in spent.items()},
        **{f"{k}_per_epoch": v[-1] / epochs[-1] for k, v in spent.items()},
        "curve": {
            "seconds": [float(f"{seconds[i]:.5g}") for i in evaluated],
            "epoch": [float(f"{epochs[i]:.5g}") for i in evaluated],
            "test_accuracy": [accuracies[i] for i in evaluated],
            "bytes": [spent["bytes"][i] for i in evaluated],
        },
        **own,
    }


def chosen(plan: Plan, options: Namespace) -> Plan:
    """The part of the plan that the command line asks for.

    Raises:
        InputError: it asks for what is not in it.
    """
    changes: Row = {}
    for name in ("hosts", "links", "methods", "networks"):
        given = getattr(options, name)
        if given:
            known = {_name(item): item for item in getattr(plan, name)}
            unknown = [str(word) for word in given if word not in known]
            if unknown:
                among = ", ".join(map(str, known))
                raise InputError(f"--{name} {','.join(unknown)}: none of {among}")
            changes[name] = tuple(known[word] for word in given)
    if options.repetitions:
        changes["repetitions"] = options.repetitions
    return replace(plan, **changes)


def _name(item: Any) -> Any:
    """A host count, a link, a method or a network as options name them."""
    return item.name if isinstance(item, Method) else getattr(item, "hidden", item)


COMMAND = Command(
    name="network",
    options=(
        config(ROOT / "benchmarks" / "network.toml", "TOML of methods, networks, links, hosts"),
        option("--hosts", type=numbers(0), help="run these of the file, '2'"),
        option("--links", type=names, help="run these of the file, '1gbit,unlimited'"),
        option("--methods", type=names, help="run these of the file (default all)"),
        option("--networks", type=str.split, help="run these of the file: '128,128 1024,784'"),
        REPETITIONS,
        timeout(900.0),
        MNIST,
        WORK,
    ),
    libraries=("matplotlib",),
    check=check,
    plan=plan,
    section=section,
)
