"""What ``strong``, ``weak`` and ``network`` measured, as the cost model wants it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from apts_mpi.comm.clock import PHASES
from apts_mpi.errors import InputError
from benchmarks.harness.results import Row
from benchmarks.project.model import PUBLISHED, Work, work_of

OWN = ("data", "gradient", "algebra", "other")  # phases of what a rank does by itself
METHODS = {"apts": "apts-scaled", "apts-auto": "apts-scaled"}  # of network, as strong says
OUTSIDE = ("ddp-adam",)  # PyTorch's own: not in the model


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
            for ``network``.
        runs: which iterations of ``own`` are of which run and rank.
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
    seconds: np.ndarray
    medians: tuple[float, ...]
    own: dict[str, np.ndarray]
    runs: np.ndarray

    @property
    def busy(self) -> np.ndarray:
        """Seconds that a rank took by itself, by rank and iteration."""
        total: np.ndarray = sum((self.own[name] for name in OWN), np.zeros(len(self.runs)))
        return total


def read(paths: Iterable[Path]) -> list[Row]:
    """The rows of files of results.

    Raises:
        InputError: one cannot be read, or has a line that is no row.
    """
    rows = []
    for path in paths:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            command = path.stem if path.stem in ("strong", "weak", "micro", "network") else "strong"
            raise InputError(
                f"{path}: no such results; run python -m benchmarks {command} first"
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: cannot be read: {error}") from None
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                row["settings"]["benchmark"]
            except (ValueError, KeyError, TypeError):
                raise InputError(f"{path}: line {number} is not a row of a benchmark") from None
            rows.append(row)
    return rows


def scaling(rows: Iterable[Row]) -> list[Measured]:
    """The configurations of ``strong`` and ``weak``, but for those with more ranks than cores.

    A run of which a rank's phase is missing, as when it is still being written, is left out.

    Raises:
        InputError: a row lacks what the model needs.
    """
    runs: dict[str, dict[tuple[int, str], Row]] = {}
    for row in rows:
        settings = row["settings"]
        if settings["benchmark"] not in ("strong", "weak"):
            continue
        try:
            place = (int(settings["rank"]), str(settings["phase"]))
            if not row["oversubscribed"]:
                runs.setdefault(_key(settings, ("rank", "phase")), {})[place] = row
        except (KeyError, TypeError, ValueError) as error:
            raise _lacking(settings, error) from None
    grouped: dict[str, list[dict[tuple[int, str], Row]]] = {}
    for run in runs.values():
        settings = next(iter(run.values()))["settings"]
        wanted = {(rank, phase) for rank in range(settings["ranks"]) for phase in PHASES}
        if wanted <= set(run):
            grouped.setdefault(_key(settings, ("rank", "phase", "repetition")), []).append(run)
    found = []
    for own in grouped.values():
        try:
            found.append(_scaling(own))
        except (KeyError, TypeError, ValueError) as error:
            raise _lacking(next(iter(own[0].values()))["settings"], error) from None
    return found


def _scaling(runs: Sequence[dict[tuple[int, str], Row]]) -> Measured:
    """A configuration from its runs, rows by rank and phase."""
    row = runs[0][0, PHASES[0]]
    settings = row["settings"]
    ranks, batch = settings["ranks"], settings["batch"]
    own: dict[str, list[Any]] = {name: [] for name in OWN}
    labels: list[Any] = []
    seconds, samples, vectors = [], [], []
    for run in runs:
        table = np.array(
            [[run[rank, phase]["seconds"] for phase in PHASES] for rank in range(ranks)]
        )  # ranks, phases, iterations
        kept = [i for i, phase in enumerate(PHASES) if phase != "evaluation"]
        seconds.append(table[:, kept].sum(axis=1).max(axis=0))
        for name in OWN:
            own[name].append(table[:, PHASES.index(name)].ravel())
        labels.append(np.repeat(len(labels) * ranks + np.arange(ranks), table.shape[2]))
        first = run[0, PHASES[0]]
        samples.append(first["evaluations"] / (table.shape[2] * ranks))
        vectors.append(first["messages"] / table.shape[2])
    hosts = [runs[0][rank, PHASES[0]]["host"] for rank in range(ranks)]
    each, sent = float(np.mean(samples)), float(np.mean(vectors))
    gradient = float(np.median(np.concatenate(own["gradient"])))
    _check_positive(parameters=row["parameters"], batch=batch, evaluations=each, gradient=gradient)
    method = settings["method"]
    work = work_of(
        method,
        row["parameters"],
        batch,
        row.get("local_steps"),
        evaluations=each / batch if method in PUBLISHED else None,
        vectors=sent if method in PUBLISHED else None,
    )
    return Measured(
        of=_without(settings, ("rank", "phase", "repetition")),
        method=method,
        hidden=settings["hidden"],
        parameters=row["parameters"],
        ranks=ranks,
        hosts=len(set(hosts)),
        together=max(hosts.count(host) for host in hosts),
        link="none",
        mpi=settings.get("mpi", ""),
        cores=row["cores"],
        work=work,
        samples=each,
        seconds=np.concatenate(seconds),
        medians=tuple(float(np.median(each)) for each in seconds),
        own={name: np.concatenate(parts) for name, parts in own.items()},
        runs=np.concatenate(labels),
    )


def network(rows: Iterable[Row]) -> list[Measured]:
    """The configurations of ``network`` that the model knows.

    Raises:
        InputError: a row lacks what the model needs.
    """
    grouped: dict[str, list[Row]] = {}
    for row in rows:
        settings = row["settings"]
        if "diverged" in row:
            continue
        if settings["benchmark"] == "network" and settings.get("method") not in OUTSIDE:
            grouped.setdefault(_key(settings, ("repetition",)), []).append(row)
    found = []
    for own in grouped.values():
        row, settings = own[0], own[0]["settings"]
        try:
            _check_positive(parameters=row["parameters"])
            # The first iteration does more: it broadcasts, and searches a radius.
            each = [np.asarray(one["iteration_seconds"][1:], dtype=float) for one in own]
            each = [times for times in each if len(times)]
            if not each:
                continue
            _check_positive(iteration_seconds=float(np.min(np.concatenate(each))))
            method = METHODS.get(settings["method"], settings["method"])
            batch = float(np.median([one.get("rank_batch", settings["batch"]) for one in own]))
            steps = [one["local_steps"] for one in own if one.get("local_steps")]
            chosen = round(float(np.median(steps))) if steps else None  # "auto" may differ
            work = work_of(method, row["parameters"], batch, chosen)
            found.append(
                Measured(
                    of=_without(settings, ("repetition",)),
                    method=method,
                    hidden=settings["hidden"],
                    parameters=row["parameters"],
                    ranks=settings["hosts"],
                    hosts=settings["hosts"],
                    together=settings["hosts"],  # they are made on one machine
                    link=settings["link"],
                    mpi=settings.get("mpi", row.get("mpi", "")),
                    cores=row.get("cores", 0),
                    work=work,
                    samples=work.evaluations * work.batch,
                    seconds=np.concatenate(each),
                    medians=tuple(float(np.median(times)) for times in each),
                    own={},
                    runs=np.zeros(0, dtype=int),
                )
            )
        except (KeyError, TypeError, ValueError) as error:
            raise _lacking(settings, error) from None
    return found


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if not 0.0 < value < float("inf"):
            raise ValueError(f"{name} {value} is not positive")


def _lacking(settings: Row, error: Exception) -> InputError:
    what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
    return InputError(f"the row {json.dumps(settings)} is not of the form the model reads: {what}")


def _without(settings: Row, names: Sequence[str]) -> Row:
    return {name: value for name, value in settings.items() if name not in names}


def _key(settings: Row, names: Sequence[str]) -> str:
    return json.dumps(_without(settings, names), sort_keys=True)
