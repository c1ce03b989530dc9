"""The runs of ``network``: our program and PyTorch's between hosts, each until its target."""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from apts_mpi.data import read_info
from benchmarks.harness.hosts import INTERFACE, Hosts
from benchmarks.harness.jobs import ROOT, RunFailed, mpirun
from benchmarks.harness.mpi_settings import SETTINGS
from benchmarks.harness.results import Row
from benchmarks.messages.network.plan import Plan, Run

ONE_THREAD = {"OMP_NUM_THREADS": "1"}
PORT = "29500"  # between hosts, whose ports are their own


def make(run: Run, plan: Plan, shards: Path, hosts: Hosts | None, timeout: float) -> Row:
    """One run between hosts, or on this machine without links; returns its figures.

    Raises:
        RunFailed: it did not end well, or not in time.
    """
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        if run.ddp is None:
            _ours(run, plan, shards, place, hosts, timeout)
        else:
            _ddp(run, plan, shards, place, hosts, timeout)
        ranks = run.settings["hosts"]
        measured = [
            json.loads((place / f"rank-{rank}.json").read_text(encoding="utf-8"))
            for rank in range(ranks)
        ]
    return figures(measured, plan.target)


def figures(measured: list[Row], target: float) -> Row:
    """What is kept of all ranks' records of a run; the clock is that of the rank furthest on."""
    own = dict(measured[0])
    # A rank that is late makes another wait in the next iteration: maxima of single iterations
    # would count that twice.
    clocks = [itertools.accumulate(m["iteration_seconds"]) for m in measured]
    seconds = [max(passed) for passed in zip(*clocks, strict=True)]
    each = [max(column) for column in zip(*(m["iteration_seconds"] for m in measured), strict=True)]
    accuracies = own.pop("test_accuracy")
    epoch, nbytes, messages = (own.pop(key) for key in ("epoch", "bytes", "messages"))
    own["iteration_seconds"] = [float(f"{value:.4g}") for value in each[:500]]
    evaluated = [i for i, accuracy in enumerate(accuracies) if accuracy is not None]
    hit = next((i for i in evaluated if accuracies[i] >= target), None)
    curve = {
        "seconds": [float(f"{seconds[i]:.5g}") for i in evaluated],
        "epoch": [float(f"{epoch[i]:.5g}") for i in evaluated],
        "test_accuracy": [accuracies[i] for i in evaluated],
        "bytes": [nbytes[i] for i in evaluated],
    }
    return {
        "target": target,
        "seconds_to_target": None if hit is None else seconds[hit],
        "epochs_to_target": None if hit is None else epoch[hit],
        "bytes_to_target": None if hit is None else nbytes[hit],
        "messages_to_target": None if hit is None else messages[hit],
        "seconds_per_epoch": seconds[-1] / epoch[-1],
        "messages_per_epoch": messages[-1] / epoch[-1],
        "bytes_per_epoch": nbytes[-1] / epoch[-1],
        "curve": curve,
        **own,
    }


def _every(plan: Plan, shards: Path) -> float:
    """Epochs between evaluations, a little less so that rounding does not skip one."""
    return 0.9 * plan.evaluate_every / read_info(shards).samples


def _ours(
    run: Run, plan: Plan, shards: Path, place: Path, hosts: Hosts | None, timeout: float
) -> None:
    assert run.arguments is not None
    piece: dict[str, Any] = {
        "arguments": [
            *("--data", str(shards), "--out", str(place / "out"), *run.arguments),
            *("--evaluate-every", f"{_every(plan, shards):g}"),
        ],
        "target": plan.target,
        "folder": str(place),
    }
    (place / "run.json").write_text(json.dumps(piece), encoding="utf-8")
    worker = ["-m", "benchmarks.messages.network.worker", str(place / "run.json")]
    if hosts is None:
        mpirun(run.settings["hosts"], worker, timeout=timeout)
    else:
        hosts.mpirun(worker, timeout=timeout, settings=SETTINGS[plan.mpi], variables=ONE_THREAD)


def _free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def _ddp(
    run: Run, plan: Plan, shards: Path, place: Path, hosts: Hosts | None, timeout: float
) -> None:
    """PyTorch's ranks, one per host, started by hand: it needs no launcher."""
    assert run.ddp is not None
    every = {"evaluate_every": _every(plan, shards)}
    given = {**run.ddp, **every, "data": str(shards), "target": plan.target, "folder": str(place)}
    (place / "run.json").write_text(json.dumps(given), encoding="utf-8")
    ranks = run.settings["hosts"]
    address = "127.0.0.1" if hosts is None else hosts.addresses[0]
    where = {
        "MASTER_ADDR": address,
        "MASTER_PORT": PORT if hosts else _free_port(),
        "WORLD_SIZE": str(ranks),
    }
    interface = "lo" if hosts is None else INTERFACE
    command = [
        sys.executable,
        "-m",
        "benchmarks.messages.network.ddp_worker",
        str(place / "run.json"),
    ]
    log = (place / "log").open("w+", encoding="utf-8")
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(ranks):
            prefix = [] if hosts is None else hosts.inside(rank)
            env = {**os.environ, **ONE_THREAD, **where, "RANK": str(rank)}
            env["GLOO_SOCKET_IFNAME"] = interface
            processes.append(
                subprocess.Popen(
                    [*prefix, *command],
                    cwd=ROOT,
                    env=env,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )
        deadline = time.monotonic() + timeout
        while any(process.poll() is None for process in processes):
            ended = [process.poll() for process in processes]
            if time.monotonic() > deadline or any(status for status in ended if status):
                break  # one that failed leaves others waiting
            time.sleep(0.05)
        if any(process.poll() != 0 for process in processes):
            log.seek(0)
            lines = [line.strip() for line in log if line.strip()]
            late = time.monotonic() > deadline
            why = f"no end within {timeout:g} s" if late else (lines or ["silent"])[-1]
            raise RunFailed(f"PyTorch's DistributedDataParallel: {why}")
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.wait()
        log.close()
