"""What an outer iteration costs on a GPU, beside a bare loop of the same evaluations.

Time, kernels launched, waits of the host and memory, of networks and precisions; then several ranks
on one GPU against one rank with as many subdomains. Random data that lie on the GPU. Writes gpu.md
and gpu.jsonl; what is there is not measured again.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.cost.cases import GPU, STEPS, verdict
from benchmarks.harness import tables
from benchmarks.harness.command import Command, Namespace, Rounds
from benchmarks.harness.measure import Job, Outcome, Piece, Session
from benchmarks.harness.options import chosen, option, several, timeout, whole
from benchmarks.harness.results import Row, in_order
from benchmarks.harness.sections import Section, Table, bullets

if TYPE_CHECKING:
    from apts_mpi.comm.communicator import Comm

WAYS = ("fp32", "tf32", "bf16", "bf16 compiled")  # precision, torch.compile


DEFAULT = ("resnet-20", "transformer-10M")


def plan(session: Session) -> Rounds:
    """A job for every number of ranks, as a GPU takes long to start."""
    options = session.options
    wanted = [(name, way, 1, 1) for way in options.ways for name in options.networks]
    for n in options.ranks:
        for pair in ((n, 1), (1, n)):
            wanted += [(name, options.ways[0], *pair) for name in options.networks]
    unique = list(dict.fromkeys(wanted))
    yield [
        Job(
            task="benchmarks.cost.gpu:task",
            ranks=ranks,
            pieces=[_piece(*case, options) for case in unique if case[2] == ranks],
        )
        for ranks in sorted({case[2] for case in unique})
    ]


def _piece(name: str, way: str, ranks: int, subdomains: int, options: Namespace) -> Piece:
    case = {"way": way, "subdomains": subdomains, "device": options.device}
    return Piece(
        settings=[dict(network=name, ranks=ranks, **case)],
        words=f"{name}, {way}, {ranks} ranks x {subdomains} subdomains",
        arguments={"name": name, "repeats": options.repetitions, **case},
        keep=keep,
    )


def keep(outcome: Outcome) -> tuple[list[Row], str]:
    """Rank 0's times."""
    row = outcome.values[0]
    return [row], f"{1e3 * row['seconds']['own']:.1f} ms, {row['added']['own'][1]:+.1f} %"


def task(
    comm: Comm, folder: Path, name: str, way: str, subdomains: int, device: str, repeats: int
) -> Row:
    """Measure a case on every rank, and leave nothing of it for the next."""
    import torch

    from apts_mpi.training.provenance import versions
    from benchmarks.cost.contest import added, middle, on_device

    contest = on_device(GPU[name], way, subdomains, comm, device)
    turns = list(contest.turns(repeats))
    row = {
        "gpu": torch.cuda.get_device_name(contest.device) if contest.gpu else "none: a CPU",
        "parameters": contest.own.n,
        "seconds": {each: middle(turns, each) for each in contest.ways},
        "added": {each: added(turns, each) for each in ("own", "adam")},
        "counts": {each: contest.counted(what) for each, what in contest.ways.items()},
        "held": contest.held,
        "peaks": {each: contest.peak(what) for each, what in contest.ways.items()},
        "threads_per_rank": 1,
        "versions": versions(),
    }
    del contest
    torch.compiler.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return row


def section(rows: list[Row], options: Namespace) -> Section:
    """What the rows say."""
    single = in_order((row for row in rows if _pair(row) == (1, 1)), network=GPU, way=WAYS)
    gpus = ", ".join(sorted({row["gpu"] for row in rows}))
    return Section(
        "An outer iteration on a GPU",
        [
            f"Of the default method, {STEPS} local steps, against a bare PyTorch loop of the same "
            f"evaluations ({STEPS} gradients and a forward one): the same network with parameters "
            "of their own, the mean loss's `backward` into fresh gradients, minibatches that lie "
            "ready, no result looked at. In turns within one process; medians, and quartiles of "
            "the ratio. The method draws its minibatches, looks at every loss, and sends its "
            f"messages through host memory. Random data, which lie on the GPU. GPU: {gpus}.",
            Table("", _HEADER, list(map(_line, single)), text=2),
            "Launches: kernels of an iteration; waits: of the host for the GPU. Memory, MB: held "
            "between iterations by the method and by the GPU's libraries, beyond data, parameters "
            "and gradient; and the most of an iteration beyond that, activations included, ours / "
            "the bare loop's.",
            bullets([*verdicts(single), *missing(single)]),
        ],
        [_shared(rows)],
        [tables.foot(rows, "gpu")],
    )


_HEADER = [
    *("network", "precision", "parameters", "batch", "bare, ms", "with, ms", "added, %"),
    *("Adam's step adds, %", "launches", "bare", "waits", "held, MB", "most, MB"),
]


def verdicts(rows: Sequence[Row]) -> list[str]:
    """A sentence per goal."""
    found = []
    for row in rows:
        name, way = row["settings"]["network"], row["settings"]["way"]
        if math.isfinite(goal := GPU[name].goal):
            found.append(verdict(f"{name}, {way}", row["added"]["own"][1], "% added", goal, " %"))
    return found or ["No goal is set for what was measured."]


def missing(rows: Sequence[Row]) -> list[str]:
    """A sentence of what has not been measured of the networks that have."""
    networks = dict.fromkeys(row["settings"]["network"] for row in rows)
    done = {(row["settings"]["network"], row["settings"]["way"]) for row in rows}
    left = [f"{name}, {way}" for name in networks for way in WAYS if (name, way) not in done]
    return [f"Not measured: {'; '.join(left)}."] if left else []


def _pair(row: Row) -> tuple[int, int]:
    return row["settings"]["ranks"], row["settings"]["subdomains"]


def _line(row: Row) -> list[Any]:
    s, seconds, counts = row["settings"], row["seconds"], row["counts"]
    return [
        *(s["network"], s["way"], f"{row['parameters']:,}", GPU[s["network"]].batch),
        *(f"{1e3 * seconds[each]:.1f}" for each in ("bare", "own")),
        *(tables.quartiles(row["added"][each]) for each in ("own", "adam")),
        *(counts["own"]["launches"], counts["bare"]["launches"], counts["own"]["waits"]),
        f"{row['held'] / 1e6:,.0f}",
        " / ".join(f"{row['peaks'][each] / 1e6:,.0f}" for each in ("own", "bare")),
    ]


def _shared(rows: Sequence[Row]) -> Section:
    title, lines = "Several ranks on one GPU", list[list[Any]]()
    if all(_pair(row) == (1, 1) for row in rows):
        return Section(title, ["Not measured yet."])
    found = [row for row in rows if row["settings"]["way"] == rows[0]["settings"]["way"]]
    for row in in_order(found, network=None, subdomains=None, ranks=None):
        ranks, subdomains = _pair(row)
        name, seconds = row["settings"]["network"], row["seconds"]["own"]
        each = f"{ranks * subdomains * STEPS * GPU[name].batch / seconds:,.0f}"
        lines.append([name, ranks, subdomains, f"{1e3 * seconds:.1f}", each])
    header = ["network", "ranks", "subdomains per rank", "iteration, ms", "samples per second"]
    text = (
        "As many processes on the one GPU, against one with as many subdomains one after another: "
        "the same work. An iteration, and the samples whose gradients it computes per second."
    )
    return Section(title, [text, Table("", header, lines, text=1)])


COMMAND = Command(
    name="gpu",
    options=(
        chosen("--networks", GPU, DEFAULT),
        chosen("--ways", WAYS, WAYS),
        several("--ranks", (2, 4, 8), "on one GPU"),
        option("--device", default="cuda", choices=("cuda", "cpu"), help="(default cuda)"),
        whole("--repetitions", 30, "", least=2, most=10**4),
        timeout(600.0, "seconds per case"),
    ),
    plan=plan,
    section=section,
)
