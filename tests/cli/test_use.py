"""A trained network is evaluated by class, predicts, is loaded from Python, and is drawn."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

import apts_mpi
from apts_mpi.cli.main import main, train_settings
from apts_mpi.comm.alone import Alone
from apts_mpi.data import Source, write_shards
from apts_mpi.errors import AgreedError, InputError
from apts_mpi.networks.losses import criterion
from apts_mpi.networks.task import Task
from apts_mpi.training.confusion import tallied
from apts_mpi.training.loop import Training

SMALL = ("--hidden", "8", "--threads", "1", "--batch", "60", "--local-steps", "5")
NAMES = ("cat", "dog", "cow", "hen", "bee", "ant")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on six classes of bytes, and one on a regression, each with its shards."""
    home, rng = tmp_path_factory.mktemp("use"), np.random.default_rng(0)
    y = rng.integers(6, size=500)
    x = np.clip(rng.normal(100 + 20 * y[:, None], 20, size=(500, 4)), 0, 255).astype(np.uint8)
    np.save(home / "x.npy", x[300:])
    three = (x[:200], y[:200], x[300:], y[300:])
    source = Source("zoo", *three, NAMES, x_val=x[200:300], y_val=y[200:300])
    write_shards(source, home / "zoo", shards=2)
    t = np.stack((x[:, 0] * 3.0 + 1e6, x[:, 1] - 5.0), axis=1)
    plain = Source("line", x[:300], t[:300], x[300:], t[300:], (), task="regression")
    write_shards(plain, home / "line", shards=2)
    for name in ("zoo", "line"):
        flags = ("--data", str(home / name), "--epochs", "20", "--out", str(home / f"{name}-run"))
        Training(train_settings([*SMALL, *flags]), Alone()).run()
    return home


def summary(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "summary.json").read_text())
    return found


Said = Callable[..., str]


@pytest.fixture
def said(home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Said:
    """What a command prints."""
    monkeypatch.chdir(home)

    def run(*arguments: str) -> str:
        assert main([*arguments], Alone()) == 0
        return capsys.readouterr().out

    return run


def test_evaluate_says_how_good_each_class_is(said: Said, home: Path) -> None:
    told = said("evaluate", "zoo-run", "--out", "figures.json", "--device", "cpu")
    found, known = json.loads((home / "figures.json").read_text()), summary(home / "zoo-run")
    matrix = np.array(found["confusion"])
    assert found["accuracy"] == np.diag(matrix).sum() / 200 == known["test_accuracy"]
    assert found["samples"] == matrix.sum() == 200
    assert found["top5_accuracy"] > found["accuracy"]
    for k, row in enumerate(found["by_class"]):
        assert row["class"] == NAMES[k]
        assert row["samples"] == matrix[k].sum()
        assert row["recall"] == pytest.approx(matrix[k, k] / matrix[k].sum())
    assert all(name in told for name in ("top-5 accuracy", "precision", *NAMES))


def test_many_classes_are_listed_by_what_goes_wrong() -> None:
    names = [f"class {k}" for k in range(30)]
    task = Task("classification", (3,), 30)
    judge, tally = tallied(criterion(task), names)
    assert judge.right is not None
    assert tally is not None
    labels = torch.arange(30).repeat(2)
    outputs = torch.eye(30)[labels]
    outputs[7] = torch.eye(30)[8]  # one of two
    assert judge.right(outputs, labels).sum() == 59
    table = tally.table().splitlines()
    assert table[0].startswith("class (the 10 with the lowest F1 of 30)")
    assert table[1].split()[:5] == ["class", "7", "2", "0.5000", "1.0000"]
    assert table[-1].split() == ["class", "7", "class", "8", "1", "50.0", "%"]
    assert tallied(criterion(Task("regression", (3,), 1)), ())[1] is None


@pytest.mark.parametrize("data", ["zoo", "x.npy"])
def test_predictions_of_classes_have_their_names(said: Said, home: Path, data: str) -> None:
    said("predict", "zoo-run", data, "--out", "zoo.csv", "--overwrite", "--device", "cpu")
    with (home / "zoo.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["sample"] for row in rows] == [str(k) for k in range(200)]
    shares = np.array([[float(row[f"p({name})"]) for name in NAMES] for row in rows])
    assert np.allclose(shares.sum(axis=1), 1.0, atol=1e-5)
    assert [row["predicted"] for row in rows] == [NAMES[k] for k in shares.argmax(axis=1)]
    if data == "zoo":
        right = np.mean([row["label"] == row["predicted"] for row in rows])
        assert right == summary(home / "zoo-run")["test_accuracy"]


def test_predictions_of_numbers_are_in_their_units(said: Said, home: Path) -> None:
    said("predict", "line-run", "line", "--out", "line.h5", "--overwrite", "--device", "cpu")
    with h5py.File(home / "line.h5") as file:
        errors = file["predicted"][:] - file["target"][:]
    assert np.mean(errors**2) == pytest.approx(summary(home / "line-run")["test_loss"], rel=1e-6)
    with pytest.raises(AgreedError, match=r"line\.h5: exists; .* --overwrite"):
        said("predict", "line-run", "line", "--out", "line.h5")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("zoo", "--out", "a.txt"), r"--out a\.txt: \.txt is no format of predictions"),
        (("line", "--out", "a.csv"), "--data line: has regression samples"),
        (("wide.npy", "--out", "a.csv"), r"has samples \(5,\), the network takes \(4,\)"),
        (("several.npz", "--out", "a.csv"), "has arrays a, b; call the one with the samples x"),
    ],
)
def test_what_cannot_be_predicted_is_one_line(
    said: Said, home: Path, arguments: tuple[str, ...], told: str
) -> None:
    np.save(home / "wide.npy", np.zeros((2, 5)))
    np.savez(home / "several.npz", a=np.zeros(3), b=np.zeros(3))
    with pytest.raises(AgreedError, match=told):
        said("predict", "zoo-run", *arguments, "--device", "cpu")
    assert not (home / "a.csv").exists()


def test_a_loaded_network_takes_the_users_own_samples(said: Said, home: Path) -> None:
    model = apts_mpi.load(home / "zoo-run")
    assert not model.training
    assert model.classes == NAMES
    logits = model(torch.from_numpy(np.load(home / "x.npy")))
    said("predict", "zoo-run", "x.npy", "--out", "same.h5", "--overwrite", "--device", "cpu")
    with h5py.File(home / "same.h5") as file:
        shares = torch.from_numpy(file["probability"][:])
        assert [name.decode() for name in file["classes"][:]] == list(NAMES)
    assert torch.allclose(logits.softmax(dim=1), shares, atol=1e-6)


def test_a_loaded_regression_answers_in_the_targets_units(home: Path) -> None:
    outputs = apts_mpi.load(str(home / "line-run"))(torch.from_numpy(np.load(home / "x.npy")))
    assert outputs.dtype == torch.float64
    assert outputs.shape == (200, 2)
    assert abs(float(outputs[:, 0].detach().mean()) - 1e6) < 1e4


def test_the_best_is_loaded_where_it_is_asked_for(said: Said, home: Path) -> None:
    known = summary(home / "zoo-run")
    apts_mpi.load(home / "zoo-run", which="best")
    told = said("evaluate", "zoo-run", "--best", "--split", "val", "--device", "cpu")
    assert f"{known['best_val_accuracy']:.4f}" in told
    with pytest.raises(InputError, match="must be 'last' or 'best'"):
        apts_mpi.load(home / "zoo-run", which="first")
    with pytest.raises(AgreedError, match="no checkpoint"):  # none was judged by validation
        apts_mpi.load(home / "line-run", which="best")


def test_runs_are_drawn_side_by_side(said: Said, home: Path) -> None:
    pytest.importorskip("matplotlib")
    assert said("plot", "zoo-run").strip() == "zoo-run/plot.png"
    assert (home / "zoo-run/plot.png").read_bytes().startswith(b"\x89PNG")
    said("plot", "zoo-run", "line-run", "--x", "bytes", "--out", "both.html")
    page = (home / "both.html").read_text()
    assert "http" not in page.replace("http://www.w3.org", "")  # nothing from elsewhere
    assert all(each in page for each in ("zoo-run", "line-run", "test R2", "test accuracy"))


def test_what_cannot_be_drawn_is_one_line(
    said: Said, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for arguments, told in (
        (("zoo",), r"metrics\.jsonl: cannot be read .* name a run directory"),
        (("zoo-run", "--out", "a.gif"), r"--out a\.gif: \.gif is none of"),
    ):
        with pytest.raises(AgreedError, match=told):
            said("plot", *arguments)
    monkeypatch.setattr("apts_mpi.cli.plot.find_spec", lambda name: None)
    with pytest.raises(AgreedError, match="pip install matplotlib"):
        said("plot", "zoo-run")
