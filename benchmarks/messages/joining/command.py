"""One vector message between hosts: flat or hierarchical, in 32 or 16 bits, with what it sends.

Between hosts of several ranks each that it makes on this machine, as root. Writes joining.md and
joining.jsonl; what is in joining.jsonl is not measured again.
"""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from itertools import product

from benchmarks.harness.command import Command, Namespace, Rounds
from benchmarks.harness.hosts import UNLIMITED, Hosts, bits_per_second, missing
from benchmarks.harness.measure import Job, Outcome, Piece, Session
from benchmarks.harness.mpi_settings import SETTINGS, named
from benchmarks.harness.options import chosen, names, option, several, timeout, whole
from benchmarks.harness.results import Row
from benchmarks.messages.joining.report import section
from benchmarks.messages.joining.task import WAYS


def check(options: Namespace) -> str | None:
    """Why there can be no hosts here.

    Raises:
        InputError: a link is not like 100mbit.
    """
    for link in options.links:
        if link != UNLIMITED:
            bits_per_second(link)
    return None if options.report_only else missing()


def plan(session: Session) -> Rounds:
    """A round for every place and setting, between hosts of its own; a piece for every length."""
    options = session.options
    for per_host, link, mpi in product(options.ranks_per_host, options.links, options.settings):
        job = _job(options, per_host, link, mpi)
        if session.missing([job]):
            with Hosts(options.hosts, link=link, ranks_per_host=per_host) as hosts:
                yield [replace(job, start=partial(hosts.mpirun, settings=named(mpi)))]


def _job(options: Namespace, per_host: int, link: str, mpi: str) -> Job:
    ranks = options.hosts * per_host
    base: Row = {"benchmark": "joining", "hosts": options.hosts, "ranks": ranks}
    base |= {"link": link, "mpi": mpi}
    return Job(
        task="benchmarks.messages.joining.task:task",
        ranks=ranks,
        pieces=[
            Piece(
                settings=[{**base, "parameters": n, "way": way} for way in WAYS],
                words=f"{options.hosts} x {per_host} ranks, {link}, {mpi}, {n} parameters",
                arguments={"hosts": options.hosts, "parameters": n, "repeats": options.repeats},
                keep=_keep,
            )
            for n in options.parameters
        ],
    )


def _keep(outcome: Outcome) -> tuple[list[Row], str]:
    """A row for every way."""
    found = outcome.values[0]
    shared = {"versions": found["versions"], "load": round(os.getloadavg()[0], 1)}
    return [{**found["ways"][way], **shared} for way in WAYS], "measured"


COMMAND = Command(
    name="joining",
    options=(
        whole("--hosts", 2, "", least=2),
        several("--ranks-per-host", (2, 4), "", unit="K"),
        option(
            "--links",
            type=names,
            default=("100mbit", UNLIMITED),
            metavar="RATES",
            help=f"of each host (default 100mbit,{UNLIMITED})",
        ),
        chosen("--settings", SETTINGS, ("defaults", "eager", "rabenseifner"), "of MPI", "NAMES"),
        several("--parameters", (118_282, 1_615_290), "lengths of the vector", least=0, unit="N"),
        whole("--repeats", 7, "calls of each way"),
        timeout(120.0, "seconds per size"),
    ),
    plan=plan,
    section=section,
    check=check,
)
