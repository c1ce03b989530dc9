"""One training loop over a part in memory or streamed, timed."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from apts_mpi.comm.communicator import Comm
from apts_mpi.data import Stream, read_info, read_partition
from apts_mpi.data.minibatches.ahead import Pair
from apts_mpi.data.minibatches.batches import Batches
from apts_mpi.data.minibatches.grouped import Indices
from apts_mpi.networks.named import build
from apts_mpi.networks.task import Task
from apts_mpi.training.flat_network import FlatNetwork
from apts_mpi.training.provenance import versions
from benchmarks.harness.results import Row
from benchmarks.harness.worker import resident

STEP = 1e-3


def task(
    comm: Comm, folder: Path, shards: str, way: str, network: str, batch: int, minibatches: int
) -> Row:
    """Time the loop, alone on its machine.

    Args:
        way: memory, cold or warm. network: none, mlp or cnn.
    """
    torch.set_num_threads(1)
    source = Path(shards)
    step = _step(network, read_info(source).sample_shape)
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


def _step(network: str, shape: tuple[int, ...]) -> Callable[[torch.Tensor, torch.Tensor], None]:
    """A step of gradient descent, after one to warm up."""
    if network == "none":
        return lambda x, y: None
    sizes: dict[str, Any] = {"mlp": {"hidden": (128, 128)}, "cnn": {"channels": (16, 32)}}[network]
    sizes = sizes if network == "mlp" else {**sizes, "hidden": ()}
    module, _ = build(network, Task("classification", shape, 10), sizes, seed=0)
    flat = FlatNetwork(module, cross_entropy)

    def step(x: torch.Tensor, y: torch.Tensor) -> None:
        flat.loss_and_gradient(x, y)
        flat.vector.sub_(flat.gradient, alpha=STEP)

    step(torch.zeros(64, *shape), torch.zeros(64, dtype=torch.int64))
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
