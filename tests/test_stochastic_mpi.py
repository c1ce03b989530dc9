"""The stochastic family on real ranks, and as its users run it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Finished, Launch
from test_cli import SUMMARY_KEYS

from apts_mpi.config import TrainConfig, plan
from apts_mpi.settings_file import read_toml

SAMPLES = 1437  # of the digits to train on


def train(launch: Launch, ranks: int, *flags: str) -> Finished:
    done = launch(ranks, "-m", "apts_mpi", *flags, timeout=120)
    assert done.status == 0, done.err
    return done


def read(run: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    rows = [json.loads(row) for row in (run / "metrics.jsonl").read_text().splitlines()]
    timeless = [{k: v for k, v in row.items() if not k.startswith("seconds")} for row in rows]
    return json.loads((run / "summary.json").read_text()), timeless


def test_four_ranks_train_the_digits(launch: Launch, tmp_path: Path) -> None:
    done = train(launch, 4, "--epochs", "60", "--out", "run")
    summary, rows = read(tmp_path / "run")
    assert summary["test_accuracy"] > 0.9
    assert set(summary) >= SUMMARY_KEYS
    assert (summary["optimizer"], summary["local_solver"]) == ("apts", "scaled")
    assert summary["outer_iterations"] == len(rows)
    assert summary["accepted"] + summary["rejected"] == len(rows)
    assert 60 <= summary["epochs"] < 60 + 2 * rows[0]["epoch"]
    # The first iteration has one more, to search the radius.
    assert summary["vector_allreduces"] == len(rows) + 1
    evaluations = sum(row["gradient_evaluations"] for row in rows)
    assert summary["gradient_evaluations"] == pytest.approx(evaluations)
    _, steps = plan(4, SAMPLES)
    assert rows[0]["local_tried"] == 4 * steps
    assert "outer iterations" in done.out


def test_a_run_repeats_bit_for_bit_from_its_resolved_config(launch: Launch, tmp_path: Path) -> None:
    flags = ("--iterations", "4", "--seed", "3", "--averaging", "inf")
    train(launch, 2, *flags, "--out", "a")
    train(launch, 2, "train", "--config", "a/config.toml", "--out", "b")
    settings = read_toml(tmp_path / "a" / "config.toml")
    wanted = TrainConfig(seed=3, iterations=4, averaging=float("inf")).completed(2, SAMPLES)
    batch, steps = plan(2, SAMPLES)
    assert (settings["batch"], settings["local_steps"]) == (batch, steps)
    for name in ("batch", "local_steps", "epochs", "window", "averaging", "smoothing"):
        assert settings[name] == getattr(wanted, name), name
    assert settings["epochs"] * SAMPLES >= 300_000 - SAMPLES
    one, two = read(tmp_path / "a"), read(tmp_path / "b")
    assert one[1] == two[1]
    assert len(one[1]) == 4
    for key in ("train_loss", "test_loss", "test_accuracy", "bytes_allreduced"):
        assert one[0][key] == two[0][key]
    text = (tmp_path / "a" / "config.toml").read_text()
    assert text == (tmp_path / "b" / "config.toml").read_text()
