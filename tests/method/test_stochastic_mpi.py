"""The stochastic family on real ranks, and as its users run it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from apts_mpi.settings.config import TrainConfig
from apts_mpi.settings.defaults import completed, plan
from apts_mpi.settings.toml import read_toml
from tests.conftest import Finished, Launch

SAMPLES = 1437  # of the digits to train on


def train(launch: Launch, ranks: int, *flags: str) -> Finished:
    done = launch(ranks, "-m", "apts_mpi", *flags)
    assert done.status == 0, done.err
    return done


def read(run: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    rows = [json.loads(row) for row in (run / "metrics.jsonl").read_text().splitlines()]
    timeless = [{k: v for k, v in row.items() if not k.startswith("seconds")} for row in rows]
    return json.loads((run / "summary.json").read_text()), timeless


def test_a_run_repeats_bit_for_bit_from_its_resolved_config(launch: Launch, tmp_path: Path) -> None:
    flags = ("--iterations", "4", "--seed", "3", "--averaging", "inf")
    train(launch, 2, *flags, "--out", "a")
    train(launch, 2, "train", "--config", "a/config.toml", "--out", "b")
    settings = read_toml(tmp_path / "a" / "config.toml")
    wanted = completed(TrainConfig(seed=3, iterations=4, averaging=float("inf")), 2, SAMPLES)
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
