"""Whether a stream from the disk keeps a training loop fed: time, waiting, and memory.

A loop of minibatch gradients over a generated file of images, on one process: with the part read
into memory, and with the stream, from the disk and from the system's cache. Writes streaming.md and
streaming.jsonl; what is there is not measured again.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from apts_mpi.data import Source, Stream, read_partition, write_shards
from benchmarks.harness import tables
from benchmarks.harness.command import Command, Namespace, Rounds
from benchmarks.harness.measure import Job, Outcome, Piece, Session
from benchmarks.harness.options import option, whole
from benchmarks.harness.results import Row, in_order
from benchmarks.harness.sections import Section, Table
from benchmarks.harness.worker import resident

if TYPE_CHECKING:
    from torch import Tensor

    from apts_mpi.comm.communicator import Comm
    from apts_mpi.data.minibatches.ahead import Pair
    from apts_mpi.data.minibatches.grouped import Indices

SHAPE = (3, 32, 32)  # of an image, a byte per value
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {  # and their sizes
    "none": ("drawing alone", {}),
    "mlp": ("MLP 128, 128", {"hidden": (128, 128)}),
    "cnn": ("CNN 16, 32", {"channels": (16, 32), "hidden": ()}),
}
WAYS = {
    "memory": "in memory",
    "cold": "stream, from the disk",
    "warm": "stream, from the system's cache",
}
SHARDS = 4
STEP = 1e-3  # of gradient descent
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
                settings=[dict(benchmark="streaming", **sizes, **case)],
                words=f"{network}, {way}",
                arguments={"shards": str(shards), **asked, **case},
                keep=keep,
            )
            yield Job(task="benchmarks.cost.streaming:task", ranks=1, pieces=[piece])


def keep(outcome: Outcome) -> tuple[list[Row], str]:
    """What the loop took."""
    (row,) = outcome.values
    return [row], f"{1e3 * row['median']:.2f} ms, waited {row['waited']:.2f} s"


def task(
    comm: Comm, folder: Path, shards: str, way: str, network: str, batch: int, minibatches: int
) -> Row:
    """Time the loop, alone on its machine.

    Args:
        way: memory, cold or warm. network: none, mlp or cnn.
    """
    import torch

    from apts_mpi.data.minibatches.batches import Batches
    from apts_mpi.training.provenance import versions

    torch.set_num_threads(1)
    source = Path(shards)
    step = _step(network)
    for path in source.iterdir():
        _cached(path, way != "cold")
    before, start = resident(), time.perf_counter()
    take: Callable[[Indices], Pair]
    stream = stated = None
    if way == "memory":
        part = read_partition(source, "train", 0, 1)
        whole = [torch.from_numpy(part.x), torch.from_numpy(part.y)]
        batches = Batches(len(part.y), largest=len(part.y), batch=batch)

        def take(index: Indices) -> Pair:
            chosen = torch.from_numpy(index)
            x, y = (each.index_select(0, chosen).numpy() for each in whole)
            return x, y
    else:
        stream = Stream(source, "train", 0, 1)
        batches = Batches(stream.samples, largest=stream.samples, batch=batch, window=stream.window)
        stream.follow(batches)
        take, stated = stream.take, stream.memory(batches.widest)
    opened = time.perf_counter() - start
    times, waits = [], []
    own, both = time.thread_time(), time.process_time()
    for _ in range(minibatches):
        begin = time.perf_counter()
        x, y = take(next(batches))
        waits.append(time.perf_counter() - begin)
        step(torch.from_numpy(x), torch.from_numpy(y))
        times.append(time.perf_counter() - begin)
    own, both = time.thread_time() - own, time.process_time() - both
    low, middle, high = np.quantile(times, [0.25, 0.5, 0.75])
    found = {
        **{"median": middle, "low": low, "high": high, "seconds": sum(times)},
        **{"first": waits[0], "waited": sum(waits[1:]), "start": opened, "stated": stated},
        **{"cpu": own, "cpu_reader": both - own},
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before,
        "missed": stream.missed if stream else 0,
        "threads_per_rank": 1,
        "versions": versions(),
    }
    if stream is not None:
        stream.close()
    return found


def _step(network: str) -> Callable[[Tensor, Tensor], None]:
    """A step of gradient descent, after one to warm up."""
    import torch

    from apts_mpi.networks.losses import cross_entropy
    from apts_mpi.networks.named import build
    from apts_mpi.networks.task import Task
    from apts_mpi.training.flat_network import FlatNetwork

    if network == "none":
        return lambda x, y: None
    sizes = NETWORKS[network][1]
    flat = FlatNetwork(
        build(network, Task("classification", SHAPE, 10), sizes, seed=0)[0], cross_entropy
    )

    def step(x: Tensor, y: Tensor) -> None:
        flat.loss_and_gradient(x, y)
        flat.vector.sub_(flat.gradient, alpha=STEP)

    step(torch.zeros(64, *SHAPE), torch.zeros(64, dtype=torch.int64))
    return step


def _cached(path: Path, there: bool) -> None:
    """Have a file in the system's cache, or not."""
    handle = os.open(path, os.O_RDONLY)
    try:
        if there:
            while os.read(handle, 1 << 24):
                pass
        else:
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)


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
        *(NETWORKS[settings["network"]][0], WAYS[settings["way"]], f"{settings['megabytes']:,}"),
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
