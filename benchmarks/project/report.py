"""The page of ``project``: what was fitted, every prediction, and the projections."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from benchmarks.harness import tables
from benchmarks.harness.results import Row
from benchmarks.project.figures import GOAL
from benchmarks.project.fit import Fitted, costs_of
from benchmarks.project.grid import MEASURED, Projection
from benchmarks.project.plan import Plan
from benchmarks.project.predict import Prediction
from benchmarks.project.rows import Measured

SHOWN = (32, 1024)  # ranks of the table of times

MODEL = """\
Seconds of an outer iteration = minibatch evaluations (a forward one counts a third) x seconds of \
one + algebra (a part per iteration, a part per local step) + data + what is besides + vector \
messages + scalar messages, each of both with a barrier before it + waiting for the slowest rank. \
That wait is the expected maximum over the ranks of a rank's own time, less its mean: ranks draw \
from the measured distribution of iteration times of one rank, in the calmer half of its runs; \
beyond a quarter as many ranks as measured times, the larger of that and of a normal tail. \
Allreduce: the cheapest of ring, recursive doubling and Rabenseifner's (Thakur, Rabenseifner, \
Gropp 2005). Times are medians over iterations and repetitions; evaluation on test data is left \
out."""

PROOF = """\
Fitted to: compute, algebra, data and the spread of times, runs of `strong` and `weak` on one \
rank; messages, `micro`. Never to the configuration that is predicted. Ranks that share a \
machine slow each other down (memory, cache, clock): by how much is taken from other methods' runs \
with as many ranks (`network`: by `strong` and `weak`); beside it, the prediction without that. \
How many evaluations and messages an iteration of L-SR1 and first order has is the run's own \
count, for the others it follows from their steps. In brackets: the least and the largest median \
of a repetition. Rows with more ranks than cores are not used, but for `network`'s, whose ranks \
then take turns in the model."""


def report(
    path: Path,
    plan: Plan,
    measured: Sequence[Measured],
    fits: dict[tuple[int, str, str], Fitted],
    predictions: Sequence[Prediction],
    left: Sequence[Measured],
    projections: Sequence[Projection],
    rows: Sequence[Row],
    drawn: Sequence[tuple[str, str]],
) -> None:
    """Write it.

    Args:
        left: configurations whose network ``micro`` has not measured. rows: behind all this.
        drawn: names and texts of the projections' figures.
    """
    parts = ["# A cost model, proved where it can be, then projected", MODEL, "## Fitted"]
    parts += [_costs([m for m in measured if m.ranks == 1]), _networks(fits)]
    parts += ["## Predicted, and measured", PROOF, *_predictions(predictions, left)]
    parts += ["## Projections", _assumptions(plan), *_projections(plan, projections)]
    parts += [f"![{text}]({name})" for name, text in drawn]
    parts += [_setup(rows), "Repeat: `python -m benchmarks project`."]
    tables.write(path, *(part for part in parts if part))


# ---- what was fitted ---------------------------------------------------------------------------


def _costs(alone: Sequence[Measured]) -> str:
    """The parameters of what a rank does by itself, one line per method, network and minibatch."""
    body = []
    for m in sorted(alone, key=lambda m: (m.hidden, m.method, m.work.batch)):
        costs, _ = costs_of(m.method, m.hidden, m.work.batch, m.parameters, alone)
        each = costs.gradient + costs.evaluation / m.work.batch
        line = (
            *(m.hidden, m.method, f"{m.work.batch:g}", f"{1e6 * each:.2f}"),
            *(f"{6e-9 * m.parameters / each:.1f}", f"{1e3 * costs.step:.3f}"),
            *(f"{1e3 * costs.join:.2f}", f"{1e6 * costs.sample:.3f}", f"{1e3 * costs.other:.2f}"),
            f"{100 * costs.spread.excess(2):.1f}",
        )
        if line not in body:
            body.append(line)
    header = (
        *("hidden layers", "method", "batch", "per sample gradient, us", "GFLOP/s"),
        *("algebra per step, ms", "per iteration, ms", "data per sample, us", "besides, ms"),
        "slowest of two, +%",
    )
    return tables.markdown(header, body, text=2)


def _networks(fits: dict[tuple[int, str, str], Fitted]) -> str:
    """The fits of ``micro``."""
    body = [
        (
            *(link, mpi or "defaults", hosts, ranks, f"{1e6 * fit.latency:.1f}"),
            *(_rate(fit.bandwidth), f"{100 * fit.residual:.0f}"),
        )
        for (hosts, link, mpi), found in sorted(fits.items())
        for ranks, fit in sorted(found.fits.items())
    ]
    header = ("link", "MPI", "hosts", "ranks", "latency, us", "MB/s", "median residual, %")
    return tables.markdown(header, body, text=2)


def _rate(bandwidth: float) -> str:
    return f"{bandwidth / 1e6:.0f}" if math.isfinite(bandwidth) else "-"


# ---- predictions -------------------------------------------------------------------------------


def _predictions(predictions: Sequence[Prediction], left: Sequence[Measured]) -> list[str]:
    if not predictions:
        return ["No configuration of more than one rank has been measured."]
    body = []
    for one in predictions:
        m = one.of
        body.append(
            (
                *(m.of["benchmark"], m.method if m.method != "apts-scaled" else m.of["method"]),
                *(m.hidden, m.link if m.link != "none" else "memory", m.ranks, f"{m.work.batch:g}"),
                f"{1e3 * one.measured:.2f} {_range(m.medians)}",
                f"{1e3 * one.parts.total:.2f}",
                *(f"{100 * one.error:+.0f}", f"{100 * (one.alone / one.measured - 1):+.0f}"),
                f"{one.slowdown:.2f}",
            )
        )
    header = (
        *("benchmark", "method", "hidden layers", "link", "ranks", "batch"),
        *("measured, ms", "predicted, ms", "error, %", "without slow-down, %", "slow-down"),
    )
    parts = [tables.markdown(header, body, text=4), *_errors(predictions)]
    if left:
        names = ", ".join(sorted({f"{m.hosts} hosts, {m.link}" for m in left}))
        parts.append(f"Not predicted, since `micro` has no such network: {names}.")
    return [*parts, "![Predicted against measured, every configuration](project_measured.png)"]


def _range(seconds: Sequence[float]) -> str:
    return f"[{1e3 * min(seconds):.2f}, {1e3 * max(seconds):.2f}]"


def _errors(predictions: Sequence[Prediction]) -> list[str]:
    """The median error, in all and by benchmark, against the goal."""
    errors = [abs(one.error) for one in predictions]
    alone = [abs(one.alone / one.measured - 1) for one in predictions]
    met = "met" if median(errors) <= GOAL else "missed"
    lines = [
        f"- Median error {100 * median(errors):.1f} % of {len(errors)} configurations, goal "
        f"{100 * GOAL:.0f} %: {met}; largest {100 * max(errors):.0f} %; without the slow-down "
        f"median {100 * median(alone):.1f} %."
    ]
    for name in ("strong", "weak", "network"):
        own = [abs(one.error) for one in predictions if one.of.of["benchmark"] == name]
        if own:
            worst = f"largest {100 * max(own):.0f} %"
            lines.append(f"- {name}: median {100 * median(own):.1f} % of {len(own)}, {worst}.")
    return ["\n".join(lines)]


# ---- projections -------------------------------------------------------------------------------


def _assumptions(plan: Plan) -> str:
    """What the projections assume."""
    lines = [
        f"**Everything from here on is a projection.** The data set has {plan.samples:,} samples "
        f"whatever the ranks, {plan.samples // plan.ranks[-1]:,} per rank at {plan.ranks[-1]}; an "
        "epoch is as many sample gradients, a forward one counted a third. It says nothing of "
        "accuracy. Where more ranks mean more samples between messages (apts beyond 32 ranks, "
        "others where the least minibatch of a rank binds), the time of an epoch falls with the "
        "ranks, but more of them may be needed, which is not in here.",
        "- One rank per node, each with a port of its own, no other traffic, no overlap of "
        "messages and compute; stragglers as spread as on the machine that was measured.",
        "- apts: the program's own plan, some 10,500 samples of all ranks per outer iteration, at "
        "least 5 steps, minibatches of 64 to 250. "
        + "; ".join(
            f"{m.label}: {m.global_batch} samples over all ranks per step"
            + (f", at least {m.least_batch} per rank" if m.least_batch > 1 else "")
            + (f", {m.local_steps} steps per message" if m.local_steps else "")
            for m in plan.methods
            if m.method != "apts"
        )
        + ".",
        "- Compute and algebra of larger networks in proportion to parameters, from the measured "
        "one that is nearest; of minibatches that were not measured by a line through those that "
        "were, or in proportion.",
    ]
    for network in plan.networks:
        rate = 1.0 / network.link.per_byte
        lines.append(
            f"- {network.name}: {1e6 * network.link.latency:g} us, {rate / 1e6:,.0f} MB/s, "
            f"{1e9 * network.link.reduction:g} ns to add a byte. {network.source}."
        )
    if plan.accelerator:
        a = plan.accelerator
        lines.append(
            f"- {a.name}, **an assumption, not measured**: {a.flops / 1e12:g} TFLOP/s, memory at "
            f"{a.memory / 1e12:g} TB/s, {1e6 * a.launch:g} us per evaluation besides, messages "
            f"copied to its host and back at {a.copy / 1e9:g} GB/s."
        )
    return "\n".join(lines)


def _projections(plan: Plan, projections: Sequence[Projection]) -> list[str]:
    methods = [method.label for method in plan.methods]
    parts = [
        "A method pays up to the ranks to which every doubling makes an epoch at least "
        f"{plan.pays:g} times as fast.",
    ]
    by = {(one.compute, one.parameters, one.network, one.method): one for one in projections}
    last = max(plan.ranks)
    shown = [ranks for ranks in SHOWN if ranks in plan.ranks] or [last]
    for compute in dict.fromkeys(one.compute for one in projections):
        whose = "cores as measured" if compute == MEASURED else f"{compute} per rank"
        limits, times = [], []
        for parameters in plan.parameters:
            for network in plan.networks:
                own = [by[compute, parameters, network.name, label] for label in methods]
                place = (f"{parameters:,}", network.name)
                limits.append((*place, *(_limit(one, last) for one in own)))
                for ranks in shown:
                    times.append((*place, ranks, *(_time(one, ranks) for one in own)))
        header = ("parameters", "network")
        parts += [
            f"### Projection: the last ranks that pay, {whose}",
            tables.markdown((*header, *methods), limits, text=2),
            f"### Projection: seconds per epoch (parallel efficiency, %), {whose}",
            tables.markdown((*header, "ranks", *methods), times, text=2),
        ]
    parts.append(
        "Efficiency is against the same method's own epoch on one rank. `-`: fewer samples in a "
        "minibatch than ranks; `*`: it ends there for that reason. `>=`: to the last that was "
        "projected."
    )
    return parts


def _limit(one: Projection, last: int) -> str:
    if one.limit == last:
        return f">= {last}"
    return f"{one.limit}*" if one.limit == max(one.epoch) else str(one.limit)


def _time(one: Projection, ranks: int) -> str:
    if ranks not in one.epoch:
        return "-"
    return f"{one.epoch[ranks]:.3g} ({100 * one.efficiency[ranks]:.0f})"


def _setup(rows: Sequence[Row]) -> str:
    """The set-up behind the measured rows, where they have it."""
    known = [
        {**row, "threads_per_rank": row.get("threads", row.get("threads_per_rank", 1))}
        for row in rows
        if all(name in row for name in ("versions", "cores", "commit", "date"))
    ]
    return tables.setup(known) if known else ""
