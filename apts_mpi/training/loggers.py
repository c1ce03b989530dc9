"""``--log``: a run's metrics for the tools that people look at them with, from rank 0 alone.

Every tool gets the same figures by the same names, once per outer iteration, and a run that is
resumed continues its log. No tool can end a run: what one cannot take is reported once.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from apts_mpi.comm.communicator import Comm
from apts_mpi.errors import InputError, kind_of
from apts_mpi.files import sealed
from apts_mpi.settings.config import TrainConfig

# The module of each, and what to install.
_NEEDED = {
    "csv": ("csv", ""),
    "tensorboard": ("tensorboard", "tensorboard"),
    "wandb": ("wandb", "wandb"),
    "mlflow": ("mlflow", "mlflow-skinny"),
}
CSV, TENSORBOARD, MLFLOW = "metrics.csv", "tensorboard", "mlruns"  # in the run's directory
PROJECT = "apts_mpi"
# What figures of a row of the metrics are called; those of splits are SPLIT/KIND.
_NAMES = {
    "passes": "epoch",
    "epoch": "work",
    "loss": "train/loss",
    "radius": "radius",
    "rho": "ratio",
    "accepted": "accepted",
    "bytes": "bytes",
    "seconds": "seconds",
}
_KINDS = ("loss", "accuracy", "perplexity", "r2")

Figures = dict[str, float]


class Logger(Protocol):
    """A tool that metrics go to."""

    def log(self, iteration: int, figures: Figures) -> None:
        """Take the figures of an outer iteration."""

    def close(self, *, ended: bool) -> None:
        """No more of them; ``ended``: the run has come to its end and is not to be resumed."""


def figures_of(row: dict[str, Any]) -> Figures:
    """The figures of a row of the metrics by the names that tools get; finite ones alone."""
    found = {name: row.get(key) for key, name in _NAMES.items()}
    found["samples_per_second"] = row["gradient_evaluations"] / max(row["seconds"], 1e-9)
    for split in ("val", "test"):
        found |= {f"{split}/{kind}": row.get(f"{split}_{kind}") for kind in _KINDS}
    return {k: float(v) for k, v in found.items() if v is not None and math.isfinite(v)}


def names_of(splits: Iterable[str]) -> list[str]:
    """All names that figures may have, in order."""
    judged = [f"{split}/{kind}" for split in splits for kind in _KINDS]
    return [*_NAMES.values(), "samples_per_second", *judged]


def require_loggers(config: TrainConfig) -> None:
    """See that the packages of the tools are installed.

    Raises:
        InputError: one is not; the line says how to install it.
    """
    for name in config.loggers:
        module, install = _NEEDED[name]
        if find_spec(module) is None:
            raise InputError(
                f"--log {name}: {install} is not installed; install it with `pip install "
                f"{install}` (or 'apts_mpi[log]')"
            )


class Loggers:
    """The tools of a run; on other ranks than 0 there are none.

    Args:
        loggers: by name. say: takes a line.
    """

    def __init__(self, loggers: dict[str, Logger], say: Callable[[str], object]) -> None:
        self._loggers, self._say, self._failed = loggers, say, set[str]()

    def log(self, row: dict[str, Any]) -> None:
        """A row of the metrics for all of them."""
        if self._loggers:
            iteration, figures = int(row["iteration"]), figures_of(row)
            self._each(lambda logger: logger.log(iteration, figures))

    def close(self, *, ended: bool) -> None:
        """No more rows."""
        self._each(lambda logger: logger.close(ended=ended))
        self._loggers = {}

    def _each(self, what: Callable[[Logger], None]) -> None:
        for name, logger in self._loggers.items():
            try:
                what(logger)
            except Exception as error:  # of somebody else's code, over the network or on a disk
                if name not in self._failed:
                    self._failed.add(name)
                    line = f"warning: --log {name}: {kind_of(error)}; the run goes on without"
                    self._say(line)


def open_loggers(
    config: TrainConfig,
    comm: Comm,
    directory: Path,
    *,
    run: str,
    done: int,
    splits: Sequence[str],
    say: Callable[[str], object],
) -> Loggers:
    """The tools that the settings name; every rank calls it.

    Args:
        directory: of the run. run: its name, which it keeps as it is resumed. done: iterations that
            it has behind it. splits: that are evaluated.

    Raises:
        AgreedError: on every rank, where one cannot be started.
    """
    made: dict[str, Logger] = {}
    with comm.together():
        for name in config.loggers if comm.rank == 0 else ():
            try:
                if name == "csv":
                    made[name] = Csv(directory / CSV, names_of(splits), done)
                elif name == "tensorboard":
                    made[name] = TensorBoard(directory / TENSORBOARD, done)
                elif name == "wandb":
                    made[name] = Wandb(directory, run, _plain(config), say)
                else:
                    made[name] = MLflow(directory, run, _plain(config))
            except Exception as error:
                what = f"--log {name}: cannot be started ({kind_of(error)})"
                raise InputError(f"{what}; mend that, or leave it out") from error
    return Loggers(made, say)


def _plain(config: TrainConfig) -> dict[str, Any]:
    """The settings, as tools take them."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in dataclasses.asdict(config).items()
        if value is not None
    }


class Csv:
    """A table in the run's directory: a row per iteration, a column per name.

    Args:
        path: of the file. names: of the columns, besides the iteration. done: iterations whose rows
            stand, of a file that is there.
    """

    def __init__(self, path: Path, names: Sequence[str], done: int) -> None:
        self._columns = ["iteration", *names]
        head = io.StringIO(newline="")
        table = csv.DictWriter(head, self._columns, extrasaction="ignore", restval="")
        table.writeheader()
        if done and path.is_file():
            with path.open(encoding="utf-8", newline="") as file:
                for row in csv.DictReader(file):
                    number = row.get("iteration") or ""
                    if number.isdigit() and int(number) <= done:
                        table.writerow({k: row.get(k) for k in self._columns})
        sealed.write(path, head.getvalue().encode())
        self._file = path.open("a", encoding="utf-8", newline="", buffering=1)
        self._rows = csv.DictWriter(self._file, self._columns, extrasaction="ignore", restval="")

    def log(self, iteration: int, figures: Figures) -> None:
        """Append a row; empty where there is no figure."""
        self._rows.writerow({"iteration": iteration, **figures})

    def close(self, *, ended: bool) -> None:
        """Close the file."""
        self._file.close()


class TensorBoard:
    """Event files; what an earlier attempt wrote of later iterations is hidden."""

    def __init__(self, directory: Path, done: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        writer: Any = SummaryWriter
        self._writer = writer(str(directory), purge_step=done + 1 if done else None, flush_secs=20)

    def log(self, iteration: int, figures: Figures) -> None:
        """A scalar of each, at the iteration."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, iteration)

    def close(self, *, ended: bool) -> None:
        """Close the files."""
        self._writer.close()


class Wandb:
    """A run of the project ``apts_mpi`` (WANDB_PROJECT), offline unless there is a key to log in.

    WANDB_MODE decides where it is set. Offline runs lie in the run's directory, for `wandb sync`.
    """

    def __init__(
        self, directory: Path, run: str, settings: dict[str, Any], say: Callable[[str], object]
    ) -> None:
        import wandb

        known: dict[str, Any] = {
            "project": os.environ.get("WANDB_PROJECT", PROJECT),
            "dir": str(directory.absolute()),
            "id": run,
            "name": directory.absolute().name,
            "resume": "allow",
            "config": settings,
        }
        key = "WANDB_API_KEY" in os.environ or Path("~/.netrc").expanduser().is_file()
        mode = os.environ.get("WANDB_MODE") or ("online" if key else "offline")
        try:
            self._run = wandb.init(mode=mode, **known)
        except Exception as error:
            if mode != "online" or "WANDB_MODE" in os.environ:
                raise
            say(f"warning: --log wandb: {kind_of(error)}; it continues offline")
            self._run = wandb.init(mode="offline", **known)
        # Not wandb's own steps, which may not go back, as those of a resumed run do.
        self._run.define_metric("iteration")
        self._run.define_metric("*", step_metric="iteration")

    def log(self, iteration: int, figures: Figures) -> None:
        """All of them at the iteration."""
        self._run.log({"iteration": iteration, **figures})

    def close(self, *, ended: bool) -> None:
        """Finish the run."""
        self._run.finish(exit_code=0 if ended else 3)


class MLflow:
    """A run of the experiment ``apts_mpi`` (MLFLOW_EXPERIMENT_NAME) where MLFLOW_TRACKING_URI says.

    Without that, in the folder ``mlruns`` of the run's directory.
    """

    _TAG = "apts_mpi.run"

    def __init__(self, directory: Path, run: str, settings: dict[str, Any]) -> None:
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if not uri:  # newer versions ask whether files are meant
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            uri = (directory / MLFLOW).absolute().as_uri()
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        self._metric, self._client = Metric, MlflowClient(tracking_uri=uri)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self._client.get_experiment_by_name(name)
        home = self._client.create_experiment(name) if found is None else found.experiment_id
        wanted = f"tags.`{self._TAG}` = '{run}'"
        before = self._client.search_runs([home], filter_string=wanted, max_results=1)
        if before:
            self._id = before[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
            return
        title = directory.absolute().name
        made = self._client.create_run(home, tags={self._TAG: run}, run_name=title)
        self._id = made.info.run_id
        params = [Param(key, str(value)[:500]) for key, value in settings.items()]
        self._client.log_batch(self._id, params=params[:100])

    def log(self, iteration: int, figures: Figures) -> None:
        """All of them at the iteration."""
        now = int(1000 * time.time())
        metrics = [self._metric(k, value, now, iteration) for k, value in figures.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def close(self, *, ended: bool) -> None:
        """Set the run's status."""
        self._client.set_terminated(self._id, status="FINISHED" if ended else "KILLED")
