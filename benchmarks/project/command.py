"""A cost model, proved on what was measured, then beyond this machine.

Reads rows of strong, weak, micro and network; its parameters come from runs on one rank and from
micro. First it predicts the configurations of more than one rank that were measured, every one of
them shown; then it projects to the ranks, sizes and networks of project.toml. Writes project.jsonl
and project.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from apts_mpi.errors import InputError
from benchmarks.harness import tables
from benchmarks.harness.command import Command, Namespace, Rounds
from benchmarks.harness.jobs import ROOT
from benchmarks.harness.measure import Session
from benchmarks.harness.options import config, option
from benchmarks.harness.results import Row, packed
from benchmarks.harness.rows import read
from benchmarks.project.fit import Fitted, costs_of, fits_of
from benchmarks.project.grid import MEASURED, Projection, project
from benchmarks.project.plan import read_plan
from benchmarks.project.predict import Prediction, predict
from benchmarks.project.rows import Measured, network, scaling
from benchmarks.project.section import section
from benchmarks.project.words import assumptions

CONFIG = ROOT / "benchmarks" / "project.toml"
READ = ("strong", "weak", "micro", "network")


def plan(session: Session) -> Rounds:
    """Predict and project, and write all rows anew; nothing is run.

    Raises:
        InputError: results or the configuration cannot be used.
    """
    wanted = read_plan(session.options.config)
    rows = read(_paths(session.options))
    measured, fits = scaling([*rows["strong"], *rows["weak"]]), fits_of(rows["micro"])
    if not fits:
        raise InputError("no Allreduce over two ranks or more among the rows: run micro first")
    predictions, left = predict(measured, network(rows["network"]), fits)
    alone = [m for m in measured if m.ranks == 1]
    behind = [row for name in READ for row in rows[name] if "versions" in row]
    words = {
        "assumptions": assumptions(wanted),
        "left": sorted({f"{m.hosts} hosts, {m.link}" for m in left}),
        "setup": tables.setup(behind) if behind else "",
    }
    made = [
        ({"kind": "fitted", "what": "words"}, words),
        *_fitted(alone, fits),
        *map(_predicted, predictions),
        *(pair for one in project(wanted, alone) for pair in _projected(one, wanted.pays)),
    ]
    results = session.results
    results.forget([row["settings"] for row in results.rows()])
    for settings, values in made:
        results.add({"benchmark": "project", **settings}, values)
    print(f"written: {results.path}")
    yield from ()


def _paths(options: Namespace) -> list[Path]:
    """The files that are asked for; of the folder's network's, which needs root, may be missing.

    Raises:
        InputError: another one is.
    """
    paths = options.results or [Path(options.out) / f"{name}.jsonl" for name in READ]
    for path in paths:
        command = path.stem if path.stem in READ else "strong"
        if path.exists() or packed(path).exists():
            continue
        if options.results or command != "network":
            why = f"no such results; run python -m benchmarks {command} first"
            raise InputError(f"{path}: {why}")
        print(f"{path}: not there; networks are not among the predictions", flush=True)
    return [path for path in paths if path.exists() or packed(path).exists()]


def _fitted(
    alone: Sequence[Measured], fits: dict[tuple[int, str, str], Fitted]
) -> Iterator[tuple[Row, Row]]:
    """What a rank takes by itself, by network, method and minibatch; then the messages."""
    for m in sorted(alone, key=lambda m: (m.hidden, m.method, m.work.batch)):
        costs, _ = costs_of(m.method, m.hidden, m.work.batch, m.parameters, alone)
        gradient = costs.gradient + costs.evaluation / m.work.batch
        where = {"hidden": m.hidden, "method": m.method, "batch": m.work.batch}
        values = {
            **{"gradient": gradient, "flops": 6 * m.parameters / gradient, "step": costs.step},
            **{"join": costs.join, "sample": costs.sample, "other": costs.other},
            "spread": costs.spread.excess(2),
        }
        yield {"kind": "fitted", "what": "costs", **where}, _short(values)
    for (hosts, link, mpi), found in sorted(fits.items()):
        for ranks, fit in sorted(found.fits.items()):
            where = {"link": link, "mpi": mpi or "defaults", "hosts": hosts, "ranks": ranks}
            yield {"kind": "fitted", "what": "messages", **where}, _short(vars(fit))


def _predicted(one: Prediction) -> tuple[Row, Row]:
    values = {
        **{"measured": one.measured, "predicted": one.parts.total, "predicted_alone": one.alone},
        **{"slowdown": one.slowdown, "batch": one.of.work.batch},
    }
    medians = one.of.medians
    return {"kind": "prediction", "of": one.of.of}, {
        **_short(values),
        "range": [min(medians), max(medians)],
        "parts": _short(vars(one.parts)),
        "source": one.source,
    }


def _projected(one: Projection, pays: float) -> Iterator[tuple[Row, Row]]:
    """A row for every number of ranks.

    An accelerator is named with the network too, so that its rows differ by that alone.
    """
    name = one.network if one.compute == MEASURED else f"{one.network}, {one.compute}"
    of = {"method": one.method, "parameters": one.parameters, "network": name}
    for ranks, seconds in one.epoch.items():
        parts = one.parts[ranks]
        values = {
            **{"seconds_per_epoch": seconds, "efficiency": one.efficiency[ranks], "pays": pays},
            "messages": (parts.vector + parts.scalar) / parts.total,
            "waiting": parts.imbalance / parts.total,
        }
        short = _short(values, digits=4)
        yield {"kind": "projection", **of, "compute": one.compute, "ranks": ranks}, short


def _short(values: dict[str, float], digits: int = 7) -> Row:
    """So many digits of finite numbers; JSON has no others."""
    finite = {k: v if abs(v) < float("inf") else None for k, v in values.items()}
    return {k: None if v is None else float(f"{v:.{digits}g}") for k, v in finite.items()}


COMMAND = Command(
    name="project",
    options=(
        option(
            "results",
            nargs="*",
            type=Path,
            metavar="RESULTS",
            help="JSON lines of strong, weak, micro, network (default those of the folder of "
            "--out)",
        ),
        config(CONFIG, "TOML of ranks, sizes, networks, methods"),
    ),
    libraries=("scipy",),
    plan=plan,
    section=section,
)
