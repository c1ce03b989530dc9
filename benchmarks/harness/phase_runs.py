"""Runs of ``strong`` and ``weak`` put together from their rows, and what follows from them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from apts_mpi.comm.clock import COMMUNICATION, PHASES
from benchmarks.harness.results import Row, grouped
from benchmarks.harness.statistics import Array, Estimate, median

COMPUTE = ("gradient", "algebra")
TIMED = tuple(phase for phase in PHASES if phase != "evaluation")  # what an iteration's time is


@dataclass(frozen=True)
class Run:
    """One run of so many ranks.

    Attributes:
        settings: but for rank and phase. phases: seconds by phase, an array of ranks by
            iterations. cpu: seconds of processor time, by rank. evaluations: sample gradients of
            all ranks. samples: of the training set. nbytes: payload that a rank hands over, mean.
            messages: of the parameters' length. rows: those of its ranks' first phase, for the
            set-up.
    """

    settings: Row
    phases: dict[str, Array]
    cpu: Array
    evaluations: float
    samples: float
    nbytes: float
    messages: float
    rows: tuple[Row, ...]

    @cached_property
    def iterations(self) -> Array:
        """Seconds of every outer iteration: those of the slowest rank, evaluation left out."""
        whole: Array = np.sum([self.phases[phase] for phase in TIMED], axis=0)
        longest: Array = whole.max(axis=0)
        return longest

    @property
    def seconds(self) -> float:
        """Of all iterations together, on the rank furthest on.

        Not the sum of ``iterations``: a rank that is late makes another wait in the next one, which
        would count twice.
        """
        return float(np.sum([self.phases[phase] for phase in TIMED], axis=0).sum(axis=1).max())

    @property
    def per_evaluation(self) -> float:
        """Sample gradients of all ranks in an outer iteration."""
        return self.evaluations / len(self.iterations)

    @property
    def epochs(self) -> float:
        """Epochs of work that were measured."""
        return self.evaluations / self.samples


@dataclass(frozen=True)
class Point:
    """A configuration: the runs that differ in nothing but the repetition."""

    settings: Row
    runs: tuple[Run, ...]

    @property
    def ranks(self) -> int:
        """How many."""
        return int(self.settings["ranks"])

    @property
    def method(self) -> str:
        """Its name."""
        return str(self.settings["method"])

    @property
    def first(self) -> Row:
        """A row of it, for the set-up."""
        return self.runs[0].rows[0]

    @property
    def oversubscribed(self) -> bool:
        """More ranks than cores: wall times mean little."""
        return any(row["oversubscribed"] for run in self.runs for row in run.rows)

    @cached_property
    def cost(self) -> list[Array]:
        """Rank-seconds per sample gradient, of every run."""
        return [np.array([run.seconds * self.ranks / run.evaluations]) for run in self.runs]

    @cached_property
    def per_epoch(self) -> Estimate:
        """Seconds per epoch."""
        return self.per_gradient.times(self.runs[0].samples / self.ranks)

    @cached_property
    def per_gradient(self) -> Estimate:
        """Rank-seconds per sample gradient: seconds that a rank takes for one of its own."""
        return median(self.cost)

    @cached_property
    def per_iteration(self) -> Estimate:
        """Seconds per outer iteration."""
        return median([run.iterations for run in self.runs])

    @cached_property
    def phase_cost(self) -> dict[str, float]:
        """Rank-seconds per sample gradient by phase, evaluation too: sums over sums."""
        work = sum(run.evaluations for run in self.runs)
        return {
            phase: float(sum(run.phases[phase].sum() for run in self.runs)) / work
            for phase in PHASES
        }

    @property
    def slowest(self) -> float:
        """Rank-seconds per sample gradient if every rank took as long as the slowest: sums."""
        spent = sum(float(run.iterations.sum()) for run in self.runs) * self.ranks
        return spent / sum(run.evaluations for run in self.runs)

    def share(self, *phases: str) -> float:
        """Part of the ranks' time, evaluation left out, that phases take."""
        spent = self.phase_cost
        whole = sum(spent[phase] for phase in TIMED)
        return sum(spent[phase] for phase in phases) / whole if whole else 0.0

    @property
    def communication(self) -> float:
        """Part of the ranks' time that is transfer."""
        return self.share(*COMMUNICATION)

    @property
    def compute(self) -> float:
        """Part of the ranks' time that is compute."""
        return self.share(*COMPUTE)

    def per_epoch_of(self, name: str) -> float:
        """Bytes, messages or CPU seconds of a rank in an epoch of work."""
        total = {
            "bytes": sum(run.nbytes for run in self.runs),
            "messages": sum(run.messages for run in self.runs),
            "cpu": sum(float(run.cpu.mean()) for run in self.runs),
        }[name]
        return total / sum(run.epochs for run in self.runs)


def runs(rows: Iterable[Row]) -> tuple[list[Run], int]:
    """The runs whose rows are all there, and how many are left out as theirs are not."""

    def run(row: Row) -> str:
        return json.dumps([but(row["settings"], "rank", "phase"), row["run"]], sort_keys=True)

    made = [_run(some) for some in grouped(rows, run).values()]
    return [run for run in made if run is not None], made.count(None)


def _run(rows: Sequence[Row]) -> Run | None:
    by = {(row["settings"]["rank"], row["settings"]["phase"]): row for row in rows}
    settings = but(rows[0]["settings"], "rank", "phase")
    ranks = range(settings["ranks"])
    wanted = [(rank, phase) for rank in ranks for phase in PHASES]
    if any(key not in by for key in wanted) or len({len(row["seconds"]) for row in rows}) != 1:
        return None
    phases = {
        phase: np.array([by[rank, phase]["seconds"] for rank in ranks], dtype=float)
        for phase in PHASES
    }
    if not any(phases[phase].any() for phase in TIMED):
        return None
    firsts = tuple(by[rank, PHASES[0]] for rank in ranks)
    return Run(
        settings,
        phases,
        cpu=np.array([row["cpu_seconds"] for row in firsts], dtype=np.float64),
        evaluations=float(firsts[0]["evaluations"]),
        samples=float(firsts[0]["samples"]),
        nbytes=float(np.mean([_sent([by[rank, phase] for phase in PHASES]) for rank in ranks])),
        messages=float(max(row["messages"] for row in rows)),
        rows=firsts,
    )


def _sent(rows: Sequence[Row]) -> float:
    """Payload of a rank: the phases' bytes, or what every one of them gives as the run's."""
    each = [float(row["bytes"]) for row in rows]
    return each[0] if len(set(each)) == 1 else sum(each)


def points(found: Iterable[Run]) -> list[Point]:
    """Runs by configuration."""
    alike = grouped(found, lambda run: json.dumps(but(run.settings, "repetition"), sort_keys=True))
    return [Point(json.loads(key), tuple(some)) for key, some in alike.items()]


def but(settings: Row, *names: str) -> Row:
    """Settings without some."""
    return {k: v for k, v in settings.items() if k not in names}
