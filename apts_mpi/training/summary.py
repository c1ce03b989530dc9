"""What a run shows, and what it leaves behind in numbers: progress, summary, closing table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from apts_mpi.comm.clock import COMMUNICATION
from apts_mpi.comm.communicator import Comm
from apts_mpi.method.options import BASELINES
from apts_mpi.training.build import Run
from apts_mpi.training.console import JUDGED, aligned, judged, shown_loss
from apts_mpi.training.provenance import git_commit, versions


def summarise(run: Run, *, seconds_total: float, results: dict[str, Any]) -> dict[str, Any]:
    """The contents of ``summary.json``; ``oversubscribed`` is of this rank's host.

    ``seconds_X`` are maxima over ranks; ``seconds_X_min`` and ``seconds_X_mean`` stand beside.
    """
    config, comm, where = run.config, run.comm, run.placement
    traffic = comm.traffic  # read before the messages below add to it
    sent = {
        "vector_allreduces": traffic.vector_allreduces,
        "scalar_allreduces": traffic.scalar_allreduces,
        "bytes_allreduced": traffic.bytes_allreduced,
    }
    clock = comm.clock
    clock.lap()  # books what is open
    spent = dict(clock.seconds)
    del spent["other"]  # what is in no phase, start-up before the clock included
    seconds = {
        "total": seconds_total,
        "compute": spent["gradient"] + spent["algebra"],
        "communication": sum(spent[phase] for phase in COMMUNICATION),
        **spent,
        "other": max(seconds_total - sum(spent.values()), 0.0),
    }
    return {
        "optimizer": config.optimizer,
        "local_solver": None if config.optimizer in BASELINES else config.local_solver,
        "network": config.network,
        "parameters": run.network.n,
        "dataset": run.info.name,
        "ranks": comm.size,
        "subdomains_per_rank": config.subdomains_per_rank,
        "threads_per_rank": where.threads,
        "oversubscribed": where.oversubscribed,
        "device": where.device.type,
        "seed": config.seed,
        "passes": run.subdomains[0].batches.passes,
        "evaluate_samples": config.evaluate_samples,
        # What is best on the test samples would be chosen by them.
        "best_test_accuracy": None,
        **results,
        **sent,
        **_over_ranks(seconds, comm),
        "versions": versions(),
        "git_commit": git_commit(),
    }


def _over_ranks(seconds: dict[str, float], comm: Comm) -> dict[str, float]:
    own = list(seconds.values())
    extremes = np.array(own + [-value for value in own])
    comm.maximum(extremes)
    sums = [total for i in range(0, len(own), 8) for total in comm.sum_scalars(own[i : i + 8])]
    result = {}
    for i, name in enumerate(seconds):
        result[f"seconds_{name}"] = float(extremes[i])
        result[f"seconds_{name}_min"] = float(-extremes[len(own) + i])
        result[f"seconds_{name}_mean"] = sums[i] / comm.size
    return result


def table(summary: dict[str, Any], path: Path, *, verbose: bool = False) -> str:
    """The closing table for people: results, then what they took; ``verbose``: time by phase."""
    s = summary
    iterations = f"{s['outer_iterations']} iterations"
    if s["optimizer"] not in BASELINES:
        iterations += f": {s['accepted']} corrections accepted, {s['rejected']} rejected"
    losses = {"train": "train"} | {key: name for key, name in JUDGED.items() if f"{key}_loss" in s}
    rows = judged(s)
    rows += [
        ("loss", ", ".join(f"{losses[key]} {shown_loss(s, f'{key}_loss')}" for key in losses)),
        ("epochs", f"{s['passes']:.1f}  ({iterations})"),
    ]
    if s.get("evaluate_samples") is not None:
        some = f"{s['evaluate_samples']} samples of each split at most (--evaluate-samples)"
        rows.append(("evaluated", some))
    total = s["seconds_total_mean"]

    def took(seconds: float) -> str:
        return f"{seconds:.2f} s  {100 * seconds / total if total else 0.0:4.1f} %"

    computing, waiting = s["seconds_compute_mean"], s["seconds_wait_mean"]
    sending = s["seconds_communication_mean"] + waiting
    rest = max(total - computing - sending, 0.0)
    rows += [
        ("computing", took(computing)),
        ("communication", f"{took(sending)}  (of it waiting for others {waiting:.2f} s)"),
        ("the rest", f"{took(rest)}  (data, evaluation, checkpoints, start)"),
        ("total", f"{s['seconds_total']:.2f} s"),
    ]
    if verbose:
        phases = ("gradient", "algebra", "communication", "wait", "data", "evaluation")
        for name in (*phases, "checkpoint", "other"):
            slowest = f"  (slowest rank {s[f'seconds_{name}']:.2f} s)"
            rows.append((name, took(s[f"seconds_{name}_mean"]) + slowest))
        work = f"{s['gradient_evaluations']:.0f} sample gradients"
        rows.append(("work", f"{work}, {s['epochs']:.1f} per training sample"))
    rows += [
        (
            "messages",
            f"{s['vector_allreduces']} of {s['parameters']:,} parameters, "
            f"{s['scalar_allreduces']} of scalars, {s['bytes_allreduced'] / 1e6:.1f} MB per rank",
        ),
        ("written to", str(path)),
    ]
    return aligned(rows)
