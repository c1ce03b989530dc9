"""The baselines: against torch's own optimizers, on real ranks, and as their users run them."""

from __future__ import annotations

import json
import math
import re
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from apts_mpi.comm.communicator import Comm
from apts_mpi.data.minibatches.batches import Batches
from apts_mpi.errors import AgreedError
from apts_mpi.method import packages
from apts_mpi.settings.config import TrainConfig
from apts_mpi.training import build
from apts_mpi.training.loop import Training
from benchmarks.harness.worker import PROGRAM
from tests.conftest import LIMIT, PYTHON, Launch, environment, finished

FLAGS = {
    "sgd": ("--epochs", "12"),
    "adam": ("--epochs", "12"),
    "local-sgd": ("--epochs", "12", "--local-steps", "5"),
    "diloco": ("--epochs", "20", "--local-steps", "5"),
    "adamw": ("--epochs", "12", "--schedule", "wsd"),
    "muon": ("--epochs", "10", "--schedule", "cosine", "--warmup", "5"),
    "muloco": ("--epochs", "12", "--local-steps", "5", "--schedule", "cosine"),
    "schedule-free": ("--epochs", "12", "--warmup", "5"),
    "prodigy": ("--epochs", "12", "--schedule", "cosine"),
}
for name, package in {"schedule-free": "schedulefree", "prodigy": "prodigyopt"}.items():
    if find_spec(package) is None:  # of an extra
        del FLAGS[name]


def read_rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(row) for row in (run / "metrics.jsonl").read_text().splitlines()]


def read(run: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    rows = read_rows(run)
    timeless = [{k: v for k, v in r.items() if not k.startswith("seconds")} for r in rows]
    return json.loads((run / "summary.json").read_text()), timeless


def test_they_train_the_digits_and_repeat_from_their_configs(
    launch: Launch, tmp_path: Path
) -> None:
    lines = []  # in one job, as ranks start slowly
    for name, flags in FLAGS.items():
        lines.append(["--optimizer", name, *flags, "--out", f"{name}-a"])
        lines.append(["--config", f"{name}-a/config.toml", "--out", f"{name}-b"])
    auto = ["--local-steps", "auto", "--resume", "auto"]
    lines.append([*auto, "--iterations", "1", "--out", "auto-a"])
    lines.append(["--config", "auto-a/config.toml", "--out", "auto-b"])
    lines.append([*auto, "--iterations", "2", "--out", "auto-a"])  # resumes what was measured
    asked = {"task": PROGRAM, "pieces": [{"lines": [line]} for line in lines]}
    (tmp_path / "lines.json").write_text(json.dumps(asked))
    done = launch(2, "-m", "benchmarks.harness.worker", "lines.json")
    assert done.status == 0, done.err
    # What was measured becomes settings like others: the run repeats from them.
    first, again = (read(tmp_path / f"auto-{run}")[1] for run in "ab")
    assert (first[:1], len(first)) == (again, 2)
    settings = (tmp_path / "auto-a" / "config.toml").read_text()
    for line in (
        r"local_steps = [1-9]\d*",
        r"batch = [1-9]\d*",
        'compress = "(none|bf16|int[48])"',
    ):
        assert re.search(f"^{line}$", settings, flags=re.MULTILINE)
    assert done.err.count(" local steps of ") == 1
    for name in FLAGS:
        check(tmp_path / f"{name}-a", tmp_path / f"{name}-b", name)


def check(first: Path, again: Path, name: str) -> None:
    """That a run did what its optimizer does, and that the second one is the first again."""
    summary, rows = read(first)
    repeated, rows_repeated = read(again)
    assert rows == rows_repeated
    for key in ("train_loss", "test_loss", "test_accuracy", "bytes_allreduced"):
        assert summary[key] == repeated[key]
    settings = (first / "config.toml").read_text()
    assert settings == (again / "config.toml").read_text()
    assert "\nbatch = 250\n" in settings
    assert re.search(r"^lr = \d\.\d+$", settings, flags=re.MULTILINE)

    assert summary["optimizer"] == name
    assert summary["local_solver"] is None
    assert summary["test_accuracy"] > 0.8
    assert summary["outer_iterations"] == summary["accepted"] == len(rows)
    assert summary["vector_allreduces"] == len(rows)
    local_steps = 5 if "local_steps" in settings else 1
    # Every step is on a minibatch: three of them are a pass over all 1437 samples.
    assert summary["epochs"] == pytest.approx(len(rows) * local_steps / 3, rel=0.01)
    assert set(rows[0]) >= {"iteration", "epoch", "loss", "gradient_evaluations"}
    assert not set(rows[0]) & {"radius", "rho", "global_accepted", "local_tried"}


def test_a_learning_rate_that_is_too_large_ends_all_with_one_line(launch: Launch) -> None:
    flags = ("--optimizer", "sgd", "--lr", "1e30", "--epochs", "20")
    done = launch(2, "-m", "apts_mpi", *flags)
    assert done.status == 1
    assert len(done.told) == 1, done.err
    assert "lower --lr (now 1e+30)" in done.told[0]
    assert "Traceback" not in done.err


def test_an_overflow_in_the_last_step_is_null_in_json(launch: Launch, tmp_path: Path) -> None:
    flags = ("--optimizer", "sgd", "--lr", "1e30", "--iterations", "1", "--out", "run")
    done = launch(0, "-m", "apts_mpi", *flags)
    assert done.status == 0, done.err
    summary, rows = read(tmp_path / "run")
    assert summary["train_loss"] is summary["test_loss"] is rows[0]["test_loss"] is None


def test_drawing_minibatches_is_the_datas_time(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APTS_MPI_CACHE", str(cache))
    out = str(tmp_path / "run")
    config = TrainConfig(optimizer="local-sgd", local_steps=10, iterations=2, out=out, threads=1)
    training = Training(config, Comm())
    take = training.built.subdomains[0].batches.__next__

    def slow(_: Batches) -> NDArray[np.int64]:
        time.sleep(0.1)
        return take()

    monkeypatch.setattr(Batches, "__next__", slow)
    summary = training.run()
    assert summary["seconds_data"] >= 20 * 0.1
    assert summary["seconds_compute"] < 1.0
    rows = read_rows(tmp_path / "run")
    assert sum(row["seconds_data"] for row in rows) >= 20 * 0.1
    assert sum(row["seconds"] - row["seconds_data"] for row in rows) < 1.0


def test_a_missing_package_ends_a_run_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages, "find_spec", lambda module: None)
    monkeypatch.setattr(build, "load", None)
    config = TrainConfig(optimizer="prodigy", out=str(tmp_path / "run"))
    with pytest.raises(AgreedError, match=r"^--optimizer prodigy: prodigyopt is not installed"):
        Training(config, Comm())
    assert not (tmp_path / "run").exists()


def test_the_rate_follows_the_work_that_is_done(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three minibatches are a pass: the last of six steps begins when 5/6 are done."""
    monkeypatch.setenv("APTS_MPI_CACHE", str(cache))
    given: dict[str, Any] = {"epochs": 2.0, "schedule": "cosine", "lr": 0.5, "threads": 1}
    training = Training(TrainConfig(optimizer="sgd", out=str(tmp_path / "run"), **given), Comm())
    assert training.run()["outer_iterations"] == 6
    step = training.built.optimizer._step  # type: ignore[attr-defined]
    wanted = 0.5 * 0.5 * (1 + math.cos(math.pi * 5 / 6))
    assert step.lr == pytest.approx(wanted)


def test_a_method_knows_the_part_that_is_done(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APTS_MPI_CACHE", str(cache))
    training = Training(TrainConfig(epochs=3.0, out=str(tmp_path / "run"), threads=1), Comm())
    seen = []
    training.run(lambda row, lap, rest: seen.append((row["epoch"], training.built.optimizer.done)))
    done = [0.0, *(min(epoch / 3.0, 1.0) for epoch, _ in seen)]
    assert [part for _, part in seen] == pytest.approx(done[:-1])


def test_minibatches_overlap_and_some_are_empty(launch: Launch, tmp_path: Path) -> None:
    shard = ("shard", "digits", "--out", "d", "--shards", "2", "--sizes", "700,1")
    assert launch(0, "-m", "apts_mpi", *shard).status == 0
    flags = ("--data", "d", "--optimizer", "local-sgd", "--batch", "100", "--overlap", "10")
    done = launch(2, "-m", "apts_mpi", *flags, "--iterations", "3", "--out", "run")
    assert done.status == 0, done.err
    _, rows = read(tmp_path / "run")
    assert rows[-1]["loss"] < rows[0]["loss"]


def test_flags_an_optimizer_has_not_are_refused(launch: Launch) -> None:
    for flags in (("--lr", "0.1"), ("--optimizer", "adam", "--local-steps", "5")):
        done = launch(0, "-m", "apts_mpi", *flags)
        assert done.status == 2
        assert len(done.told) == 1
        assert " ".join(flags[-2:]) in done.told[0]


def test_no_optimizer_imports_torchs_compiler(tmp_path: Path, cache: Path) -> None:
    """Which would take seconds of every rank's start."""
    lines = (
        "import sys\n"
        "from apts_mpi.cli.main import main\n"
        "for name in ('apts', 'adam', 'diloco', 'adamw', 'muon', 'muloco'):\n"
        "    main(['--optimizer', name, '--iterations', '2', '--hidden', '8', '--out', name])\n"
        "print('torch._dynamo' in sys.modules)\n"
    )
    done = finished([PYTHON, "-c", lines], tmp_path, environment(cache), LIMIT)
    assert done.out.split()[-1] == "False", done.err
