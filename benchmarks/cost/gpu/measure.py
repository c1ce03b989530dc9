"""Measurements of ``gpu``: outer iterations against bare loops of the same evaluations, in turns.

The bare loop is PyTorch's own: the same network with parameters of their own, ``backward`` of the
mean loss into fresh gradients, minibatches that lie ready, and no look at any result before its
end. So what the method adds includes drawing minibatches, the losses that the host decides by, and
the messages.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from apts_mpi.comm.communicator import Comm
from apts_mpi.data.minibatches.batches import Batches
from apts_mpi.networks import named
from apts_mpi.networks.losses import criterion
from apts_mpi.networks.task import Task
from apts_mpi.settings.config import TrainConfig
from apts_mpi.settings.defaults import completed
from apts_mpi.training.device import place
from apts_mpi.training.flat_network import FlatNetwork
from apts_mpi.training.optimizer import optimizer
from apts_mpi.training.provenance import versions
from apts_mpi.training.samples import Held
from apts_mpi.training.subdomain import Subdomain
from benchmarks.cost.gpu.command import CASES, STEPS, Case
from benchmarks.harness.results import Row

WARM_UP = 3  # iterations: the radius is searched, memory is taken, code is compiled
POOL = 8  # minibatches of the bare loop
MINIBATCHES = 40  # of a subdomain's part
LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx")
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")

Loss = Callable[[Tensor, Tensor], Tensor]


class Contest:
    """An outer iteration, the bare loop, and Adam's over it, each on a network of its own."""

    def __init__(self, case: Case, way: str, subdomains: int, comm: Comm, device: str) -> None:
        precision, *compiled = way.split()
        config = TrainConfig(
            batch=case.batch,
            local_steps=STEPS,
            device=device,
            threads=1,
            precision=precision,
            compile=bool(compiled),
            subdomains_per_rank=subdomains,
        )
        self.comm, self.case = comm, case
        self.device = place(config, comm, lambda line: None).device
        self.gpu = self.device.type == "cuda"
        self._autocast, self._subdomains = precision == "bf16", subdomains
        task = Task(case.kind, case.shape, case.outputs)
        self._loss = criterion(task, device=self.device).plain
        self.module, own = (
            named.build(case.network, task, case.sizes, seed=0)[0].to(self.device) for _ in range(2)
        )
        self._call = torch.compile(self.module) if compiled else self.module
        network = FlatNetwork(own, self._loss, autocast=self._autocast, compiled=bool(compiled))
        self.n, before = network.n, self._allocated()
        parts = [self._part(k) for k in range(subdomains)]
        self.held_data = self._allocated() - before
        before = self._allocated()
        samples = len(parts[0]) * subdomains * comm.size
        self._optimizer = optimizer(completed(config, comm.size, samples), network, comm)
        self._draws = [
            Subdomain(
                network,
                part,
                Batches(len(part), largest=len(part), batch=case.batch, seed=k),
                comm.clock,
            ).draw
            for k, part in enumerate(parts)
        ]
        self._pool = self._ready()
        for _ in range(WARM_UP):
            self.iterate()
        self.held = self._allocated() - before
        self.adam = torch.optim.Adam(self.module.parameters(), fused=self.gpu)
        for _ in range(2):
            self.bare()
            self.adams()

    def _part(self, number: int) -> Held:
        case, m = self.case, MINIBATCHES * self.case.batch
        make = torch.Generator().manual_seed(1000 * self.comm.rank + number)
        if case.kind == "language":
            x = torch.randint(case.outputs, (m, *case.shape), generator=make)
            y = torch.randint(case.outputs, (m, *case.shape), generator=make)
        else:
            x = torch.randn((m, *case.shape), generator=make)
            y = torch.randint(case.outputs, (m,), generator=make)
        return Held(x.to(self.device), y.to(self.device), m * self.comm.size)

    def _ready(self) -> list[tuple[Tensor, Tensor]]:
        part = self._part(0)
        b = self.case.batch
        return [part.take(np.arange(i * b, (i + 1) * b)) for i in range(POOL)]

    def iterate(self) -> None:
        """An outer iteration."""
        self._optimizer.iterate(*self._draws)

    def bare(self, after: Callable[[], object] | None = None) -> None:
        """The evaluations of an outer iteration, and no more but what is called after each."""
        for _ in range(self._subdomains):
            for i in range(STEPS):
                x, y = self._pool[i % POOL]
                for p in self.module.parameters():
                    p.grad = None
                self._mean(x, y).backward()
                if after is not None:
                    after()
            with torch.no_grad():
                self._mean(*self._pool[-1])

    def adams(self) -> None:
        """The same with a step of Adam after each gradient."""
        self.bare(self.adam.step)

    def _mean(self, x: Tensor, y: Tensor) -> Tensor:
        if not self._autocast:
            return self._loss(self._call(x), y).mean()
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            outputs = self._call(x)
        return self._loss(outputs.float(), y).mean()

    # ---- measuring -------------------------------------------------------------------------

    def timed(self, what: Callable[[], object]) -> float:
        """Seconds, the GPU's work included, of all ranks together."""
        self._wait()
        self.comm.sum_scalars((0.0,))
        start = time.perf_counter()
        what()
        self._wait()
        return time.perf_counter() - start

    def peak(self, what: Callable[[], object]) -> int:
        """The most bytes of the GPU that were in use within, beyond what was before."""
        if not self.gpu:
            return 0
        self._wait()
        torch.cuda.reset_peak_memory_stats(self.device)
        before = self._allocated()
        what()
        self._wait()
        return torch.cuda.max_memory_allocated(self.device) - before

    def counted(self, what: Callable[[], object]) -> dict[str, int]:
        """Kernels launched, copies, and waits of the host for the GPU."""
        if not self.gpu:
            return {"launches": 0, "copies": 0, "waits": 0}
        self._wait()
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
            what()
        counts = {event.key: event.count for event in found.key_averages()}
        return {
            "launches": sum(counts.get(name, 0) for name in LAUNCHES),
            "copies": counts.get("cudaMemcpyAsync", 0),
            "waits": sum(counts.get(name, 0) for name in WAITS),
        }

    def _wait(self) -> None:
        if self.gpu:
            torch.cuda.synchronize(self.device)

    def _allocated(self) -> int:
        return torch.cuda.memory_allocated(self.device) if self.gpu else 0


def task(
    comm: Comm, folder: Path, name: str, way: str, subdomains: int, device: str, repeats: int
) -> Row:
    """Measure a case on every rank, and leave nothing of it for the next."""
    row = measure(name, way, subdomains, comm, device, repeats)
    torch.compiler.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return row


def measure(name: str, way: str, subdomains: int, comm: Comm, device: str, repeats: int) -> Row:
    """A row of the table: rank 0's times, in turns with the bare loops."""
    contest = Contest(CASES[name], way, subdomains, comm, device)
    ways: dict[str, Callable[[], None]] = {
        "own": contest.iterate,
        "bare": contest.bare,
        "adam": contest.adams,
    }
    times: dict[str, list[float]] = {each: [] for each in ways}
    for _ in range(repeats):
        for each, what in ways.items():
            times[each].append(contest.timed(what))
    counts = {each: contest.counted(what) for each, what in ways.items()}
    peaks = {each: contest.peak(what) for each, what in ways.items()}
    added: dict[str, Any] = {}
    for each in ("own", "adam"):
        ratios = [a / b for a, b in zip(times[each], times["bare"], strict=True)]
        added[each] = [100.0 * (ratio - 1.0) for ratio in quantiles(ratios, n=4)]
    gpu = torch.cuda.get_device_name(contest.device) if contest.gpu else "none: a CPU"
    return {
        "gpu": gpu,
        "parameters": contest.n,
        "seconds": {each: median(values) for each, values in times.items()},
        "added": added,
        "counts": counts,
        "held": contest.held,
        "peaks": peaks,
        "threads_per_rank": 1,
        "versions": versions(),
    }
