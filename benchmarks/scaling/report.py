"""The table of ``strong`` and ``weak``: seconds, where they went, efficiency."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from apts_mpi.clock import PHASES
from benchmarks import tables
from benchmarks.launch import Row
from benchmarks.scaling.plan import SPLIT

NAMED = ("method", "data", "hidden", "ranks", "batch")
COUNTED = tuple(phase for phase in PHASES if phase != "evaluation")


@dataclass(frozen=True)
class Case:
    """All repetitions of one configuration.

    Attributes:
        settings: without repetition, rank and phase. runs: phase -> rank -> seconds of every outer
            iteration, one such for every repetition. first: a row, for the set-up.
        work: sample gradients of all ranks an outer iteration, by repetition.
        cpu: seconds of processor time an outer iteration, summed over ranks, by repetition.
    """

    settings: Row
    runs: tuple[dict[str, dict[int, list[float]]], ...]
    first: Row
    work: tuple[float, ...]
    cpu: tuple[float, ...]

    @property
    def ranks(self) -> int:
        """How many."""
        return int(self.settings["ranks"])

    @property
    def oversubscribed(self) -> bool:
        """Whether ranks shared cores, so that wall times say little."""
        return bool(self.first["oversubscribed"])

    def iterations(self, phases: Sequence[str] = COUNTED) -> list[list[float]]:
        """Seconds of every outer iteration, the slowest rank's, by repetition."""
        found = []
        for run in self.runs:
            by_rank = []
            for rank in range(self.ranks):
                columns = zip(*(run[phase][rank] for phase in phases), strict=True)
                by_rank.append([sum(column) for column in columns])
            found.append([max(each) for each in zip(*by_rank, strict=True)])
        return found

    def per_work(self) -> float:
        """Seconds a sample gradient: the median over repetitions of time over work."""
        times = self.iterations()
        return median(
            sum(each) / len(each) / work for each, work in zip(times, self.work, strict=True)
        )

    def share(self, *phases: str) -> float:
        """Of these phases in the time of all ranks together, evaluation left out."""
        total = part = 0.0
        for run in self.runs:
            for phase in COUNTED:
                seconds = sum(map(sum, run[phase].values()))
                total += seconds
                part += seconds if phase in phases else 0.0
        return part / total if total else 0.0


def cases(rows: Sequence[Row]) -> list[Case]:
    """The configurations that rows of runs belong to, whole runs only."""
    grouped: dict[tuple[object, ...], dict[int, dict[tuple[int, str], Row]]] = {}
    for row in rows:
        s = row["settings"]
        if s["benchmark"] in ("strong", "weak"):
            kind = grouped.setdefault(tuple(s[name] for name in NAMED), {})
            kind.setdefault(s["repetition"], {})[s["rank"], s["phase"]] = row
    made = []
    for key, repetitions in grouped.items():
        settings: Row = dict(zip(NAMED, key, strict=True))
        ranks = range(settings["ranks"])
        runs, work, cpu, first = [], [], [], None
        for found in repetitions.values():
            if len(found) < len(ranks) * len(PHASES):
                continue
            runs.append({p: {r: found[r, p]["seconds"] for r in ranks} for p in PHASES})
            first = found[0, PHASES[0]]
            iterations = len(first["seconds"])
            work.append(first["evaluations"] / iterations)
            cpu.append(sum(found[r, PHASES[0]]["cpu_seconds"] for r in ranks) / iterations)
        if first is not None:
            made.append(Case(settings, tuple(runs), first, tuple(work), tuple(cpu)))
    return sorted(made, key=lambda case: [str(case.settings[n]).rjust(12) for n in NAMED])


def efficiency(case: Case, all_cases: Sequence[Case], kind: str) -> float | None:
    """Against one rank; None where there is none, or ranks share cores.

    Strong and weak scaling alike: seconds a sample gradient on one rank, over N times those on N,
    since a rank's share of the work is what has to stay the same.
    """
    if case.oversubscribed:
        return None
    same = ("method", "data", "hidden") + (("batch",) if kind == "weak" else ())
    for base in all_cases:
        alike = all(base.settings[name] == case.settings[name] for name in same)
        if base.ranks == 1 and alike and (kind == "weak" or _same_work(base, case)):
            return base.per_work() / (case.ranks * case.per_work())
    return None


def _same_work(base: Case, case: Case) -> bool:
    """Whether an outer iteration is as much work; the control batch's part may differ."""
    return abs(median(base.work) / median(case.work) - 1.0) < 0.25


def overhead(on: Sequence[float], off: Sequence[float]) -> float:
    """What the clock adds to an outer iteration, as a share of it: medians of turns."""
    return median(on) / median(off) - 1.0


def write(path: Path, rows: Sequence[Row], kind: str) -> None:
    """Write the table of all rows."""
    found = cases(rows)
    if not found:
        tables.write(path, f"# {kind.capitalize()} scaling", "No runs yet.")
        return
    body = []
    for case in found:
        gained = efficiency(case, found, kind)
        each = [seconds for run in case.iterations() for seconds in run]
        body.append(
            [
                *(case.settings[name] for name in ("method", "hidden")),
                f"{case.ranks}{' (oversubscribed)' if case.oversubscribed else ''}",
                case.settings["batch"],
                case.first["local_steps"] or "-",
                f"{1e3 * median(each):.1f}",
                f"{case.per_work() * case.first['samples']:.3f}",
                "-" if gained is None else f"{gained:.2f}",
                *(f"{100 * case.share(*part):.1f}" for part in _PARTS.values()),
                f"{1e3 * median(case.cpu) / case.ranks:.1f}",
            ]
        )
    header = ["method", "hidden", "N", "batch", "steps", "ms", "s/epoch", "efficiency", *_PARTS]
    split = [row for row in rows if row["settings"]["benchmark"] == SPLIT]
    clock = [
        f"N = {row['settings']['ranks']}: {100 * overhead(row['on'], row['off']):.2f} %"
        for row in split
    ]
    what = {
        "strong": "The same work for every N, whose ranks divide the local steps or the minibatch.",
        "weak": "The same work a rank for every N.",
    }[kind]
    first = found[0].first
    tables.write(
        path,
        f"# {kind.capitalize()} scaling",
        f"{what} Medians; ms: an outer iteration on its slowest rank, evaluation left out; "
        f"s/epoch: {first['samples']} sample gradients; shares in percent of all ranks' time; cpu "
        "ms: of processor time a rank and iteration; efficiency: against one rank, by time per "
        "work. From oversubscribed runs, whose ranks share cores, no efficiency is drawn.",
        tables.markdown([*header, "cpu ms"], body, text=2),
        *(
            [f"What the clock costs (on and off in turn, apts-scaled): {'; '.join(clock)}."]
            if clock
            else []
        ),
        tables.setup([{**case.first, "threads_per_rank": case.first["threads"]} for case in found]),
    )


_PARTS = {
    "gradient": ("gradient",),
    "algebra": ("algebra",),
    "data": ("data",),
    "wait": ("wait",),
    "transfer": ("allreduce", "broadcast"),
    "other": ("other",),
}
