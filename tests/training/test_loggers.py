"""What tools get of a run: the same figures by the same names, once per iteration, resumed too."""

from __future__ import annotations

import csv
import json
import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from apts_mpi.comm.alone import Alone
from apts_mpi.errors import AgreedError, InputError
from apts_mpi.settings.config import TrainConfig
from apts_mpi.training import loggers
from apts_mpi.training.loggers import (
    Loggers,
    TensorBoard,
    figures_of,
    open_loggers,
    require_loggers,
)
from tests.training.digit_runs import begin, go_on

ROW = {
    **{"iteration": 3, "epoch": 2.5, "passes": 2.0, "loss": 0.5, "rho": float("nan")},
    **{"accepted": True, "bytes": 800, "seconds": 0.5, "gradient_evaluations": 100.0},
    **{"test_loss": 0.4, "test_accuracy": 0.9, "val_loss": None, "best_val_loss": 0.3},
}
FIGURES = {
    **{"epoch": 2.0, "work": 2.5, "train/loss": 0.5, "accepted": 1.0, "bytes": 800.0},
    **{"seconds": 0.5, "samples_per_second": 200.0, "test/loss": 0.4, "test/accuracy": 0.9},
}
Said = list[str]


def opened(config: TrainConfig, directory: Path, said: Said, done: int = 0) -> Loggers:
    more: dict[str, Any] = {"run": "abc", "done": done, "splits": ["test"], "say": said.append}
    return open_loggers(config, Alone(), directory, **more)


def test_figures_have_clear_names_and_are_finite() -> None:
    assert figures_of(ROW) == FIGURES


def test_a_resumed_run_continues_its_table(tmp_path: Path) -> None:
    out = str(tmp_path / "run")
    flags = ("--batch", "100", "--local-steps", "5", "--checkpoint-every", "2")
    begin(out, *flags, "--log", "csv", "--iterations", "3").run()
    go_on(tmp_path / "run/checkpoint/00000002", iterations=4).run()
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    with (tmp_path / "run/metrics.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["iteration"] for row in table] == ["1", "2", "3", "4"]
    for row, found in zip(rows, table, strict=True):
        assert float(found["train/loss"]) == row["loss"]
        assert float(found["radius"]) == row["radius"]
        known = row.get("test_accuracy")
        assert found["test/accuracy"] == ("" if known is None else str(known))
        assert "val/loss" not in found


@pytest.mark.skipif(find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_event_files_hold_the_figures(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for done in (0, 1):  # the second iteration again, after a resume
        writer = TensorBoard(tmp_path, done)
        for iteration in (1, 2)[done:]:
            writer.log(iteration, {"train/loss": 10.0 * done + iteration, "radius": 0.5})
        writer.close(ended=True)
    found = EventAccumulator(str(tmp_path)).Reload()
    assert set(found.Tags()["scalars"]) == {"train/loss", "radius"}
    assert [(e.step, e.value) for e in found.Scalars("train/loss")] == [(1, 1.0), (2, 12.0)]


class Wandb(ModuleType):
    """Stands for wandb: notes what it is called with."""

    def __init__(self, offline_only: bool = False) -> None:
        super().__init__("wandb")
        self.__spec__ = ModuleSpec("wandb", None)
        self.calls: list[tuple[str, Any]] = []
        self._offline_only = offline_only

    def init(self, **given: Any) -> Any:
        self.calls.append(("init", given))
        if self._offline_only and given["mode"] == "online":
            raise ConnectionError("no route")

        def note(name: str) -> Any:
            return lambda *values, **named: self.calls.append((name, (*values, *named.values())))

        return SimpleNamespace(**{name: note(name) for name in ("define_metric", "log", "finish")})


@pytest.mark.parametrize(
    ("environment", "modes"),
    [
        ({}, ["offline"]),
        ({"WANDB_API_KEY": "k"}, ["online", "offline"]),
        ({"WANDB_MODE": "x"}, "x"),
    ],
)
def test_wandb_is_offline_where_it_must_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], modes: list[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    fake, said = Wandb(offline_only=True), Said()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    found = opened(TrainConfig(log="wandb", hidden=(8,)), tmp_path, said)
    found.log(ROW)
    found.close(ended=False)
    inits = [given for name, given in fake.calls if name == "init"]
    assert [given["mode"] for given in inits] == list(modes)
    assert {given["id"] for given in inits} == {"abc"}
    assert {given["resume"] for given in inits} == {"allow"}
    assert inits[0]["config"]["hidden"] == [8]
    assert ("log", ({"iteration": 3, **FIGURES},)) in fake.calls
    assert fake.calls[-1] == ("finish", (3,))
    assert ["continues offline" in line for line in said] == [True] * (len(modes) - 1)


class Client:
    """Stands for mlflow's client; runs are kept by where they are."""

    runs: dict[str, dict[str, str]] = {}  # noqa: RUF012
    calls: list[tuple[Any, ...]] = []  # noqa: RUF012

    def __init__(self, tracking_uri: str) -> None:
        self.uri = tracking_uri

    def get_experiment_by_name(self, name: str) -> Any:
        return SimpleNamespace(experiment_id=name) if self.runs else None

    def create_experiment(self, name: str) -> str:
        return name

    def search_runs(self, homes: list[str], filter_string: str, max_results: int) -> list[Any]:
        known = [
            run for run, tags in self.runs.items() if f"'{tags['apts_mpi.run']}'" in filter_string
        ]
        return [SimpleNamespace(info=SimpleNamespace(run_id=run)) for run in known]

    def create_run(self, home: str, tags: dict[str, str], run_name: str) -> Any:
        self.runs[f"{self.uri}-{home}-{run_name}"] = tags
        return SimpleNamespace(info=SimpleNamespace(run_id=f"{self.uri}-{home}-{run_name}"))

    def update_run(self, run: str, status: str) -> None:
        self.calls.append(("update", run, status))

    def log_batch(self, run: str, metrics: Any = (), params: Any = ()) -> None:
        self.calls.append(("log", run, list(metrics), list(params)))

    def set_terminated(self, run: str, status: str) -> None:
        self.calls.append(("end", run, status))


def test_mlflow_lies_in_the_run_and_is_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    fake, entities = ModuleType("mlflow"), ModuleType("mlflow.entities")
    fake.__dict__.update(MlflowClient=Client, entities=entities)
    entities.__dict__.update(Metric=lambda *values: values, Param=lambda *values: values)
    for module in (fake, entities):
        module.__spec__ = ModuleSpec(module.__name__, None)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(Client, "runs", {})
    monkeypatch.setattr(Client, "calls", [])
    for ended in (False, True):
        found = opened(TrainConfig(log="mlflow"), tmp_path, Said())
        found.log(ROW)
        found.close(ended=ended)
    (run,) = Client.runs
    assert run == f"{(tmp_path / 'mlruns').as_uri()}-apts_mpi-{tmp_path.name}"
    assert {call[1] for call in Client.calls} == {run}
    kinds = [call[0] for call in Client.calls]
    assert kinds == ["log", "log", "end", "update", "log", "end"]
    assert ("seed", "0") in Client.calls[0][3]
    assert [(key, value, step) for key, value, _, step in Client.calls[1][2]] == [
        (key, value, 3) for key, value in FIGURES.items()
    ]
    assert [call[2] for call in Client.calls if call[0] == "end"] == ["KILLED", "FINISHED"]


def test_a_missing_package_is_named_with_what_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loggers, "find_spec", lambda name: None if name == "wandb" else object())
    with pytest.raises(InputError, match=r"--log wandb: .* not installed; .* `pip install wandb`"):
        require_loggers(TrainConfig(log="csv,wandb"))
    with pytest.raises(InputError, match="--log excel: must be one or more of csv, tensorboard"):
        TrainConfig(log="excel")
    with pytest.raises(InputError, match=r"--log csv,csv: must be one or more .*, each once"):
        TrainConfig(log="csv,csv")


def test_a_tool_that_fails_ends_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = Said()
    found = opened(TrainConfig(log="csv"), tmp_path, said)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(loggers.Csv, "log", full)
    for _ in range(3):
        found.log(ROW)
    assert len(said) == 1
    assert "warning: --log csv: OSError: [Errno 28] No space left" in said[0]
    (tmp_path / "none").write_text("")
    with pytest.raises(AgreedError, match=r"--log csv: cannot be started .*; mend that"):
        opened(TrainConfig(log="csv"), tmp_path / "none", said)
