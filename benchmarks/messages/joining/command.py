"""One vector message between hosts: flat or hierarchical, in 32 or 16 bits, with what it sends.

Between hosts of several ranks each that it makes on this machine, as root. Writes joining.md and
joining.jsonl; what is in joining.jsonl is not measured again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

from apts_mpi.errors import InputError
from benchmarks.harness.hosts import Hosts, bits_per_second, missing
from benchmarks.harness.jobs import RunFailed
from benchmarks.harness.mpi_settings import named
from benchmarks.harness.options import names, whole_numbers
from benchmarks.harness.progress import Progress
from benchmarks.harness.results import Results, Row, origin
from benchmarks.messages.joining.report import report
from benchmarks.messages.joining.worker import MARK, WAYS

UNLIMITED = "unlimited"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument("--hosts", type=int, default=2, metavar="N", help="(default 2)")
    parser.add_argument(
        "--ranks-per-host", type=whole_numbers, default=(2, 4), metavar="K", help="(default 2,4)"
    )
    parser.add_argument(
        "--links",
        type=names,
        default=("100mbit", UNLIMITED),
        metavar="RATES",
        help=f"of each host (default 100mbit,{UNLIMITED})",
    )
    parser.add_argument(
        "--settings",
        type=names,
        default=("defaults", "eager", "rabenseifner"),
        metavar="NAMES",
        help="of MPI (default defaults,eager,rabenseifner)",
    )
    parser.add_argument(
        "--parameters",
        type=whole_numbers,
        default=(118_282, 1_615_290),
        metavar="N",
        help="lengths of the vector (default 118282,1615290)",
    )
    parser.add_argument(
        "--repeats", type=int, default=7, metavar="N", help="calls of each way (default 7)"
    )
    parser.add_argument(
        "--timeout", type=float, default=120.0, metavar="S", help="seconds a size (default 120)"
    )
    parser.add_argument("--fresh", action="store_true", help="measure again what is done")
    parser.add_argument(
        "--report-only", action="store_true", help="run nothing, write what there is"
    )


def run(parsed: argparse.Namespace) -> int:
    """Measure what is missing, write all that is there."""
    if parsed.hosts < 2 or min(parsed.ranks_per_host) < 1 or parsed.repeats < 1:
        raise InputError("--hosts must be 2 or more, --ranks-per-host and --repeats 1 or more")
    if not 0 < parsed.timeout < 1e6:
        raise InputError("--timeout must be positive")
    for link in parsed.links:
        if link != UNLIMITED:
            bits_per_second(link)
    for mpi in parsed.settings:
        named(mpi)
    out = Path(parsed.out)
    results = Results(out / "joining.jsonl", fresh=False)
    reason = None if parsed.report_only else missing()
    failures = 0
    if reason:
        print(f"skipped: {reason}")
    elif not parsed.report_only:
        failures = _measure(parsed, results)
    report(out, results.rows())
    return 1 if failures else 0


def _measure(parsed: argparse.Namespace, results: Results) -> int:
    """Run a job for every place and setting with anything missing; returns how many failed."""
    jobs = [
        (per_host, link, mpi)
        for per_host in parsed.ranks_per_host
        for link in parsed.links
        for mpi in parsed.settings
    ]
    progress, failures = Progress(len(jobs)), 0
    for per_host, link, mpi in jobs:
        base: Row = {
            "benchmark": "joining",
            "hosts": parsed.hosts,
            "ranks": parsed.hosts * per_host,
            "link": link,
            "mpi": mpi,
        }
        todo = [
            n
            for n in parsed.parameters
            if parsed.fresh or any(results.get(_settings(base, n, way)) is None for way in WAYS)
        ]
        what = f"{parsed.hosts} x {per_host} ranks, {link}, {mpi}"
        if not todo:
            progress.skip()
            continue
        asked = {"hosts": parsed.hosts, "parameters": todo, "repeats": parsed.repeats}
        try:
            with Hosts(
                parsed.hosts, link=None if link == UNLIMITED else link, ranks_per_host=per_host
            ) as hosts:
                hosts.mpirun(
                    ["-m", "benchmarks.messages.joining.worker", json.dumps(asked)],
                    timeout=parsed.timeout,
                    heard=_hear(base, results),
                    settings=named(mpi),
                )
            progress.say(what)
        except RunFailed as error:
            failures += 1
            progress.say(f"{what}: failed")
            print(f"{what}: {error}", file=sys.stderr)
    return failures


def _settings(base: Row, n: int, way: str) -> Row:
    return {**base, "parameters": n, "way": way}


def _hear(base: Row, results: Results) -> Callable[[str], bool]:
    """Takes a line of the job; answers True if it is a result."""

    def hear(line: str) -> bool:
        _, found, text = line.partition(MARK)
        if not found:
            return False
        values = json.loads(text)
        shared = {
            "versions": values["versions"],
            "load": round(os.getloadavg()[0], 1),
            **origin(),
        }
        for way, figures in values["ways"].items():
            settings = _settings(base, values["parameters"], way)
            if results.get(settings) is not None:
                results.forget([settings])
            results.add(settings, {**figures, **shared})
        return True

    return hear
