"""An outer iteration against loops that make the same evaluations without the method, in turns.

One loop is bare, the other makes a step of torch's Adam after each gradient; they have a network of
their own, which begins every turn where the method's is.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median, quantiles

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

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
from apts_mpi.training.samples import Held
from apts_mpi.training.subdomain import Subdomain
from apts_mpi.trust_region.objective import Draw, Objective
from benchmarks.cost.cases import STEPS, Case
from benchmarks.cost.memory import bytes_held

SAMPLES = 60_000  # of a training set, for the defaults
POOL = 64  # minibatches that are drawn from in turn
READY, MINIBATCHES = 8, 40  # on a GPU: those of the loops, and of a subdomain's part
WARM_UP = 3  # iterations: the radius is searched, memory is taken, code is compiled
LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx")
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")

Call = tuple[int, bool]  # number of a minibatch, and whether the gradient was wanted
Seconds = tuple[float, float]  # of wall, and of the processor


@dataclass(kw_only=True)
class Contest:
    """The method on a network, and the loops on another.

    Attributes:
        samples: of the training set, for the defaults. own: the method's network.
        draws: its minibatches. module: the loops' network. evaluate: makes one of their calls.
        calls: of an outer iteration, which the loops make. fixed: whether they are always the same;
            otherwise ``draws`` record them.
        config: given, then completed. held, adam_held: bytes of the two between iterations.
    """

    config: TrainConfig
    comm: Comm
    samples: int
    own: FlatNetwork
    draws: Sequence[Draw]
    module: nn.Module
    evaluate: Callable[[int, bool], object]
    calls: list[Call]
    fixed: bool

    def __post_init__(self) -> None:
        self.device = self.own.vector.device
        self.gpu = self.device.type == "cuda"
        self.config = completed(self.config, self.comm.size, self.samples)
        before = self._allocated()
        self.method = optimizer(self.config, self.own, self.comm, "classification")
        for _ in range(WARM_UP):
            self.iterate()
        self.held = self._allocated() - before
        self._adam = torch.optim.Adam(self.module.parameters(), fused=self.gpu)
        self.bare()
        before = self._allocated()
        self.adam()
        self.adam_held = self._allocated() - before
        self.ways = {"own": self.iterate, "bare": self.bare, "adam": self.adam, "keep": self.keep}

    def iterate(self) -> None:
        """An outer iteration of the method."""
        if not self.fixed:
            self.calls.clear()
        self.method.iterate(*self.draws)

    def bare(self, after: Callable[[], object] | None = None) -> None:
        """The evaluations of an outer iteration, and what is called after each gradient."""
        for number, with_gradient in self.calls:
            self.evaluate(number, with_gradient)
            if with_gradient and after is not None:
                after()

    def adam(self) -> None:
        """The same with a step of Adam after each gradient."""
        self.bare(self._adam.step)

    def keep(self) -> None:
        """What ``--elastic`` adds to an iteration: a copy of what all ranks have alike."""
        self._kept = self.own.vector.clone(), self.method.shared_state()

    # ---- measuring -------------------------------------------------------------------------

    def turns(self, repetitions: int) -> Iterator[dict[str, Seconds]]:
        """Seconds by way, all in turn, again and again; the calls are the last turn's."""
        for _ in range(repetitions):
            with torch.no_grad():
                for p, q in zip(
                    self.module.parameters(), self.own.module.parameters(), strict=True
                ):
                    p.copy_(q)
            yield {way: self._timed(what) for way, what in self.ways.items()}

    def _timed(self, what: Callable[[], object]) -> Seconds:
        self._wait()
        self.comm.sum_scalars((0.0,))  # all ranks together
        wall, processor = time.perf_counter(), time.process_time()
        what()
        self._wait()
        return time.perf_counter() - wall, time.process_time() - processor

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

    def operations(self) -> float:
        """Percent that an iteration adds to the loop's in products and convolutions."""
        counts = []
        for what in (self.iterate, self.bare):
            counter = FlopCounterMode(display=False)
            with sdpa_kernel(SDPBackend.MATH), counter:  # fused attention is not counted everywhere
                what()
            counts.append(counter.get_total_flops())
        return 100.0 * (counts[0] / counts[1] - 1.0)

    def _wait(self) -> None:
        if self.gpu:
            torch.cuda.synchronize(self.device)

    def _allocated(self) -> int:
        return torch.cuda.memory_allocated(self.device) if self.gpu else bytes_held()


def middle(turns: Sequence[dict[str, Seconds]], way: str) -> float:
    """Median seconds of wall."""
    return median(seconds[way][0] for seconds in turns)


def of_iterations(turns: Sequence[dict[str, Seconds]], way: str) -> list[float]:
    """Quartiles of what a way takes of the method's iteration, in percent of wall time."""
    shares = [100.0 * seconds[way][0] / seconds["own"][0] for seconds in turns]
    return quantiles(shares, n=4)


def added(turns: Sequence[dict[str, Seconds]], way: str, clock: int = 0) -> list[float]:
    """Quartiles of what a way adds to the bare loop in percent; clock 1 is the processor's."""
    ratios = [seconds[way][clock] / seconds["bare"][clock] for seconds in turns]
    return [100.0 * (ratio - 1.0) for ratio in quantiles(ratios, n=4)]


# ---- what competes -------------------------------------------------------------------------


def recorded(case: Case, solver: str, comm: Comm) -> Contest:
    """A local solver on minibatches that lie ready; the loops make the same calls again.

    They do so through the same kind of network: the ratio is what the method adds to its calls.
    """
    torch.set_num_threads(1)
    loss = criterion(_task(case), device=torch.device("cpu")).plain
    own, again = (FlatNetwork(_module(case), loss) for _ in range(2))
    xs, ys = _random(case, POOL * case.batch, comm.rank)
    pool = list(zip(xs.split(case.batch), ys.split(case.batch), strict=True))
    numbers, calls = itertools.cycle(range(POOL)), list[Call]()

    def call(network: FlatNetwork, number: int, with_gradient: bool) -> float:
        return (network.loss_and_gradient if with_gradient else network.loss)(*pool[number])

    def draw() -> tuple[Objective, int]:
        number = next(numbers)

        def objective(with_gradient: bool) -> float:
            calls.append((number, with_gradient))
            return call(own, number, with_gradient)

        return objective, case.batch

    return Contest(
        config=TrainConfig(local_solver=solver, batch=case.batch, local_steps=case.steps),
        comm=comm,
        samples=SAMPLES,
        own=own,
        draws=[draw],
        module=again.module,
        evaluate=partial(call, again),
        calls=calls,
        fixed=False,
    )


def on_device(case: Case, way: str, subdomains: int, comm: Comm, device: str) -> Contest:
    """The default method in a precision, compiled or not, against PyTorch's own loops.

    These take ``backward`` of the mean loss into fresh gradients, minibatches that lie ready, and
    do not look at any result before their end. So what the method adds includes drawing
    minibatches, the losses that the host decides by, and the messages.
    """
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
    where, autocast = place(config, comm, lambda line: None).device, precision == "bf16"
    loss = criterion(_task(case), device=where).plain
    own, module = (_module(case).to(where) for _ in range(2))
    called = torch.compile(module) if compiled else module
    network = FlatNetwork(own, loss, autocast=autocast, compiled=bool(compiled))
    m = MINIBATCHES * case.batch
    parts, draws = [], []
    for k in range(subdomains):
        x, y = _random(case, m, 1000 * comm.rank + k)
        parts.append(Held(x.to(where), y.to(where), m * comm.size))
        order = Batches(m, largest=m, batch=case.batch, seed=k)
        draws.append(Subdomain(network, parts[k], order, comm.clock).draw)
    ready = [parts[0].take(i) for i in np.arange(READY * case.batch).reshape(READY, -1)]

    def mean(x: Tensor, y: Tensor) -> Tensor:
        if not autocast:
            return loss(called(x), y).mean()
        with torch.autocast(where.type, dtype=torch.bfloat16):
            outputs = called(x)
        return loss(outputs.float(), y).mean()

    def evaluate(number: int, with_gradient: bool) -> None:
        if not with_gradient:
            with torch.no_grad():
                mean(*ready[number])
            return
        module.zero_grad()
        mean(*ready[number]).backward()

    return Contest(
        config=config,
        comm=comm,
        samples=m * subdomains * comm.size,
        own=network,
        draws=draws,
        module=module,
        evaluate=evaluate,
        calls=[*((i % READY, True) for i in range(STEPS)), (READY - 1, False)] * subdomains,
        fixed=True,
    )


def _task(case: Case) -> Task:
    return Task(case.kind, case.shape, case.outputs)


def _module(case: Case) -> nn.Module:
    return named.build(case.network, _task(case), case.sizes, seed=0)[0]


def _random(case: Case, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """So many samples and targets."""
    make = torch.Generator().manual_seed(seed)
    if case.kind == "language":
        x, y = (torch.randint(case.outputs, (count, *case.shape), generator=make) for _ in range(2))
        return x, y
    x = torch.randn((count, *case.shape), generator=make)
    return x, torch.randint(case.outputs, (count,), generator=make)
