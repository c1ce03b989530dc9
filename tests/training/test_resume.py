"""Checkpoints and going on from them, on real ranks: as if never stopped, or on other ranks."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from apts_mpi.checkpoints.folder import listed, read
from tests.conftest import LIMIT, Finished, Launch
from tests.launched import Launched, within

LONG = "--hidden 8 --threads 1 --epochs 1e6 --evaluate-every 1e5 --checkpoint-every 50".split()


@pytest.mark.timeout(600)  # three jobs of many runs, on a machine that may be busy
def test_runs_that_were_stopped_are_as_if_they_never_were(
    program: Callable[..., Finished],
) -> None:
    for ranks, *names in (
        (3, "leave_for_others"),
        (2, "as_if_never_stopped", "go_on_elsewhere"),
        (4, "go_on_elsewhere", "the_rest_of_a_pass"),
    ):
        done = program(ranks, *(f"resume.{name}" for name in names))
        assert done.status == 0, done.err + done.out


def test_what_checkpoints_promise(program: Callable[..., Finished]) -> None:
    names = (
        *("checkpoints_are_kept", "nothing_to_go_on_from", "a_full_disk_stops_nothing"),
        *("wishes_of_the_clock", "one_wish_is_enough", "copies_that_differ_make_no_checkpoint"),
        "a_second_run_in_the_same_folder",
    )
    done = program(3, *(f"checkpoint.{name}" for name in names))
    assert done.status == 0, done.err + done.out


def test_a_disk_that_fills_up_stops_nothing(
    program: Callable[..., Finished], tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, check=False, timeout=30).returncode:
        pytest.skip("needs a small file system of its own, which only root can mount")
    try:
        done = program(2, "checkpoint.a_disk_that_fills_up")
        assert done.status == 0, done.err + done.out
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True, timeout=30)


# ---- signals -----------------------------------------------------------------------------------


def rows(run: Path) -> list[dict[str, Any]]:
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [
        {k: v for k, v in json.loads(line).items() if not k.startswith("seconds")} for line in lines
    ]


def ranks_of(run: Path) -> list[int]:
    """Process numbers of a run's ranks."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"python" in words[0] and str(run).encode() in words:
            found.append(int(path.parent.name))
    return sorted(found)


class Run(Launched):
    """A run of the program by mpirun, which is sent signals."""

    def __init__(self, ranks: int, cache: Path, run: Path, *flags: str) -> None:
        if sys.platform != "linux":
            pytest.skip("finds its processes in /proc")
        self.run = run
        command = [sys.executable, "-m", "apts_mpi", *flags, "--out", str(run)]
        super().__init__(ranks, command, run.parent, {"APTS_MPI_CACHE": str(cache)})

    def end(self, timeout: float = LIMIT) -> tuple[int, str]:
        """Exit status and output, within so many seconds; no rank is left."""
        try:
            status = self.mpirun.wait(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(self.mpirun.pid, signal.SIGKILL)
            pytest.fail(f"no end within {timeout} s: {self.output}")
        assert within(LIMIT, lambda: not ranks_of(self.run)), "ranks are left"
        return status, self.output


@pytest.mark.usefixtures("all_cores")
def test_a_signal_on_any_rank_ends_the_run_with_a_checkpoint_to_go_on_from(
    cache: Path, tmp_path: Path, launch: Launch
) -> None:
    run = tmp_path / "run"
    one = Run(3, cache, run, *LONG, "--iterations", "100000")
    one.until(lambda: len(rows(run)) >= 3)
    os.kill(ranks_of(run)[-1], signal.SIGUSR1)
    status, out = one.end()
    assert status == 3, out
    told = re.search(r"stopped by SIGUSR1 on rank \d \(.+\) after iteration (\d+), checkpoint", out)
    assert told, out
    assert out.count("stopped by") == 1
    newest, iterations = listed(run / "checkpoint")[0], int(told[1])
    assert read(newest, 0, 1).iteration == int(newest.name) == iterations == len(rows(run))
    assert not (run / "summary.json").exists()
    # All ranks at once, as batch systems do it.
    two = Run(3, cache, run, "--resume", str(run), "--iterations", "100000")
    two.until(lambda: len(rows(run)) >= iterations + 3)
    for pid in ranks_of(run):
        os.kill(pid, signal.SIGTERM)
    status, out = two.end()
    assert status == 3, out
    assert f"resuming after iteration {iterations} of" in out
    last = len(rows(run))
    three = launch(3, "-m", "apts_mpi", "--resume", run, "--iterations", str(last + 5))
    assert three.status == 0, three.err
    flags = (*LONG, "--iterations", str(last + 5), "--out", "never-stopped")
    whole = launch(3, "-m", "apts_mpi", *flags)
    assert whole.status == 0, whole.err
    assert rows(run) == rows(tmp_path / "never-stopped")


def test_a_second_signal_ends_at_once(cache: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    slow = Run(2, cache, run, *LONG, "--local-steps", "1000", "--batch", "1")
    slow.until(lambda: (run / "metrics.jsonl").exists())
    first, second = ranks_of(run)
    os.kill(second, signal.SIGSTOP)  # so that there is no next iteration
    os.kill(first, signal.SIGINT)
    time.sleep(1.5)
    assert slow.mpirun.poll() is None
    os.kill(first, signal.SIGINT)
    status, out = slow.end()
    assert status not in (0, 3), out


# ---- commands ----------------------------------------------------------------------------------


def test_what_a_checkpoint_holds_can_be_seen_and_used_elsewhere(
    launch: Launch, tmp_path: Path
) -> None:
    import numpy as np
    import torch
    from safetensors import safe_open
    from torch import nn

    from apts_mpi.data import load_source

    flags = ("--hidden", "16", "--iterations", "4", "--out", "run", "--threads", "1")
    assert launch(2, "-m", "apts_mpi", *flags).status == 0
    summary = json.loads((tmp_path / "run/summary.json").read_text())

    seen = launch(2, "-m", "apts_mpi", "inspect", "run")
    assert seen.status == 0, seen.err
    assert seen.out.count("verified") == 1
    for said in (
        "iteration 4",
        "on 2 ranks",
        "1,210 parameters",
        f"{summary['test_accuracy']:.4f}",
    ):
        assert said in seen.out, (said, seen.out)

    judged = launch(2, "-m", "apts_mpi", "evaluate", "run/checkpoint/00000004", "--device", "cpu")
    assert judged.status == 0, judged.err
    assert re.findall(r"^(?:loss|accuracy) +([\d.]+)$", judged.out, re.MULTILINE) == [
        *(f"{summary['test_loss']:.5f}", f"{summary['test_accuracy']:.4f}")
    ]

    out = ("--out", "nets/net.safetensors")
    made = launch(0, "-m", "apts_mpi", "export", "run", *out)
    assert made.status == 0, made.err
    again = launch(0, "-m", "apts_mpi", "export", "run", *out)
    assert again.status == 2
    assert "nets/net.safetensors: exists" in again.err

    with safe_open(tmp_path / "nets/net.safetensors", "pt") as file:
        about = file.metadata()
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    module.load_state_dict(state)
    digits = load_source("digits")
    mean, std = (np.array(json.loads(about[name])) for name in ("mean", "std"))
    x = torch.from_numpy(((digits.x_test - mean) / std).astype(np.float32))
    with torch.no_grad():
        right = (module(x).argmax(1).numpy() == digits.y_test).mean()
    assert right == pytest.approx(summary["test_accuracy"])

    # Shards cut from other samples have another mean: the network still gets what it knows.
    parts = {
        "x_train": digits.x_train[:300] / 2.0,
        "y_train": digits.y_train[:300],
        "x_test": digits.x_test.astype(np.float64),
        "y_test": digits.y_test,
        "classes": np.array(digits.classes),
    }
    np.savez(tmp_path / "part.npz", allow_pickle=False, **parts)
    cut = ("shard", "arrays", "--from", "part.npz", "--out", "part", "--shards", "2")
    assert launch(0, "-m", "apts_mpi", *cut).status == 0
    other = launch(0, "-m", "apts_mpi", "evaluate", "run", "--data", "part")
    assert other.status == 0, other.err
    assert re.search(rf"^accuracy +{summary['test_accuracy']:.4f}$", other.out, re.MULTILINE)
    wrong = launch(0, "-m", "apts_mpi", "inspect", "run/checkpoint")
    assert wrong.status == 0, wrong.err
