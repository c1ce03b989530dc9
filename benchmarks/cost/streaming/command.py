"""Whether a stream from the disk keeps a training loop fed: time, waiting, and memory.

A loop of minibatch gradients over a generated file of images, on one process: with the part read
into memory, and with the stream, from the disk and from the system's cache. Writes streaming.md and
streaming.jsonl; what is there is not measured again.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from apts_mpi.data import Source, write_shards
from benchmarks.harness import tables
from benchmarks.harness.command import Command, Namespace, Rounds
from benchmarks.harness.measure import Job, Outcome, Piece, Session
from benchmarks.harness.options import option, whole
from benchmarks.harness.results import Row, in_order, versioned
from benchmarks.harness.sections import Section, Table

SHAPE = (3, 32, 32)  # of an image, a byte per value
NETWORKS = {"none": "drawing alone", "mlp": "MLP 128, 128", "cnn": "CNN 16, 32"}
WAYS = {
    "memory": "in memory",
    "cold": "stream, from the disk",
    "warm": "stream, from the system's cache",
}
SHARDS = 4
SIZES = ("megabytes", "minibatches", "batch")


def plan(session: Session) -> Rounds:
    """A job, a process of its own, for every network and way: the most memory is a process's."""
    shards = session.folder / "shards"
    jobs = list(_jobs(session, shards))
    if session.missing(jobs) and not shards.exists():
        _write(shards, session.options.megabytes)
    yield jobs


def _jobs(session: Session, shards: Path) -> Iterator[Job]:
    sizes = {name: getattr(session.options, name) for name in SIZES}
    for network in NETWORKS:
        for way in WAYS:
            case = {"network": network, "way": way}
            asked = {name: sizes[name] for name in ("batch", "minibatches")}
            piece = Piece(
                settings=[versioned(**sizes, **case)],
                words=f"{network}, {way}",
                arguments={"shards": str(shards), **asked, **case},
                keep=keep,
            )
            yield Job(task="benchmarks.cost.streaming.task:task", ranks=1, pieces=[piece])


def keep(outcome: Outcome) -> tuple[list[Row], str]:
    """What the loop took."""
    (row,) = outcome.values
    return [row], f"{1e3 * row['median']:.2f} ms, waited {row['waited']:.2f} s"


def _write(directory: Path, megabytes: int) -> None:
    """Random images in so many megabytes, which no file system can pack."""
    samples = max(megabytes * 10**6 // int(np.prod(SHAPE)), 16)
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, size=(samples, *SHAPE), dtype=np.uint8)
    y = rng.integers(0, 10, size=samples)
    classes = tuple("0123456789")
    write_shards(Source("random", x, y, x[:10], y[:10], classes), directory, shards=SHARDS)


def section(rows: list[Row], options: Namespace) -> Section:
    """What the rows say."""
    header = ["loop", "data", "file, MB", "ms per minibatch", "quartiles", "ms on average"]
    header += ["loop's CPU, ms", "reader's CPU, ms"]
    header += ["waited, s", "of, s", "first, s", "memory, MB", "stated, MB", "start, s"]
    rows = in_order(rows, network=NETWORKS, way=WAYS)
    return Section(
        "Is the loop fed?",
        [
            "Gradients of minibatches of uint8 images (3, 32, 32) on one process, torch with one "
            "thread, the reading thread beside it. Median time of a minibatch, drawn and computed; "
            "its mean, and that of the processor's time for the loop and for the reading thread; "
            "the seconds of the loop that it waited for data, the first minibatch aside, for which "
            "the first group is read; the most memory that the process took, with what the loop "
            "computes, beyond what it had before it opened the data, and the bound that the stream "
            "states for itself. Start: reading the part, or opening the shards.",
            Table("", header, list(map(_line, rows)), text=2),
            tables.foot(rows, "streaming"),
        ],
    )


def _line(row: Row) -> list[Any]:
    settings, stated = row["settings"], row["stated"]
    return [
        *(NETWORKS[settings["network"]], WAYS[settings["way"]], f"{settings['megabytes']:,}"),
        f"{1e3 * row['median']:.2f}",
        " to ".join(f"{1e3 * row[name]:.2f}" for name in ("low", "high")),
        *(
            f"{1e3 * row[n] / settings['minibatches']:.2f}"
            for n in ("seconds", "cpu", "cpu_reader")
        ),
        *(f"{row[name]:.{digits}f}" for name, digits in (("waited", 2), ("seconds", 1))),
        *(f"{row['first']:.2f}", f"{row['memory'] / 1e6:,.0f}"),
        *("-" if stated is None else f"{stated / 1e6:.0f}", f"{row['start']:.2f}"),
    ]


COMMAND = Command(
    name="streaming",
    options=(
        whole("--megabytes", 2000, "of the file"),
        whole("--minibatches", 3000, "of a loop"),
        whole("--batch", 64, ""),
        option(
            "--folder", metavar="DIR", help="for the file, to measure its disk (default /tmp's)"
        ),
    ),
    plan=plan,
    section=section,
)
