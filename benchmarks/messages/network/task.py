"""A training run between hosts until it has reached an accuracy: ours, and PyTorch's own.

What is kept of both is the same, by outer iteration; evaluation is not timed.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from apts_mpi.comm.communicator import Comm
from apts_mpi.data import read_info, read_partition
from apts_mpi.data.minibatches.batches import Batches
from apts_mpi.data.shards.reading import Partition
from apts_mpi.networks import named
from apts_mpi.training.loop import Lap
from apts_mpi.training.provenance import versions
from apts_mpi.training.samples import task_of
from apts_mpi.trust_region.polar import polar_factors
from benchmarks.harness.worker import training

# Of an outer iteration; the accuracy is None where there was no evaluation.
COLUMNS = ("iteration_seconds", "epoch", "bytes", "messages", "test_accuracy")


class Reached(Exception):
    """The target is; all ranks see the same accuracy."""


def ours(comm: Comm, folder: Path, line: list[str], target: float) -> dict[str, Any]:
    """A run of the program with these arguments."""
    run = training([*line, "--out", str(folder / "run"), "--checkpoint-every", "off"], comm)
    rows: list[Sequence[float | None]] = []

    def heard(row: dict[str, Any], lap: Lap, rest: Lap) -> None:
        traffic, accuracy = comm.traffic, row.get("test_accuracy")
        # Evaluation is not timed; finding the number of local steps is.
        pacing = 0.0 if rows else run.built.seconds_pacing
        spent = sum(lap.values()) + rest["other"] + pacing
        rows.append(
            (spent, row["epoch"], traffic.bytes_allreduced, traffic.vector_allreduces, accuracy)
        )
        if accuracy is not None and accuracy >= target:
            raise Reached

    with suppress(Reached):
        run.run(heard)
    return {
        **_record(rows, comm),
        "parameters": run.built.network.n,
        "samples": run.built.samples,
        "local_steps": run.built.config.local_steps,
        "rank_batch": run.built.config.batch,
        "versions": versions(),
    }


def ddp(comm: Comm, folder: Path, interface: str, **run: Any) -> dict[str, Any]:
    """PyTorch's own DistributedDataParallel with gloo, the reference from outside.

    The network, the data and their order on a rank are as our own runs have them. MPI only starts
    the ranks.

    Args:
        interface: between the hosts. run: as ``_train`` takes it.
    """
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = interface
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=comm.rank, world_size=comm.size)
    values = _train(comm, **run)
    dist.barrier()
    dist.destroy_process_group()
    return values


def _train(
    comm: Comm,
    data: str,
    hidden: str,
    optimizer: str,
    batch: int,
    lr: float,
    epochs: float,
    seed: int,
    evaluate_every: float,
    target: float,
) -> dict[str, Any]:
    """One run on this rank, until the target or the end.

    Args:
        data: folder of the shards. optimizer: one of OPTIMIZERS. batch: samples of all ranks.
        evaluate_every: epochs.
    """
    directory, rank, ranks = Path(data), comm.rank, comm.size
    test, part = (read_partition(directory, split, rank, ranks) for split in ("test", "train"))
    x, y, total = torch.from_numpy(part.x), torch.from_numpy(part.y), part.total
    layers = {"hidden": tuple(map(int, hidden.split(",")))}
    module, _ = named.build("mlp", task_of(read_info(directory)), layers, seed=seed)
    n = sum(p.numel() for p in module.parameters())
    network = DistributedDataParallel(module, gradient_as_bucket_view=True)
    optimizers = OPTIMIZERS[optimizer](list(module.parameters()), lr)
    own = max(1, batch // ranks)
    # Equal parts, as DistributedSampler makes them: every rank has a minibatch in every step.
    order = iter(Batches(len(y), largest=len(y), batch=own, overlap=0.0, seed=seed, rank=rank))
    steps = round(epochs * total / (own * ranks))
    rows: list[Sequence[float | None]] = []
    evaluated_at = -math.inf
    dist.barrier()
    for step in range(1, steps + 1):
        start = time.perf_counter()
        chosen = torch.from_numpy(next(order))
        network.zero_grad(set_to_none=True)
        inputs, targets = x.index_select(0, chosen), y.index_select(0, chosen)
        F.cross_entropy(network(inputs), targets).backward()
        for each in optimizers:
            each.step()
        spent, epoch, found = time.perf_counter() - start, step * own * ranks / total, None
        if step == steps or epoch - evaluated_at >= evaluate_every:
            evaluated_at, found = epoch, accuracy(module, test)
        rows.append((spent, epoch, 4 * n * step, step, found))
        if found is not None and found >= target:
            break
    return {
        **_record(rows, comm),
        **{"parameters": n, "samples": total, "local_steps": None, "rank_batch": own},
        "versions": {"torch": torch.__version__, "backend": "gloo"},
    }


def _adam(parameters: list[nn.Parameter], lr: float) -> list[torch.optim.Optimizer]:
    return [torch.optim.Adam(parameters, lr=lr)]


def _with_muon(parameters: list[nn.Parameter], lr: float) -> list[torch.optim.Optimizer]:
    """Of all matrices but the last, with updates of Adam's length; Adam for the others.

    Polar factors are our own, in float32: torch computes the same iteration in bfloat16, for which
    many a processor has no instructions (measured: six times as long a product with AVX2 alone).
    """
    from torch.optim import _muon  # which older versions of torch lack

    assert hasattr(_muon, "_zeropower_via_newtonschulz"), "torch has another Muon: see to it"
    _muon._zeropower_via_newtonschulz = lambda x, *_: polar_factors([x])[0]
    hidden = [each for each in parameters if each.dim() == 2][:-1]
    others = [each for each in parameters if not any(each is one for one in hidden)]
    muon = torch.optim.Muon(hidden, lr=lr, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    return [muon, *_adam(others, lr)]


OPTIMIZERS = {"adam": _adam, "muon": _with_muon}


@torch.no_grad()
def accuracy(module: nn.Module, test: Partition) -> float:
    """Of the test samples of all ranks together; the same on every rank."""
    right = (module(torch.from_numpy(test.x)).argmax(dim=1) == torch.from_numpy(test.y)).sum()
    dist.all_reduce(right)
    return int(right) / test.total


def _record(rows: Sequence[Sequence[float | None]], comm: Comm) -> dict[str, Any]:
    """What is known of any run on this rank."""
    columns = dict(zip(COLUMNS, map(list, zip(*rows, strict=True)), strict=True))
    # All hosts are on this machine, and their ranks share its cores.
    oversubscribed = comm.size > len(os.sched_getaffinity(0))
    more = {"host": comm.host, "threads": 1, "device": "cpu", "oversubscribed": oversubscribed}
    return {**columns, **more}
