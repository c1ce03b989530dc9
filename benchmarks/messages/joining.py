"""One vector message between hosts: flat or hierarchical, in 32 bits or fewer, with what it sends.

Between hosts of several ranks each that it makes on this machine, as root. Writes joining.md and
joining.jsonl; what is in joining.jsonl is not measured again.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from mpi4py import MPI

from apts_mpi.comm.communicator import Comm
from apts_mpi.comm.compression import COMPRESSIONS, message_for
from apts_mpi.comm.message import FusedMessage
from apts_mpi.errors import AgreedError
from apts_mpi.training.provenance import versions
from benchmarks.harness import tables
from benchmarks.harness.command import Command, Namespace, Rounds
from benchmarks.harness.hosts import INTERFACE, UNLIMITED, Hosts, bits_per_second, missing
from benchmarks.harness.measure import Job, Outcome, Piece, Session
from benchmarks.harness.mpi_settings import SETTINGS, named
from benchmarks.harness.options import chosen, names, option, several, timeout, whole
from benchmarks.harness.results import Row
from benchmarks.harness.sections import Section, Table

WAYS = tuple(f"{way} {form}" for way in ("flat", "hierarchical") for form in COMPRESSIONS)
_FLAT = WAYS[0]
_SCALARS = (1.0, 2.0, 3.0, 4.0, 5.0)
_CLOSE = {
    "none": 1e-5,
    "bf16": 0.05,
    "fp16": 0.01,
    "int8": 0.1,
    "int4": 1.0,
}  # to the sum, per rank


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
        task="benchmarks.messages.joining:task",
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


def sent() -> int:
    """Bytes that have left this host by its interface."""
    for line in Path("/proc/net/dev").read_text(encoding="ascii").splitlines():
        name, _, figures = line.partition(":")
        if name.strip() == INTERFACE:
            return int(figures.split()[8])
    return 0


class Contest:
    """All ways for a vector of n numbers, in turns.

    All ranks meet at a barrier before a call, and the slowest rank's time is the call's. The ways
    alternate in an order that rotates, so that whatever else runs meets all of them. What has left
    the hosts' network interfaces meanwhile is read before and after.
    """

    def __init__(self, n: int, comms: dict[str, Comm]) -> None:
        self.first = comms["hierarchical"].local_rank == 0
        ranks = comms["flat"].size
        vectors = torch.from_numpy(np.random.default_rng(0).normal(size=(ranks, n))).float()
        self.vector, self.sum = vectors[comms["flat"].rank].clone(), vectors.sum(dim=0)
        self.calls: dict[str, tuple[Comm, FusedMessage]] = {}
        for way in WAYS:
            comm = comms[way.split()[0]]
            message = message_for(way.split()[1], n, len(_SCALARS), torch.device("cpu"), comm)
            self.calls[way] = comm, message

    def call(self, way: str) -> tuple[float, int]:
        """Seconds and, of a host's first rank, bytes that left its host."""
        comm, message = self.calls[way]
        message.vector.copy_(self.vector)
        MPI.COMM_WORLD.Barrier()
        before = sent() if self.first else 0
        MPI.COMM_WORLD.Barrier()
        start = time.perf_counter()
        comm.sum_message(message, _SCALARS)
        seconds = time.perf_counter() - start
        MPI.COMM_WORLD.Barrier()
        return seconds, (sent() - before) if self.first else 0

    def measure(self, repeats: int) -> dict[str, dict[str, list[float]]]:
        """Seconds and bytes of every call, by way."""
        seconds, left = np.zeros((len(WAYS), repeats)), np.zeros((len(WAYS), repeats))
        for way in WAYS:
            self.call(way)
            off = float((self.calls[way][1].vector - self.sum).abs().max()) if len(self.sum) else 0
            if not off < _CLOSE[way.split()[1]] * self.calls[way][0].size:
                raise RuntimeError(f"a sum by {way} is {off} off")
        for i in range(repeats):
            for k in range(len(WAYS)):
                j = (i + k) % len(WAYS)
                seconds[j, i], left[j, i] = self.call(WAYS[j])
        MPI.COMM_WORLD.Allreduce(MPI.IN_PLACE, seconds, op=MPI.MAX)
        MPI.COMM_WORLD.Allreduce(MPI.IN_PLACE, left)
        return {
            way: {"seconds": [float(f"{x:.4g}") for x in a], "bytes_left": b.tolist()}
            for way, a, b in zip(WAYS, seconds, left, strict=True)
        }


def task(comm: Comm, folder: Path, hosts: int, parameters: int, repeats: int) -> dict[str, Any]:
    """Measure all ways for a vector of so many parameters; the ranks must be on so many hosts."""
    torch.set_num_threads(1)
    comms = {"flat": Comm(timed=False), "hierarchical": Comm(timed=False, hierarchical=True)}
    found = comms["hierarchical"].parts
    if found != hosts:
        raise AgreedError(f"the ranks are on {found} hosts, not {hosts}")
    gc.disable()
    values = Contest(parameters, comms).measure(repeats)
    gc.enable()
    return {"ways": values, "versions": versions()}


def section(rows: Sequence[Row], options: object = None) -> Section:
    """All rows there are, by place and length."""
    whole = Section(
        "Joining a vector between hosts",
        [
            "One message of a vector and five scalars, median ms of the slowest rank (quickest and "
            "slowest call in brackets), calls of all ways in turns. Ratio: the median of flat "
            "float32 by this one's, of the same run. MB: what left all hosts' network interfaces "
            "in one call, headers included, median; the vector itself is 4 bytes per number. Hosts "
            "are network namespaces of one machine, so hosts and ranks share its cores."
        ],
    )
    for hosts, ranks, link, n in sorted({_place(row) for row in rows}):
        own = [row for row in rows if _place(row) == (hosts, ranks, link, n)]
        line = ""
        if link != UNLIMITED:
            # Of one float32 vector, through the cables in both directions at once.
            seconds = 4 * n * 8 / bits_per_second(link)
            line = f"; the line itself takes {1e3 * seconds:.0f} ms for the vector"
        title = f"{n} parameters, {hosts} hosts x {ranks // hosts} ranks, {link}{line}"
        whole.below.append(Section(title, [_table(own)]))
    calls = ", ".join(sorted({str(len(row["seconds"])) for row in rows}))
    loads = [row["load"] for row in rows]
    load = f"calls of each way {calls}; load average after a size {min(loads)} to {max(loads)}"
    whole.foot.append(tables.setup(rows, load))
    return whole


def _place(row: Row) -> tuple[int, int, str, int]:
    s = row["settings"]
    return s["hosts"], s["ranks"], s["link"], s["parameters"]


def _table(rows: Sequence[Row]) -> Table:
    """A line per way and setting of MPI."""
    found = {(row["settings"]["mpi"], row["settings"]["way"]): row for row in rows}
    settings = list(dict.fromkeys(mpi for mpi, _ in found))
    body = []
    for mpi in settings:
        for way in WAYS:
            row = found.get((mpi, way))
            if row is None:
                continue
            seconds, flat = row["seconds"], found.get((mpi, _FLAT))
            middle = median(seconds)
            ratio = f"{median(flat['seconds']) / middle:.2f}" if flat else "-"
            kind, form = way.split()
            body.append(
                (
                    *(mpi, kind, "float32" if form == "none" else form),
                    f"{1e3 * middle:.1f} [{1e3 * min(seconds):.1f}, {1e3 * max(seconds):.1f}]",
                    ratio,
                    f"{median(row['bytes_left']) / 1e6:.2f}",
                )
            )
    return Table("", ("MPI settings", "way", "numbers", "ms", "ratio", "MB"), body, text=3)


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
