"""Runs whose ranks die at random places, and the judge of what becomes of them.

Whatever has happened: the run goes on to its end with status 0, or below ``--min-ranks`` ends with
a checkpoint and status 3; in time; no process is left; parameters are the same bit for bit on all
that are left; of every pass that is complete each sample was drawn exactly once, but for what ranks
had drawn that died before they could say so; the metrics have a row for every iteration.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from apts_mpi.data import load_source, write_shards
from apts_mpi.data.shards.partitioning import part
from tests.faults.elastic_victim import IN_RECOVERY
from tests.faults.jobs import GONE, damaged, finished, left_over

RANKS = 4
ITERATIONS = 16
TIMEOUT = 4.0  # seconds after which a rank that stands still is taken for lost
LIMIT = 150.0  # of a whole run on a busy machine
FLAGS = (
    *("--elastic", "--hidden", "8", "--threads", "1", "--batch", "60"),
    *("--epochs", "1e6", "--evaluate-every", "3", "--device", "cpu", "--checkpoint-every", "4"),
    *("--iterations", str(ITERATIONS), "--stall-warning", "2", "--stall-abort", "40"),
    *("--rank-timeout", str(TIMEOUT)),
)
STEPS = ("--local-steps", "4")
VARIANTS: tuple[tuple[str, ...], ...] = (
    STEPS,
    (*STEPS, "--subdomains-per-rank", "2"),
    (*STEPS, "--hierarchical", "on"),
    (*STEPS, "--stream", "on"),
    (*STEPS, "--compress", "int8"),
    ("--optimizer", "adamw"),
    (*STEPS, "--optimizer", "diloco"),
    ("--local-solver", "sr1", "--local-steps", "3"),
    ("--local-solver", "first-order", "--local-steps", "3", "--subdomains-per-rank", "2"),
)
ACTIONS = ("kill", "kill", "stop", "no memory", "exit", "crash")
OUTCOMES = ("went on", "stopped", "wrong")


@dataclass(frozen=True)
class Elastic:
    """One injection and what became of it.

    Attributes:
        faults: rank, action, place and number of the call, of each. variant: more flags.
        outcome: one of OUTCOMES. left: ranks at the end. seconds: of the run.
        recovery: the longest time between two rows of the metrics, in seconds.
    """

    number: int
    faults: list[dict[str, Any]]
    variant: list[str]
    fewest: int
    outcome: str
    status: int
    left: int
    seconds: float
    recovery: float
    why: str = ""


class ElasticFaults:
    """Makes runs in a folder, lets ranks die and judges.

    Args:
        folder: empty. seed: of all faults. python: runs the ranks.
    """

    def __init__(self, folder: Path, seed: int, python: str = sys.executable) -> None:
        launcher = shutil.which("mpirun")
        if launcher is None or sys.platform != "linux":
            raise RuntimeError("needs mpirun and Linux")
        self._mpirun, self._folder, self._seed, self._python = launcher, folder, seed, python
        self._data = folder / "shards"
        self._sizes = write_shards(load_source("digits"), self._data, shards=RANKS)
        self.counts = self._count()

    @property
    def data(self) -> Path:
        """The shards."""
        return self._data

    def job(self, ranks: int, words: Sequence[str | Path], *faults: dict[str, Any]) -> int | None:
        """The exit status of a run with these flags and faults."""
        planted = json.dumps(faults)
        return self._start("job", ranks, list(map(str, words)), PLANTED=planted)[0]

    def _run(self, name: str, variant: Sequence[str], **more: str) -> tuple[int | None, str, float]:
        files = ("--data", str(self._data), "--out", str(self._folder / name))
        return self._start(name, RANKS, [*FLAGS, *variant, *files], **more)

    def _start(
        self, name: str, ranks: int, words: Sequence[str], **more: str
    ) -> tuple[int | None, str, float]:
        records = self._folder / f"{name}-records"
        records.mkdir(exist_ok=True)
        command = [self._mpirun, "--with-ft", "ulfm", "-n", str(ranks), self._python]
        command += ["-m", "tests.faults.elastic_victim", *words]
        mark = {"FAULT_MARK": f"{name}-{os.getpid()}", "RECORDS": str(records)}
        return finished(command, self._folder / f"{name}.log", LIMIT, **mark, **more)

    def _count(self) -> list[dict[str, int]]:
        """How often each rank comes to each place where nobody dies."""
        status, text, _ = self._run("reference", STEPS)
        if status != 0:
            raise RuntimeError(f"the run without a fault ends with {status}: {text}")
        folder = self._folder / "reference-records"
        return [json.loads((folder / f"counts-{rank}").read_text()) for rank in range(RANKS)]

    def choose(self, number: int) -> dict[str, Any]:
        """The faults of that number: one rank or several, at once or in the recovery."""
        rng = np.random.default_rng((self._seed, number))
        variant = VARIANTS[number % len(VARIANTS)] if number % 2 else STEPS
        many = int(rng.choice([1, 1, 1, 2, 3]))
        fewest = 1 if rng.random() < 0.8 else RANKS - many + 1
        faults = []
        for k, rank in enumerate(rng.permutation(RANKS)[:many].tolist()):
            counts = {p: n for p, n in self.counts[rank].items() if n and p not in IN_RECOVERY}
            place = str(rng.choice(sorted(counts)))
            if k and rng.random() < 0.5:
                place = str(rng.choice(IN_RECOVERY))
                counts[place] = 1
            call = int(rng.integers(1, counts[place] + 1))
            action = str(rng.choice(ACTIONS))
            faults.append({"action": action, "place": place, "rank": rank, "number": call})
        return {"faults": faults, "variant": list(variant), "fewest": fewest}

    def run(self, numbers: Iterable[int]) -> list[Elastic]:
        """The runs of these numbers."""
        return [self._one(number) for number in numbers]

    def _one(self, number: int) -> Elastic:
        chosen, name = self.choose(number), f"run-{number}"
        variant = [*chosen["variant"], "--min-ranks", str(chosen["fewest"])]
        planted = json.dumps(chosen["faults"])
        status, text, seconds = self._run(name, variant, PLANTED=planted)
        left, run = left_over(f"{name}-{os.getpid()}"), self._folder / name
        records, why, ends = self._folder / f"{name}-records", "", 0
        if status is None:
            why = f"no end within {LIMIT:.0f} s"
        elif left:
            why = f"{len(left)} processes are left {GONE:.0f} s after the end"
        elif status == 3:
            if chosen["fewest"] == 1 or "checkpoint" not in text:
                why = "status 3 without a checkpoint"
        elif status:
            early = "before training began" in text and chosen["fewest"] > 1
            why = "" if early else f"status {status}"
        else:
            sums = [path.read_text() for path in records.glob("end-*")]
            ends = len(sums)
            why = self._at_end(run, sums)
        if not why:
            why = damaged(run) or ("" if status else self._accounted(records))
        outcome = "wrong" if why else {0: "went on"}.get(status or 0, "stopped")
        found = Elastic(
            number,
            **chosen,
            outcome=outcome,
            status=-1 if status is None else status,
            left=ends,
            seconds=round(seconds, 2),
            recovery=_longest(records),
            why=why and f"{why}: {text[-3000:]}",
        )
        if not why:
            for path in (run, records):
                shutil.rmtree(path, ignore_errors=True)
        return found

    def _at_end(self, run: Path, sums: Sequence[str]) -> str:
        """What is wrong with what a run has left that came to its end."""
        if not (run / "summary.json").exists():
            return "status 0 without a summary"
        if not sums or len(set(sums)) > 1:
            return f"parameters {sums} differ"
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        if [row["iteration"] for row in rows] != list(range(1, ITERATIONS + 1)):
            return f"rows of iterations {[row['iteration'] for row in rows]}"
        summary = json.loads((run / "summary.json").read_text())
        if summary["ranks"] != summary["lost_ranks"][-1]["left"] if summary["lost_ranks"] else 0:
            return f"{summary['ranks']} ranks after {summary['lost_ranks']}"
        return ""

    def _accounted(self, records: Path) -> str:
        """Whether each sample of every pass was drawn exactly once, by what the ranks recorded."""
        lines = []
        for path in records.glob("drawn-*"):
            for text in path.read_text().splitlines():
                lines.append(json.loads(text))
        last = dict[int, int]()
        for line in lines:
            last[line["iteration"]] = max(last.get(line["iteration"], 0), line["losses"])
        shards = self._sizes.splits["train"].sizes
        counts, silent = dict[int, Counter[int]](), 0
        for iteration in last:
            valid = [
                line
                for line in lines
                if line["iteration"] == iteration and line["losses"] == last[iteration]
            ]
            parts, said = valid[0]["parts"], set[int]()
            for line in valid:
                for number, rank, index in line["drawn"]:
                    start, _ = part(shards, rank, parts)
                    counts.setdefault(number, Counter()).update(start + i for i in index)
                    said.add(rank)
            silent += len(said) < parts
        most = max(counts, default=0)
        for number, counter in counts.items():
            twice = sum(1 for many in counter.values() if many > 1)
            if twice:
                return f"{twice} samples of pass {number} were drawn more than once"
            if number < most and not silent and len(counter) < sum(shards):
                return f"{sum(shards) - len(counter)} samples of pass {number} were not drawn"
        return ""


def _longest(records: Path) -> float:
    """The longest time between two iterations that a rank which was there to the end completed."""
    longest = 0.0
    for path in records.glob("end-*"):
        drawn = records / path.name.replace("end", "drawn")
        times = [json.loads(line)["time"] for line in drawn.read_text().splitlines()]
        longest = max([longest, *(b - a for a, b in pairwise(times))])
    return round(longest, 3)


def _has(action: str, injection: Elastic) -> bool:
    return any(fault["action"] == action for fault in injection.faults)


def table(results: Sequence[Elastic]) -> str:
    """Injections by what happened, how they ended and how long the gap was, in Markdown."""
    head = [
        "what happened",
        "injections",
        *OUTCOMES,
        "seconds without an iteration, median",
        "most",
    ]
    kinds: dict[str, Callable[[Elastic], bool]] = {
        "one rank": lambda each: len(each.faults) == 1,
        "several": lambda each: len(each.faults) > 1,
        "one in a recovery": lambda each: any(f["place"] in IN_RECOVERY for f in each.faults),
        **{action: partial(_has, action) for action in dict.fromkeys(ACTIONS)},
        "all": lambda each: True,
    }
    rows = [head]
    for kind, belongs in kinds.items():
        own = [each for each in results if belongs(each)]
        if own:
            counts = Counter(each.outcome for each in own)
            gaps = [each.recovery for each in own if each.outcome == "went on"] or [0.0]
            cells = [str(counts[outcome]) for outcome in OUTCOMES]
            times = [f"{float(np.median(gaps)):.2f}", f"{max(gaps):.2f}"]
            rows.append([kind, str(len(own)), *cells, *times])
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "| --- |" + " ---: |" * (len(head) - 1), *lines[1:]])
