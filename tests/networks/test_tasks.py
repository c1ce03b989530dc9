"""Whole runs beyond the default: text, regression, images, the user's own network and loss."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apts_mpi.checkpoints.folder import newest
from apts_mpi.cli import trained
from apts_mpi.comm.communicator import Comm
from apts_mpi.data import Source, write_shards
from apts_mpi.data.sources.moments import NORMALIZE
from apts_mpi.settings.config import TrainConfig
from apts_mpi.training.loop import Training
from apts_mpi.training.trained import restore
from tests.conftest import TESTS, Launch

DOCS = TESTS.parent / "docs"
SHORT = ("--threads", "1", "--checkpoint-every", "off")


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return found


def ran(launch: Launch, ranks: int, *arguments: str | Path) -> str:
    done = launch(ranks, "-m", "apts_mpi", *arguments)
    assert done.status == 0, done.err
    return done.out + done.err


def test_a_transformer_learns_a_text_and_is_looked_at(launch: Launch, tmp_path: Path) -> None:
    text = "".join(f"{i % 7} and {i % 5}, " for i in range(4000))
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    ran(launch, 0, "shard", "text", "--from", "text.txt", "--out", "text", "--shards", "4")
    sizes = ("--network", "transformer", "--depth", "1", "--width", "16", "--heads", "2")
    flags = ("--data", "text", *sizes, "--context", "16", "--tied", "on", "--threads", "1")
    told = ran(launch, 2, *flags, "--subdomains-per-rank", "2", "--epochs", "3", "--out", "run")
    found = summary(tmp_path / "run")
    assert found["test_loss"] < 1.2 < np.log(13)
    assert found["test_perplexity"] == pytest.approx(np.exp(found["test_loss"]), rel=1e-6)
    assert "perplexity" in told
    looked = ran(launch, 0, "inspect", "run")
    assert "transformer, depth 1, width 16, heads 2, tied True" in looked
    assert "FLOPs" in looked
    scored = ran(launch, 0, "evaluate", "run")
    assert f"{found['test_loss']:.5f}" in scored
    refused = launch(0, "-m", "apts_mpi", "--data", "text", *SHORT)
    assert refused.status == 2
    assert "--network transformer" in refused.told[0]
    refused = launch(0, "-m", "apts_mpi", "--network", "transformer", *SHORT)
    assert "shard text" in refused.told[0]


def test_a_regression(launch: Launch, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1200, 3)).astype("f4")
    y = np.stack((x[:, 0] - 2 * x[:, 1], np.abs(x[:, 2])), 1) + 0.01 * rng.normal(size=(1200, 2))
    np.savez(tmp_path / "points.npz", x=x, y=y.astype("f4"))
    cut = ("shard", "arrays", "--from", "points.npz", "--task", "regression")
    ran(launch, 0, *cut, "--out", "points", "--shards", "2")
    told = ran(launch, 0, "--data", "points", "--hidden", "32", *SHORT, "--out", "run")
    found = summary(tmp_path / "run")
    assert found["test_r2"] > 0.97
    assert found["test_accuracy"] is None
    assert found["best_test_accuracy"] is None
    assert "test R2" in told
    flags = ("--data", "points", "--class-weights", "balanced", *SHORT)
    refused = launch(0, "-m", "apts_mpi", *flags)
    assert refused.status == 2
    assert "is for classification, the data are for regression" in refused.told[0]


def test_validation_samples_are_judged_by_themselves(launch: Launch, tmp_path: Path) -> None:
    cut = ("shard", "digits", "--out", "digits", "--shards", "3", "--val-fraction", "0.2")
    assert "1149 train, 288 val, 360 test" in ran(launch, 0, *cut)
    flags = ("--data", "digits", "--hidden", "32", "--threads", "1", "--epochs", "40")
    told = ran(launch, 2, *flags, "--out", "run")
    found = summary(tmp_path / "run")
    rows = [json.loads(row) for row in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    seen = [(row["val_accuracy"], row["passes"]) for row in rows if "val_accuracy" in row]
    best, epoch = max(seen, key=lambda each: (each[0], -each[1]))
    assert (found["best_val_accuracy"], found["best_passes"]) == (best, epoch)
    assert found["val_accuracy"] == seen[-1][0] > 0.9
    assert found["val_loss"] != found["test_loss"]
    assert f"{found['val_accuracy']:.4f}  (best {best:.4f}, epoch {epoch:.1f})" in told
    for split in ("val", "test"):
        scored = ran(launch, 0, "evaluate", "run", "--split", split)
        (told_accuracy,) = re.findall(r"^accuracy +(\S+)$", scored, re.MULTILINE)
        assert told_accuracy == f"{found[f'{split}_accuracy']:.4f}"
    assert "validation accuracy" in ran(launch, 0, "inspect", "run")
    # Gone on with, the best is remembered.
    ran(launch, 2, "--resume", "run", "--epochs", "41")
    assert summary(tmp_path / "run")["best_val_accuracy"] >= best


def test_shards_normalised_in_another_way_are_judged_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network gets what it was trained on, whatever the mean and deviation of the shards."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    y = np.arange(120) % 2
    scale = np.array([1.0, 100.0])[:, None, None]
    x = (rng.normal(size=(120, 2, 3, 3)) + y[:, None, None, None]) * scale + 5
    x[:, 0, 0, 0], x[:, 1, 2, 2] = 3, 0  # constant
    for how in NORMALIZE:
        source = Source("images", x[:90], y[:90], x[90:], y[90:], ("a", "b"))
        write_shards(source, tmp_path / how, shards=2, normalize=how)
    config = TrainConfig(data="channel", out="run", hidden=(8,), epochs=3.0, threads=1)
    found = Training(config, Comm()).run()
    for how in NORMALIZE:
        network = restore(newest(Path("run"), Comm(), print), Comm(), named=None)
        told = trained.score(network, Comm(), print, data=how, split="test", device="cpu")
        (loss,) = re.findall(r"^loss +(\S+)$", told, re.MULTILINE)
        assert float(loss) == pytest.approx(found["test_loss"], abs=2e-5), how


def test_nothing_is_best_by_the_test_samples(launch: Launch, tmp_path: Path) -> None:
    told = ran(launch, 0, "--epochs", "5", "--hidden", "8", "--threads", "1", "--out", "run")
    told += ran(launch, 0, "inspect", "run")
    assert "test accuracy" in told
    assert "best" not in told
    found = summary(tmp_path / "run")
    assert not [name for name, value in found.items() if "best" in name and value is not None]
    assert not [name for name in found if name.startswith("val_")]
    refused = launch(0, "-m", "apts_mpi", "evaluate", "run", "--split", "val")
    assert refused.status == 2
    assert "has no validation split" in refused.told[0]


def test_a_network_and_loss_of_ones_own(
    launch: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The example of the documentation: trained, gone on with, looked at; never run unasked."""
    path = os.pathsep.join(filter(None, (str(DOCS), os.environ.get("PYTHONPATH"))))
    monkeypatch.setenv("PYTHONPATH", path)
    own = ("--network", "own_network:network")
    ran(launch, 2, *own, "--threads", "1", "--iterations", "4", "--out", "run")
    ran(launch, 0, "--resume", "run", *own, "--iterations", "30", "--threads", "1")
    found = summary(tmp_path / "run")
    assert found["test_accuracy"] > 0.9
    assert found["network"] == "own_network:network"
    assert f"{found['test_accuracy']:.4f}" in ran(launch, 0, "evaluate", "run", *own)
    assert "own_network:network" in ran(launch, 0, "inspect", "run", *own)
    for command in (("inspect", "run"), ("--resume", "run", "--iterations", "40")):
        refused = launch(0, "-m", "apts_mpi", *command)
        assert refused.status == 2
        assert "--network own_network:network" in refused.told[0]


OWN = """
import torch
from torch import nn

def bigram(task):
    return nn.Sequential(nn.Embedding(task.outputs, 8), nn.Linear(8, task.outputs))

def normed(task):
    return nn.Sequential(
        nn.Flatten(), nn.Linear(4, 8), nn.BatchNorm1d(8).eval(), nn.BatchNorm1d(8), nn.Linear(8, 2)
    )

class Failing(nn.Linear):
    calls = 0

    def forward(self, x):
        Failing.calls += self.training
        if Failing.calls > 40:
            raise ValueError("in the middle")
        return super().forward(x)

def failing(task):
    return Failing(4, 2)
"""


def test_ones_own_networks_are_tried_as_they_are_used(
    launch: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "of_a_user.py").write_text(OWN, encoding="utf-8")
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    monkeypatch.setenv("PYTHONPATH", path)
    (tmp_path / "text.txt").write_text(
        " ".join(str(7 * k % 900) for k in range(900)), encoding="utf-8"
    )
    ran(launch, 0, "shard", "text", "--from", "text.txt", "--out", "text", "--shards", "2")
    own = ("--network", "of_a_user:bigram", "--data", "text", "--context", "16")
    for stream in ("off", "on"):  # the tokens are held in 8 bits
        ran(launch, 0, *own, *SHORT, "--iterations", "12", "--stream", stream, "--out", stream)
    assert summary(tmp_path / "on")["test_perplexity"] < 11

    x = np.random.default_rng(0).normal(size=(61, 4)).astype("f4")
    np.savez(tmp_path / "points.npz", x=x, y=(x[:, 0] > 0).astype(int))
    cut = ("shard", "arrays", "--from", "points.npz", "--shards", "2", "--test-fraction", "0.2")
    ran(launch, 0, *cut, "--out", "even")
    own = ("--network", "of_a_user:normed", "--threads", "1", "--iterations", "3")
    ran(launch, 0, "--data", "even", *own, "--out", "run")
    scored = ran(launch, 0, "evaluate", "run", "--network", "of_a_user:normed")
    assert f"{summary(tmp_path / 'run')['test_loss']:.5f}" in scored
    ran(launch, 0, *cut, "--sizes", "40,1", "--out", "uneven")
    refused = launch(2, "-m", "apts_mpi", "--data", "uneven", *own, "--out", "none")
    assert refused.status == 2
    (line,) = refused.told
    assert "fails in training on 1 sample (ValueError: Expected more than 1 value" in line
    assert "cut shards of more samples" in line
    assert "(rank 1)" in line
    assert not (tmp_path / "none").exists()

    flags = ("--data", "even", "--network", "of_a_user:failing", *SHORT, "--epochs", "50")
    broken = launch(0, "-m", "apts_mpi", *flags)
    assert broken.status == 1
    first = broken.told[0]
    assert "of_a_user.py:19, in forward: ValueError: in the middle (rank 0 on " in first
    lines = broken.err.splitlines()
    assert lines.index(first) < next(k for k, each in enumerate(lines) if "Traceback" in each)


def test_batch_norm_is_evaluated_by_the_statistics_of_all_ranks(
    launch: Launch, tmp_path: Path
) -> None:
    flags = ("--network", "resnet", "--depth", "8", "--width", "4", "--normalization", "batch")
    ran(launch, 2, *flags, "--threads", "1", "--iterations", "4", "--out", "run")
    found = summary(tmp_path / "run")
    assert found["test_accuracy"] > 0.5
    assert f"{found['test_accuracy']:.4f}" in ran(launch, 0, "evaluate", "run")


def test_streamed_samples_train_alike_on_any_start(launch: Launch, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    y = np.arange(600) % 4
    x = (rng.random((600, 3, 8, 8)) * 60 + 40 * y[:, None, None, None]).astype("u1")
    np.savez(tmp_path / "images.npz", x=x, y=y)
    ran(launch, 0, "shard", "arrays", "--from", "images.npz", "--out", "images", "--shards", "2")
    flags = ("--data", "images", "--network", "cnn", "--channels", "4", "--stream", "on")
    more = ("--augment", "crop,flip", "--batch", "20", "--local-steps", "5", "--threads", "1")
    weights = ("--class-weights", "balanced", "--label-smoothing", "0.1")
    ran(launch, 2, *flags, *more, *weights, "--iterations", "12", "--out", "whole")
    ran(launch, 2, *flags, *more, *weights, "--iterations", "3", "--out", "part")
    ran(launch, 2, "--resume", "part", "--iterations", "12")
    whole, part = summary(tmp_path / "whole"), summary(tmp_path / "part")
    assert whole["test_accuracy"] > 0.6
    for name in ("train_loss", "test_loss", "test_accuracy", "gradient_evaluations"):
        assert whole[name] == part[name], name
    np.savez(tmp_path / "flat.npz", x=x.reshape(600, -1), y=y)
    ran(launch, 0, "shard", "arrays", "--from", "flat.npz", "--out", "flat", "--shards", "2")
    refused = launch(0, "-m", "apts_mpi", "--data", "flat", "--augment", "flip", *SHORT)
    assert refused.status == 2
    assert "is for images" in refused.told[0]


def test_corrections_in_few_bits_within_hosts_first(launch: Launch, tmp_path: Path) -> None:
    flags = ("--threads", "1", "--iterations", "8", "--local-steps", "5", "--batch", "60")
    for name, more in (
        ("plain", ()),
        ("half", ("--compress", "bf16")),
        ("eighth", ("--compress", "int4")),
    ):
        ran(launch, 2, *flags, *more, "--out", name)
    plain = summary(tmp_path / "plain")
    for name, share in (("half", 0.65), ("eighth", 0.35)):
        few = summary(tmp_path / name)
        assert few["bytes_allreduced"] < share * plain["bytes_allreduced"]
        assert abs(few["test_accuracy"] - plain["test_accuracy"]) < 0.05
    told = ran(launch, 2, *flags, "--hierarchical", "on", "--compress", "fp16", "--out", "hosts")
    assert "--compress fp16: one host has none to exchange with" in told
    assert summary(tmp_path / "hosts")["test_accuracy"] > 0.8
    refused = launch(0, "-m", "apts_mpi", "--optimizer", "adam", "--compress", "bf16")
    assert "has no effect with --optimizer adam" in refused.told[0]
