"""Which runs ``strong`` and ``weak`` are: methods, networks, minibatches, ranks, repetitions."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from apts_mpi.errors import InputError
from benchmarks.harness.options import in_allocation
from benchmarks.harness.plan_file import check, fields, load, typed
from benchmarks.harness.results import Row, digest

LEAST_ITERATIONS = 8  # outer ones that count, so that there is a spread
SPLITS = ("steps", "batch")
SPLIT = "split"  # rows of runs with the clock on and off in turn, which show what it costs
# Rare messages, and the most frequent ones; outer iterations of each.
SPLIT_METHODS = {"apts": 101, "adam": 601}


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way to train.

    Attributes:
        name: in tables. arguments: of the program, besides batch and local steps.
        batches: samples of a rank's minibatch on one rank, one or more to be measured.
        local_steps: an outer iteration on one rank; 0 leaves them to the program.
        split: what N ranks divide in strong scaling, "steps" or "batch".
    """

    name: str
    arguments: tuple[str, ...]
    batches: tuple[int, ...]
    local_steps: int = 0
    split: str = ""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a TOML file says; its comments explain the names."""

    data: str
    networks: tuple[str, ...]
    ranks: tuple[int, ...]
    repetitions: int
    warm_up: int
    samples: int
    methods: tuple[Method, ...]


_METHOD, _PLAN = fields(Method), {**fields(Plan), "methods": [dict]}


def read_plan(path: Path, *, strong: bool) -> Plan:
    """The plan of a TOML file.

    Raises:
        InputError: it cannot be read, or is not of the form of ``strong.toml`` or ``weak.toml``.
    """
    example = "strong" if strong else "weak"
    try:
        values = typed("the file", load(path), _PLAN, needed=_PLAN)
        methods = tuple(_method(table, strong=strong) for table in values.pop("methods"))
        plan = Plan(**values, methods=methods)
        names = [method.name for method in methods]
        check(bool(names) and len(set(names)) == len(names), "methods need names of their own")
        check(plan.data in ("mnist", "digits"), f"data {plan.data!r} is neither mnist nor digits")
        check(bool(plan.networks and plan.ranks), "networks or ranks are missing")
        check(min(*plan.ranks, plan.repetitions, plan.samples) > 0, "numbers must be positive")
        check(plan.warm_up >= 0, "warm_up must be at least 0")
    except ValueError as error:
        raise InputError(f"--config {path}: {error}; see benchmarks/{example}.toml") from None
    return plan


def _method(table: Row, *, strong: bool) -> Method:
    where = f"method {table.get('name', '')!r}"
    method = Method(**typed(where, table, _METHOD, needed=("name", "arguments", "batches")))
    check(bool(method.batches) and min(method.batches) > 0, f"{where}: batches must be positive")
    check(method.local_steps >= 0, f"{where}: local_steps must be positive")
    check(
        method.split in (SPLITS if strong else ("",)),
        f"{where}: split is for strong scaling, which needs 'steps' or 'batch'",
    )
    check(method.split != "steps" or method.local_steps > 0, f"{where}: needs local_steps")
    return method


@dataclass(frozen=True)
class Run:
    """One run: what sets it apart in the results, and its command line.

    Attributes:
        settings: of its rows, but for rank and phase. arguments: of the program, without --data
            and --out. warm_up: iterations that do not count.
    """

    settings: Row
    arguments: tuple[str, ...]
    warm_up: int


def run_of(plan: Plan, method: Method, settings: Row, how: str = "") -> Run:
    """The run of a method; with ``split`` the work of an outer iteration is that of one rank.

    Args:
        settings: of its rows, ``batch`` being that of one rank alone. how: as in ``jobs``.
    """
    batch, ranks = settings["batch"], settings["ranks"]
    steps = method.local_steps
    own = batch
    if method.split == "steps":
        steps = max(1, round(steps / ranks))
    elif method.split == "batch":
        own = max(1, round(batch / ranks))
    each = own * ranks * max(steps, 1)
    total = plan.samples * (1 if method.split else ranks)
    iterations = plan.warm_up + max(LEAST_ITERATIONS, math.ceil(total / each))
    arguments = [
        *("--hidden", settings["hidden"], "--batch", str(own), "--iterations", str(iterations)),
        *("--epochs", "1000000", "--device", "cpu", "--threads", "1", *method.arguments),
    ]
    if steps:
        arguments += ["--local-steps", str(steps)]
    key = digest([how, plan.warm_up, *arguments])  # the same for all repetitions
    arguments += ["--seed", str(settings["repetition"])]
    return Run({**settings, "batch": own, "plan": key}, tuple(arguments), plan.warm_up)


def jobs(
    plan: Plan, benchmark: str, *, methods: tuple[str, ...] | None = None, how: str = ""
) -> Iterator[list[Run]]:
    """All runs, those of one MPI job together; jobs and the runs within in random order.

    The order is the same every time, so that an interrupted plan continues as it would have.

    Args:
        how: the ranks are started, which sets runs apart too.
    """
    chance = random.Random(0)
    chosen = [m for m in plan.methods if methods is None or m.name in methods]
    for repetition in range(plan.repetitions):
        order = list(plan.ranks)
        chance.shuffle(order)
        for ranks in order:
            runs = [
                run_of(
                    plan,
                    method,
                    {
                        **{"benchmark": benchmark, "method": method.name, "data": plan.data},
                        **{"hidden": network, "ranks": ranks, "batch": batch},
                        "repetition": repetition,
                    },
                    how,
                )
                for method, network in itertools.product(chosen, plan.networks)
                for batch in method.batches
            ]
            if benchmark == "strong" and repetition == 0:
                runs += [_split(run) for run in runs if run.settings["method"] in SPLIT_METHODS]
            chance.shuffle(runs)
            yield runs


def _split(run: Run) -> Run:
    """The same run, longer, for measuring what the clock costs."""
    arguments = list(run.arguments)
    iterations = run.warm_up + SPLIT_METHODS[run.settings["method"]]
    arguments[arguments.index("--iterations") + 1] = str(iterations)
    arguments += ["--evaluate-every", "1000000"]  # which could come with every other iteration
    return Run({**run.settings, "benchmark": SPLIT}, tuple(arguments), run.warm_up)


def ranks_of(plan: Plan, given: tuple[int, ...] | None) -> tuple[int, ...]:
    """Numbers of ranks: those given, those of the allocation, or the plan's.

    Raises:
        InputError: one is 0.
    """
    if given is not None:
        if min(given) < 1:
            raise InputError("--ranks: must be at least 1")
        return given
    tasks = in_allocation()
    if tasks is None:
        return plan.ranks
    return tuple(sorted({2**i for i in range(tasks.bit_length()) if 2**i <= tasks} | {tasks}))
