"""What the tests of several subdomains a rank run: ``mpirun -n 4 python subdomain_programs.py``.

The same subdomains on 4, 2 and 1 ranks: the same run, but for the order of summation.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch
from mpi4py import MPI

from apts_mpi.__main__ import guarded
from apts_mpi.cli.main import train_settings
from apts_mpi.comm.communicator import Comm
from apts_mpi.training.loop import Training

SMALL = ["--hidden", "12", "--threads", "1", "--iterations", "2", "--checkpoint-every", "off"]
WAYS = {
    "scaled": ["--batch", "40", "--local-steps", "5"],
    "spectral": ["--local-solver", "spectral", "--batch", "40", "--local-steps", "5"],
    "sr1": ["--local-solver", "sr1", "--batch", "120"],
    "whole": ["--local-solver", "sr1"],
    "summed": ["--local-solver", "first-order", "--join", "sum", "--consistency", "off"],
    "plain": ["--local-solver", "first-order", "--consistency", "off", "--global-step", "off"],
}
MATCHED = ("iteration", "epoch", "accepted", "local_accepted", "local_tried")


def on(ranks: int, subdomains: int, out: str, flags: list[str]) -> dict[str, Any] | None:
    """A run on the first ranks; its parameters and summary, None on the others."""
    world = MPI.COMM_WORLD
    group = world.Split(0 if world.Get_rank() < ranks else 1, world.Get_rank())
    if world.Get_rank() >= ranks:
        return None
    many = ["--subdomains-per-rank", str(subdomains), "--out", f"{out}-{ranks}x{subdomains}"]
    training = Training(train_settings([*SMALL, *flags, *many]), Comm(group))
    rows: list[dict[str, Any]] = []
    summary = training.run(lambda row, lap, rest: rows.append(dict(row)))
    return {"vector": training.built.network.vector.clone(), "rows": rows, "summary": summary}


def the_same_subdomains_on_fewer_ranks() -> None:
    """Iterates agree to rounding, the scalars that decide as well; messages are as many."""
    for name, flags in WAYS.items():
        numbers = (4, 2, 1) if name in ("scaled", "sr1") else (4, 1)
        runs = [on(ranks, 4 // ranks, name, flags) for ranks in numbers]
        if MPI.COMM_WORLD.Get_rank():
            continue
        one, *others = [run for run in runs if run is not None]
        moved = float(torch.linalg.vector_norm(one["vector"]))
        for other in others:
            apart = float(torch.linalg.vector_norm(one["vector"] - other["vector"]))
            assert apart < 1e-4 * moved, (name, apart, moved)
            for row, same in zip(one["rows"], other["rows"], strict=True):
                assert all(row[key] == same[key] for key in MATCHED), (name, row, same)
                assert np.isclose(row["loss"], same["loss"], rtol=1e-4), (name, row, same)
                assert np.isclose(row["radius"], same["radius"], rtol=1e-3), (name, row, same)
            for figure in ("vector_allreduces", "gradient_evaluations"):
                assert other["summary"][figure] == one["summary"][figure], (name, figure)
    MPI.COMM_WORLD.Barrier()


def two_on_one_rank_are_two_ranks() -> None:
    """A sum of two is the same in any order: bit for bit."""
    for name, flags in WAYS.items():
        if name in ("whole", "plain"):
            continue  # which differ from others in what is the same there
        two, one = (on(ranks, 2 // ranks, f"{name}-pair", flags) for ranks in (2, 1))
        if two is not None and one is not None:
            assert torch.equal(two["vector"], one["vector"]), name
            told = [
                {k: v for k, v in row.items() if not k.startswith("seconds")}
                for run in (two, one)
                for row in run["rows"]
            ]
            half = len(told) // 2
            assert repr(told[:half]) == repr(told[half:]), name
    MPI.COMM_WORLD.Barrier()


def work() -> int:
    """Run the functions that are named."""
    for name in sys.argv[1:]:
        globals()[name]()
        print(f"done {name}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(guarded(work))
