"""PyTorch's own DistributedDataParallel with gloo and Adam, the outside reference of ``network``.

``python -m benchmarks.messages.network.ddp_worker FILE`` on every rank, with RANK, WORLD_SIZE,
MASTER_ADDR and MASTER_PORT; FILE is JSON of one run. The network, the data, their order on a rank
and the kept figures are as our own runs have them; evaluation is not timed.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from apts_mpi import networks
from apts_mpi.data import read_info, read_partition
from apts_mpi.data.minibatches.batches import Batches
from apts_mpi.training.samples import task_of


def train(run: dict[str, Any], rank: int, ranks: int) -> dict[str, Any]:
    """One run on this rank, until the target or the end.

    Args:
        run: data, hidden, batch (of all ranks), lr, epochs, target, seed, evaluate_every (epochs).
    """
    torch.set_num_threads(1)
    directory = Path(run["data"])
    info = read_info(directory)
    parts = {}
    for split in ("train", "test"):
        part = read_partition(directory, split, rank, ranks)
        parts[split] = (torch.from_numpy(part.x), torch.from_numpy(part.y), part.total)
    x, y, total = parts["train"]
    hidden = tuple(map(int, run["hidden"].split(",")))
    module, _ = networks.build("mlp", task_of(info), {"hidden": hidden}, seed=run["seed"])
    network = DistributedDataParallel(module, gradient_as_bucket_view=True)
    optimizer = torch.optim.Adam(network.parameters(), lr=run["lr"])
    own = max(1, run["batch"] // ranks)
    # Equal parts, as DistributedSampler makes them: every rank has a minibatch in every step.
    batches = Batches(len(y), largest=len(y), batch=own, overlap=0.0, seed=run["seed"], rank=rank)
    steps = round(run["epochs"] * total / (own * ranks))
    seconds: list[float] = []
    accuracies: list[float | None] = []
    indices, evaluated_at = iter(batches), -math.inf
    dist.barrier()
    for step in range(1, steps + 1):
        start = time.perf_counter()
        chosen = torch.from_numpy(next(indices))
        optimizer.zero_grad(set_to_none=True)
        inputs, targets = x.index_select(0, chosen), y.index_select(0, chosen)
        F.cross_entropy(network(inputs), targets).backward()
        optimizer.step()
        seconds.append(time.perf_counter() - start)
        accuracies.append(None)
        epoch = step * own * ranks / total
        if step == steps or epoch - evaluated_at >= run["evaluate_every"]:
            evaluated_at = epoch
            accuracies[-1] = accuracy(module, parts["test"])
            if accuracies[-1] >= run["target"]:
                break
    n = sum(p.numel() for p in module.parameters())
    counted = range(1, len(seconds) + 1)
    return {
        "iteration_seconds": seconds,
        "epoch": [step * own * ranks / total for step in counted],
        "bytes": [4 * n * step for step in counted],
        "messages": list(counted),
        "test_accuracy": accuracies,
        "parameters": n,
        "samples": total,
        "local_steps": None,
        "rank_batch": own,
        "oversubscribed": ranks > len(os.sched_getaffinity(0)),
        "host": os.uname().nodename,
        "threads": 1,
        "device": "cpu",
        "versions": {"torch": torch.__version__, "backend": "gloo"},
    }


@torch.no_grad()
def accuracy(module: nn.Module, test: tuple[Tensor, Tensor, int]) -> float:
    """Of all ranks together; the same on every rank."""
    x, y, total = test
    right = (module(x).argmax(dim=1) == y).sum()
    dist.all_reduce(right)
    return int(right) / total


def main(path: Path) -> int:
    """Train as the file says, and write this rank's figures to its folder."""
    run = json.loads(path.read_text(encoding="utf-8"))
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    values = train(run, rank, dist.get_world_size())
    folder = Path(run["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"rank-{rank}.json").write_text(json.dumps(values), encoding="utf-8")
    dist.barrier()
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
