"""The files of a run: settings, checkpoints, metrics."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from apts_mpi.errors import AgreedError, InputError
from apts_mpi.settings.config import TrainConfig
from apts_mpi.settings.toml import read_toml, to_toml, tomllib

from .damage import DAMAGES
from .forged_h5 import h5_forgeries, resealed
from .forged_state import state, state_settings, state_text, state_twice
from .forged_text import lines, numbers, toml
from .subject import Question, Subject, digest

ROWS = 12  # of the metrics
PYTHON = sys.executable  # runs what checkpoints are of
WHOLE = "seed batch memory window iterations threads keep local_steps subdomains_per_rank".split()
SMALL = "--hidden 6 --iterations 3 --keep 1 --checkpoint-every 3 --threads 1".split()
JOBS: dict[int, dict[str, tuple[str, ...]]] = {  # by ranks
    1: {
        "checkpoint": (),
        "checkpoint sr1": ("--local-solver", "sr1"),
        "checkpoint adam": ("--optimizer", "adam"),
        "checkpoint diloco": ("--optimizer", "diloco"),
    },
    2: {"checkpoint of 2 ranks": ()},
}

# ---- settings --------------------------------------------------------------------------------


def _make_config(folder: Path) -> None:
    config = TrainConfig(
        data="somewhere/shards", hidden=(64, 32), lr=None, batch=200, epochs=12.5, seed=17, out="o"
    )
    (folder / "config.toml").write_text(to_toml(config), encoding="utf-8")


def _config(folder: Path) -> str:
    return digest(TrainConfig(**read_toml(folder / "config.toml")))


def _plain_config(folder: Path) -> str:
    values = tomllib.loads((folder / "config.toml").read_text(encoding="utf-8"))
    known = dict(TrainConfig().__dict__)
    for name, value in values.items():
        if isinstance(value, list):
            value = tuple(value)
        elif name == "local_steps" and value == "auto":
            value = -1
        elif type(value) is int and name not in WHOLE:
            value = float(value)
        known[name] = value
    return digest(TrainConfig(**known))


# ---- metrics ---------------------------------------------------------------------------------


@functools.cache
def _comm() -> Any:
    from apts_mpi.comm.communicator import Comm

    return Comm()


def _make_metrics(folder: Path) -> None:
    rows = [
        {"iteration": k + 1, "epoch": 1.5 * k, "loss": 1 / (k + 1), "accepted": k % 3 > 0}
        for k in range(ROWS)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _rows(folder: Path) -> str:
    """What of the metrics a run that goes on keeps; fewer rows are a refusal, as it tells that."""
    from apts_mpi.training.run_directory import RunDirectory

    path, before = folder / "metrics.jsonl", b""
    if path.is_file():
        with path.open("rb") as file:
            before = file.read(2**20)
    told: list[str] = []
    try:
        RunDirectory(folder, TrainConfig(), _comm(), warn=told.append, begun=folder, rows=ROWS)
    except AgreedError as error:
        raise InputError(str(error)) from error
    kept = path.read_bytes()
    rows = [json.loads(line) for line in kept.splitlines()]
    assert before.startswith(kept)
    assert [row["iteration"] for row in rows] == list(range(1, len(rows) + 1))
    if len(rows) < ROWS:
        assert told, "rows are lost and nothing is told"
        raise InputError(told[0])
    return digest(kept)


def _plain_rows(folder: Path) -> str:
    rows = (folder / "metrics.jsonl").read_bytes().split(b"\n")[:ROWS]
    return digest(b"".join(row + b"\n" for row in rows))


# ---- checkpoints -----------------------------------------------------------------------------


def _job(ranks: int, runs: Mapping[str, Sequence[str]]) -> subprocess.Popen[str]:
    """Start a job of so many ranks that trains into folders, each with flags of its own."""
    program = (
        "import json, sys\n"
        "from apts_mpi.cli import main as cli\n"
        "from apts_mpi.comm.communicator import Comm\n"
        "for flags in json.loads(sys.argv[1]):\n"
        "    cli.main(flags, Comm())\n"
    )
    flags = [[*SMALL, *more, "--out", folder] for folder, more in runs.items()]
    command = [PYTHON, "-c", program, json.dumps(flags)]
    launcher = shutil.which("mpirun")
    if ranks > 1 and launcher:
        command = [launcher, "-n", str(ranks), *command]
    nothing, pipe = subprocess.DEVNULL, subprocess.PIPE
    return subprocess.Popen(command, stdin=nothing, stdout=nothing, stderr=pipe, text=True)


@functools.cache
def _runs() -> tempfile.TemporaryDirectory[str]:
    """All the runs, made at once, as processes take long to start."""
    folder = tempfile.TemporaryDirectory(prefix="fuzz-runs-")
    jobs = [
        _job(ranks, {f"{folder.name}/{name}/run": flags for name, flags in runs.items()})
        for ranks, runs in JOBS.items()
    ]
    try:
        for job in jobs:
            _, told = job.communicate(timeout=180)
            if job.returncode:
                raise RuntimeError(f"no checkpoints can be made: {told}")
    finally:
        for job in jobs:
            job.kill()
    return folder


def _make_run(name: str, folder: Path) -> None:
    shutil.copytree(Path(_runs().name) / name / "run", folder / "run")


def _read(rank: int, ranks: int, folder: Path) -> str:
    from apts_mpi.checkpoints.folder import read

    found = read(folder / "run/checkpoint/00000003", rank, ranks)
    return digest(found.run, found.iteration, found.ranks, _flat(found.common), _flat(found.own))


def _flat(state: Any) -> str:
    if isinstance(state, dict):
        return digest(*((name, _flat(value)) for name, value in sorted(state.items())))
    return digest(state.numpy() if hasattr(state, "numpy") else state)


def _resume(folder: Path) -> str:
    """The parameters after one more iteration."""
    from apts_mpi.training import resuming
    from apts_mpi.training.loop import Training
    from apts_mpi.training.summary import table

    given = {"resume": str(folder / "run"), "out": str(folder / "next"), "iterations": 4}
    try:
        config, found = resuming.settings(given, _comm(), _mute)
        training = Training(config, _comm(), resumed=found)
        told = table(training.run(), training.directory.path)
    except AgreedError as error:
        raise InputError(str(error)) from error
    assert all(map(str.isprintable, told.splitlines()))
    return digest(training.built.network.vector.numpy())


def _trained(folder: Path) -> str:
    """What `inspect` and `evaluate` tell, and what `export` writes."""
    from safetensors import safe_open

    from apts_mpi.checkpoints.folder import newest
    from apts_mpi.cli import trained
    from apts_mpi.training.trained import restore

    path, comm = folder / "network.safetensors", _comm()
    try:
        found = newest(folder / "run", comm, _mute)
        told = trained.describe(found, comm, named=None)
        network = restore(found, comm, named=None)
        score = trained.score(network, comm, _mute, data=None, split="test", device="cpu")
        trained.export(network, path, overwrite=True)
    except AgreedError as error:
        raise InputError(str(error)) from error
    assert len(told.splitlines()) == 11, told
    with safe_open(path, "pt") as file:  # which has its entries in no order
        entries = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        about = sorted(file.metadata().items())
    return digest(told, score, about, _flat(entries))


def _mute(line: str) -> None:
    """Takes what is said, which must be lines."""
    assert line.isprintable(), line


QUESTIONS: dict[str, Question] = {
    "rank 0 of 2": functools.partial(_read, 0, 2),
    "rank 1 of 2": functools.partial(_read, 1, 2),
    "rank 2 of 3": functools.partial(_read, 2, 3),
    "resume": _resume,
    "trained": _trained,
}
CHANGES = {
    "forged state": state,
    "forged settings": state_settings,
    "forged text": state_text,
    "forged copies": state_twice,
    "flip bits under the seal": resealed("apts-mpi-state", DAMAGES["flip bits"]),
    **h5_forgeries("apts-mpi-state"),
}


def _checkpoint(name: str) -> Subject:
    make = functools.partial(_make_run, name)
    return Subject(name, make, ("run/checkpoint/*/*.h5",), QUESTIONS, CHANGES, steers=True)


RUNS = (
    *(_checkpoint(name) for runs in JOBS.values() for name in runs),
    Subject(
        "config",
        _make_config,
        ("*.toml",),
        {"settings": _config},
        {"settings": toml, "digits": numbers},
        checked=False,
        plain=_plain_config,
        steers=True,
        pipe=False,
    ),
    Subject(
        "metrics",
        _make_metrics,
        ("*.jsonl",),
        {"rows": _rows},
        {"lines": lines, "digits": numbers},
        checked=False,
        plain=_plain_rows,
    ),
)
