"""What ``strong``, ``weak`` and ``network`` measured, as the cost model wants it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from apts_mpi.errors import InputError
from benchmarks.harness.phase_runs import Point, but, points, runs
from benchmarks.harness.results import Row, grouped
from benchmarks.harness.statistics import Array
from benchmarks.project.model import PUBLISHED, Work, work_of

OWN = ("data", "gradient", "algebra", "other")  # phases of what a rank does by itself
METHODS = {"apts-auto": "apts"}  # of network, as strong says
OUTSIDE = ("ddp-adam", "ddp-muon")  # PyTorch's own: not in the model


@dataclass(frozen=True)
class Measured:
    """A configuration, all its repetitions together.

    Attributes:
        of: settings, without repetition, rank and phase. method: as in ``strong``.
        hidden: layers of the network. parameters: of it. ranks, hosts: how many of them.
        together: ranks on one machine, the most. link: between hosts. mpi: its settings, "" where
            not known. cores: of a machine, 0 where not known.
        work: of an outer iteration. samples: gradients of a rank per iteration, a forward one
            counted a third.
        seconds: of outer iterations, each the slowest rank's, without evaluation. medians: of them
            by repetition.
        own: seconds of what a rank does by itself, by phase, over ranks and iterations; nothing
            for ``network``. busy: the sum of these by iteration, an array per run and rank.
    """

    of: Row
    method: str
    hidden: str
    parameters: int
    ranks: int
    hosts: int
    together: int
    link: str
    mpi: str
    cores: int
    work: Work
    samples: float
    seconds: Array
    medians: tuple[float, ...]
    own: dict[str, Array]
    busy: Sequence[Array]


def scaling(rows: Iterable[Row]) -> list[Measured]:
    """The configurations of ``strong`` and ``weak``, but for those with more ranks than cores.

    A run of which a rank's phase is missing, as when it is still being written, is left out.

    Raises:
        InputError: a row lacks what the model needs.
    """
    found, _ = runs(row for row in rows if not row["oversubscribed"])
    return [_scaling(point) for point in points(found)]


def _scaling(point: Point) -> Measured:
    first, ranks, of = point.first, point.ranks, but(point.runs[0].settings, "repetition")
    own = {name: np.concatenate([r.phases[name].ravel() for r in point.runs]) for name in OWN}
    _check_positive(of, own["gradient"])
    lengths = [len(run.iterations) for run in point.runs]
    samples = [r.evaluations / (k * ranks) for r, k in zip(point.runs, lengths, strict=True)]
    each, counts = float(np.mean(samples)), {}
    if point.method in PUBLISHED:
        sent = [run.messages / k for run, k in zip(point.runs, lengths, strict=True)]
        counts = {"evaluations": each / of["batch"], "vectors": float(np.mean(sent))}
    spent = [np.sum([run.phases[name] for name in OWN], axis=0) for run in point.runs]
    hosts = [row["host"] for row in point.runs[0].rows]
    return Measured(
        of=of,
        method=point.method,
        hidden=of["hidden"],
        parameters=first["parameters"],
        ranks=ranks,
        hosts=len(set(hosts)),
        together=max(hosts.count(host) for host in hosts),
        link="none",
        mpi=of.get("mpi", ""),
        cores=first["cores"],
        work=_work(of, point.method, first, of["batch"], first.get("local_steps"), **counts),
        samples=each,
        seconds=np.concatenate([run.iterations for run in point.runs]),
        medians=tuple(float(np.median(run.iterations)) for run in point.runs),
        own=own,
        busy=[of_rank for of_run in spent for of_rank in of_run],
    )


def network(rows: Iterable[Row]) -> list[Measured]:
    """The configurations of ``network`` that the model knows.

    Raises:
        InputError: a row lacks what the model needs.
    """
    known = [r for r in rows if "diverged" not in r and r["settings"]["method"] not in OUTSIDE]
    alike = grouped(
        known, lambda row: json.dumps(but(row["settings"], "repetition"), sort_keys=True)
    )
    return [_network(own) for own in alike.values() if any(map(_times, own))]


def _times(row: Row) -> list[float]:
    """Of outer iterations; the first does more, as it broadcasts and searches a radius."""
    return (row.get("iteration_seconds") or [])[1:]


def _network(rows: Sequence[Row]) -> Measured:
    first, of = rows[0], but(rows[0]["settings"], "repetition")
    method = str(METHODS.get(of["method"], of["method"]))
    each = [np.array(times, dtype=float) for times in map(_times, rows) if times]
    _check_positive(of, np.concatenate(each))
    batch = float(np.median([row.get("rank_batch", of["batch"]) for row in rows]))
    steps = [row["local_steps"] for row in rows if row.get("local_steps")]
    chosen = round(float(np.median(steps))) if steps else None  # "auto" may differ
    work = _work(of, method, first, batch, chosen)
    return Measured(
        of=of,
        method=method,
        hidden=of["hidden"],
        parameters=first["parameters"],
        ranks=of["hosts"],
        hosts=of["hosts"],
        together=of["hosts"],  # they are made on one machine
        link=of["link"],
        mpi=str(of.get("mpi", first.get("mpi", ""))),
        cores=first.get("cores", 0),
        work=work,
        samples=work.evaluations * work.batch,
        seconds=np.concatenate(each),
        medians=tuple(float(np.median(times)) for times in each),
        own={},
        busy=(),
    )


def _work(of: Row, method: str, row: Row, batch: float, steps: int | None, **counts: float) -> Work:
    try:
        return work_of(method, row["parameters"], batch, steps, **counts)
    except ValueError as error:
        raise InputError(f"the rows of {json.dumps(of)}: {error}") from None


def _check_positive(of: Row, seconds: Array) -> None:
    if not np.median(seconds) > 0.0:
        raise InputError(f"the rows of {json.dumps(of)}: seconds are not positive")
