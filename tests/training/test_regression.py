"""Training on targets that are real numbers: figures are in the units of the targets."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

from apts_mpi.cli.main import main
from apts_mpi.comm.communicator import Comm
from apts_mpi.data import Source, describe, load_source, write_shards
from apts_mpi.errors import AgreedError
from apts_mpi.networks.losses import Units, criterion
from apts_mpi.networks.task import Task
from apts_mpi.settings.config import TrainConfig
from apts_mpi.training.evaluation import evaluate
from apts_mpi.training.flat_network import FlatNetwork
from apts_mpi.training.loop import Training
from apts_mpi.training.samples import Held
from tests.conftest import Launch


def points(scale: Any, shift: Any = 0.0, *, outputs: int = 2, constant: bool = False) -> Source:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(700, 3))
    y = np.stack((x[:, 0] - 2 * x[:, 1], np.abs(x[:, 2])), 1)[:, :outputs]
    y = (y + 0.01 * rng.normal(size=y.shape)) * scale + shift
    if constant:
        y[:, 1] = 1e6
    split = slice(0, 500), slice(500, 600), slice(600, 700)
    (x, x_val, x_test), (y, y_val, y_test) = ([each[part] for part in split] for each in (x, y))
    return Source("points", x, y, x_test, y_test, task="regression", x_val=x_val, y_val=y_val)


def trained(folder: Path, source: Source, **more: Any) -> dict[str, Any]:
    write_shards(source, folder / "shards", shards=2)
    config = TrainConfig(
        data=str(folder / "shards"),
        out=str(folder / "run"),
        **{"hidden": (16,), "threads": 1, "epochs": 100, **more},
    )
    return Training(config, Comm()).run()


def predicted(folder: Path, x: np.ndarray) -> np.ndarray:
    """By the exported file alone, as its metadata say."""
    out = folder / "network.safetensors"
    assert main(["export", str(folder / "run"), "--out", str(out)], Comm()) == 0
    with safe_open(out, "pt") as file:
        about = {name: value for name, value in file.metadata().items()}
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    mean, std, target_mean, target_std = (
        np.array(json.loads(about[name])) for name in ("mean", "std", "target_mean", "target_std")
    )
    module = nn.Sequential(
        nn.Flatten(), nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, len(target_std))
    )
    module.load_state_dict(state)
    with torch.no_grad():
        outputs = module(torch.from_numpy(((x - mean) / std).astype("f4"))).numpy()
    return outputs * target_std + target_mean


@pytest.mark.parametrize("outputs", [1, 2])
def test_neither_unit_nor_origin_of_targets_matters(tmp_path: Path, outputs: int) -> None:
    found = {}
    for name, (scale, shift) in {
        "one": (1.0, 0.0),
        "large": (2e5, 0.0),
        "small": (1e-4, 0.0),
        "shifted": (1.0, 1e3),
        "mixed": (np.array([2e5, 1e-4])[:outputs], np.array([3.0, -7.0])[:outputs] * 1e-3),
    }.items():
        source = points(scale, shift, outputs=outputs)
        (tmp_path / name).mkdir()
        run = trained(tmp_path / name, source)
        assert run["test_r2"] > 0.98
        found[name] = run["test_r2"], run["val_r2"]
        # What is told is right, and in the units of the targets.
        x, y = np.asarray(source.x_test), np.asarray(source.y_test, dtype=float)
        errors = ((predicted(tmp_path / name, x) - y) ** 2).mean(axis=0)
        assert run["test_loss"] == pytest.approx(errors.mean(), rel=1e-3)
        assert run["test_r2"] == pytest.approx((1 - errors / y.var(axis=0)).mean(), abs=1e-4)
        last = json.loads((tmp_path / name / "run/metrics.jsonl").read_text().splitlines()[-1])
        of_all = y.var(axis=0).mean()
        assert last["loss"] < 0.05 * of_all
        assert last["loss"] > 1e-5 * of_all
        assert run["best_val_loss"] <= run["val_loss"]
    for figures in found.values():
        assert figures == pytest.approx(found["one"], abs=0.003)


def test_a_constant_output_is_harmless(tmp_path: Path) -> None:
    source = points(np.array([1e-4, 1.0]), constant=True)
    run = trained(tmp_path, source)
    assert run["test_r2"] > 0.98
    assert np.allclose(predicted(tmp_path, np.asarray(source.x_test))[:, 1], 1e6, atol=1e-4)
    describe(tmp_path / "shards")
    x = np.random.default_rng(0).normal(size=(50, 3))
    noise = np.full(50, 3.0) + 1e-15 * np.arange(50)
    Source("c", x, noise, x, noise, task="regression")
    whole = Source("c", x, np.full(50, 3.0), x, np.full(50, 3.0), task="regression")
    (tmp_path / "whole").mkdir()
    run = trained(tmp_path / "whole", whole, checkpoint_every="off", epochs=5)
    assert run["test_r2"] is None
    assert run["test_loss"] < 0.1


def test_figures_of_targets_of_large_mean_and_several_scales() -> None:
    """Against NumPy in float64; the network's float32 outputs are standardised ones."""
    rng = np.random.default_rng(2)
    mean, std = np.array([1e6, 3e-5, 2.0]), np.array([40.0, 1e-5, 1.0])
    y = (mean + std * rng.normal(size=(60, 3))).astype("f4")
    y[:, 2] = 2.0
    outputs = rng.normal(size=(60, 3)).astype("f4")
    units = Units(torch.from_numpy(mean), torch.from_numpy(std))
    judge = criterion(Task("regression", (3,), 3), units=units)
    network = FlatNetwork(nn.Linear(3, 3), judge.train, chunk=7)
    with torch.no_grad():
        network.vector.copy_(torch.cat((torch.eye(3).flatten(), torch.zeros(3))))
    halves = (slice(0, 25), slice(25, 60))
    parts = [Held(torch.from_numpy(outputs[h]), torch.from_numpy(y[h]), 60) for h in halves]
    figures = evaluate(network, parts, Comm(), Task("regression", (3,), 3), judge)
    errors = (outputs * std + mean - y.astype(float)) ** 2
    assert figures["loss"] == pytest.approx(errors.mean(), rel=1e-6)
    left = errors.mean(axis=0)[:2] / y.astype(float).var(axis=0)[:2]
    assert figures["r2"] == pytest.approx((1 - left).mean(), rel=1e-6)
    standard = ((outputs - (y.astype(float) - mean) / std) ** 2).mean()
    x, targets = torch.from_numpy(outputs), torch.from_numpy(y)
    assert network.loss(x, targets) == pytest.approx(standard, rel=1e-5)


def test_two_ranks_tell_the_same(launch: Launch, tmp_path: Path) -> None:
    write_shards(points(np.array([2e5, 1e-4])), tmp_path / "shards", shards=3)
    flags = ("--data", "shards", "--hidden", "16", "--threads", "1", "--epochs", "100")
    done = launch(2, "-m", "apts_mpi", *flags, "--out", "run")
    assert done.status == 0, done.err
    run = json.loads((tmp_path / "run/summary.json").read_text())
    assert run["test_r2"] > 0.9
    for split in ("val", "test"):
        told = launch(0, "-m", "apts_mpi", "evaluate", "run", "--split", split).out
        assert re.findall(r"^r2 +(\S+)$", told, re.MULTILINE) == [f"{run[f'{split}_r2']:.4f}"]
        (loss,) = re.findall(r"^loss +(\S+)$", told, re.MULTILINE)
        assert float(loss) == pytest.approx(run[f"{split}_loss"], rel=1e-4)
    assert "best validation loss" in done.out


def test_a_loss_of_ones_own_has_targets_in_their_own_units(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own_scaled.py").write_text(
        "import torch\n"
        "def network(task):\n"
        "    def loss(outputs, targets):\n"
        "        return ((outputs - targets) / 50).square().mean(1)\n"
        "    return torch.nn.Linear(3, task.outputs), loss\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    run = trained(
        tmp_path, points(50.0, 90.0), network="own_scaled:network", hidden=None, epochs=10
    )  # fmt: skip
    told = capsys.readouterr().err
    assert "own loss is given the targets in their own units, not standardised: mean " in told
    assert "test_r2" not in run
    out = tmp_path / "n.safetensors"
    own = ["--network", "own_scaled:network"]
    assert main(["export", str(tmp_path / "run"), "--out", str(out), *own], Comm()) == 0
    with safe_open(out, "pt") as file:
        assert "target_mean" not in file.metadata()


def test_shards_of_other_outputs(tmp_path: Path) -> None:
    trained(tmp_path, points(3.0, outputs=1), epochs=1)
    write_shards(points(3.0), tmp_path / "two", shards=1)
    write_shards(load_source("digits"), tmp_path / "classes", shards=1)
    for name, words in (
        ("two", r"regression samples \(3,\) of 2 outputs; .* takes \(3,\) and gives 1;"),
        ("classes", r"of 10 classes \(0, 1.*network is for regression, takes \(3,\) and gives 1;"),
    ):
        with pytest.raises(AgreedError, match=words):
            main(["evaluate", str(tmp_path / "run"), "--data", str(tmp_path / name)], Comm())
