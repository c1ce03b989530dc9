"""Checkpoints that are sealed and hold what no run writes: each is refused before it is used."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from apts_mpi.files import sealed

from .asking import Answer, Reader
from .forged_state import as_text, resealed_state
from .subjects import SUBJECTS

NAMES = ["checkpoint of 2 ranks", "checkpoint", "checkpoint sr1", "checkpoint adam"]
GONE = object()
AUTO = "local_steps = 'auto'\n"
HUGE = "hidden = [1048576, 1048576]\n"


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory, python: str) -> Iterator[Reader]:
    environment = {
        "APTS_MPI_CACHE": str(tmp_path_factory.mktemp("cache")),
        "OMP_NUM_THREADS": "1",
    }
    reader = Reader(NAMES, environment, python=python)
    yield reader
    reader.end()


def made(name: str, folder: Path) -> Path:
    """The folder of a good checkpoint."""
    SUBJECTS[name].make(folder)
    return folder / "run/checkpoint/00000003"


def change(path: Path, where: str, value: Any) -> None:
    """Put a value at a dotted place of a state; GONE removes it."""

    def changed(tree: Any) -> bytes:
        *way, last = where.split(".")
        holder = tree
        for name in way:
            holder = holder[name]
        if value is GONE:
            del holder[last]
        elif callable(value):
            holder[last] = value(holder[last])
        else:
            holder[last] = value
        return as_text(tree)

    resealed_state(path, changed)


def told(answer: Answer, *questions: str) -> str:
    """The line of the refusal, which all of the questions had."""
    assert not answer.died
    for question in questions:
        assert answer.found[question][0] == "refused", answer.found[question]
    return answer.found[questions[0]][1]


def without(text: str, name: str) -> str:
    return "".join(line for line in text.splitlines(True) if not line.startswith(f"{name} ="))


COMMON = [
    ("checkpoint", "progress.work", "many", "progress.work"),
    ("checkpoint", "progress.work", math.nan, "progress.work"),
    ("checkpoint", "progress.accepted", -4, "progress.accepted"),
    ("checkpoint", "progress.evaluated_at", math.nan, "progress.evaluated_at"),
    ("checkpoint", "progress.losses", [1.0], "progress.losses"),
    ("checkpoint", "progress.losses", {}, "its progress.losses"),
    ("checkpoint", "progress.converged", 1, "progress.converged"),
    ("checkpoint", "data", GONE, "its data"),
    ("checkpoint", "data.shards", "../../outside", "data.shards"),
    ("checkpoint", "data.classes", ["a\nb"] * 10, "data.classes"),
    ("checkpoint", "data.sample_shape", [8, -8], "data.sample_shape"),
    ("checkpoint", "versions.torch", "two\nlines", "versions"),
    ("checkpoint", "network", {}, "has no network"),
    ("checkpoint", "place.number", -1, "place.number"),
    ("checkpoint", "traffic.broadcasts", -1, "traffic"),
    ("checkpoint", "optimizer.radius", math.nan, "radius"),
    ("checkpoint", "optimizer.radius", 1e300, "radius"),
    ("checkpoint", "optimizer.accepted", -4, "accepted"),
    ("checkpoint", "optimizer.iterations", 7, "has done 7 iterations"),
    ("checkpoint", "optimizer.signs.rejected", "text", "signs.rejected"),
    ("checkpoint", "optimizer.ratio", [1.0], "does not fit"),
    ("checkpoint sr1", "optimizer.losses", [], "knows no losses"),
    ("checkpoint sr1", "optimizer.relaxation", 0.0, "relaxation"),
    ("checkpoint sr1", "optimizer.global_radius", 1e-300, "global_radius"),
    ("checkpoint sr1", "optimizer.global_model.order", [0, 0], "global_model"),
    ("checkpoint adam", "optimizer.optimizer.exp_avg", GONE, "optimizer's optimizer cannot be"),
    ("checkpoint", "complete", lambda text: HUGE + without(text, "hidden"), "shape"),
    ("checkpoint adam", "complete", lambda text: without(text, "lr"), "not complete"),
    ("checkpoint", "complete", lambda text: AUTO + without(text, "local_steps"), "not complete"),
    ("checkpoint", "complete", lambda text: text + "epochs = -1\n", "is not valid TOML"),
    ("checkpoint", "complete", lambda text: without(text, "seed") + "seed = -1\n", "--seed -1"),
]


@pytest.mark.parametrize(
    ("name", "where", "value", "word"), COMMON, ids=[f"{c[1]} {c[3]}" for c in COMMON]
)
def test_what_is_the_same_on_every_rank(
    tmp_path: Path, reader: Reader, name: str, where: str, value: Any, word: str
) -> None:
    path = made(name, tmp_path)
    change(path / "common.h5", f"state.{where}", value)
    line = told(reader.ask(name, tmp_path), "resume", "trained")
    assert str(path) in line
    assert word in line


OWN = [
    ("checkpoint", "state.optimizer.subdomains.0.samples", 10**400, "too many digits"),
    ("checkpoint", "state.optimizer.subdomains.0.samples", -1, "subdomains"),
    ("checkpoint", "state.seconds", GONE, "seconds"),
    ("checkpoint", "state.seconds_total", math.inf, "seconds_total"),
    ("checkpoint", "state.optimizer.new", "\ud800", "surrogates"),
    ("checkpoint", "rank", "0", "is the file of rank '0'"),
    ("checkpoint sr1", "state.optimizer.subdomains.0.weight", math.nan, "subdomains"),
    ("checkpoint sr1", "state.optimizer.subdomains.0.radius", 0.0, "subdomains"),
]


@pytest.mark.parametrize(
    ("name", "where", "value", "word"), OWN, ids=[f"{c[1]} {c[3]}" for c in OWN]
)
def test_what_a_rank_alone_has(
    tmp_path: Path, reader: Reader, name: str, where: str, value: Any, word: str
) -> None:
    path = made(name, tmp_path)
    change(path / "rank-00000.h5", where, value)
    line = told(reader.ask(name, tmp_path), "resume", "trained")
    assert str(path) in line
    assert word in line


@pytest.mark.parametrize(
    "legs",
    [
        [{"ranks": 10**9, "batches": 3, "taken": 1}],
        [{"ranks": 1, "batches": 10**9, "taken": 10**8}],
        [{"ranks": 1, "batches": 3}],
        "text",
    ],
)
def test_places_that_would_take_for_ever(tmp_path: Path, reader: Reader, legs: Any) -> None:
    path = made("checkpoint", tmp_path)
    change(path / "common.h5", "state.place.legs", legs)
    assert str(path) in told(reader.ask("checkpoint", tmp_path), "resume")


@pytest.mark.skipif(shutil.which("mpirun") is None, reason="needs a run by two ranks")
def test_settings_for_another_number_of_ranks_claim_no_memory(
    tmp_path: Path, reader: Reader
) -> None:
    """There the text of what was given decides, not the complete one that was looked at."""
    path = made("checkpoint of 2 ranks", tmp_path)
    change(path / "common.h5", "state.settings", lambda text: HUGE + without(text, "hidden"))
    answer = reader.ask("checkpoint of 2 ranks", tmp_path)
    assert "its network's 1.weight has shape" in told(answer, "resume")
    assert answer.found["trained"][0] == "accepted", answer.found["trained"]


def test_a_rank_s_file_in_the_place_of_the_common_one(tmp_path: Path, reader: Reader) -> None:
    path = made("checkpoint", tmp_path)
    shutil.copy(path / "rank-00000.h5", path / "common.h5")
    line = told(reader.ask("checkpoint", tmp_path), "rank 0 of 2", "resume", "trained")
    assert f"{path / 'common.h5'}: is the file of rank 0" in line


def test_one_array_for_many_tensors(tmp_path: Path, reader: Reader) -> None:
    path = made("checkpoint", tmp_path) / "common.h5"
    change(path, "state.new", {f"w{k}": {"__array__": "/arrays/0"} for k in range(10**4)})
    line = told(reader.ask("checkpoint", tmp_path), "rank 0 of 2", "resume", "trained")
    assert "more than are left" in line


def test_arrays_elsewhere(tmp_path: Path, reader: Reader) -> None:
    path = made("checkpoint", tmp_path) / "common.h5"
    shutil.copy(path, tmp_path / "outside.h5")
    with h5py.File(path, "r+") as file:
        del file["arrays"]
        file["arrays"] = h5py.ExternalLink(str(tmp_path / "outside.h5"), "arrays")
    sealed.seal(path, "apts-mpi-state")
    line = told(reader.ask("checkpoint", tmp_path), "rank 0 of 2", "resume", "trained")
    assert "has no data set 'arrays/0'" in line


@pytest.mark.parametrize(("name", "value"), [("std", 0.0), ("std", math.nan), ("mean", math.nan)])
def test_moments_that_cannot_be(tmp_path: Path, reader: Reader, name: str, value: float) -> None:
    path = made("checkpoint", tmp_path) / "common.h5"
    change(path, f"state.data.{name}", {"__array__": "/arrays/new"})
    with h5py.File(path, "r+") as file:
        file["arrays/new"] = value
    sealed.seal(path, "apts-mpi-state")
    assert f"data.{name}" in told(reader.ask("checkpoint", tmp_path), "resume", "trained")


def test_a_buffer_of_another_shape(tmp_path: Path, reader: Reader) -> None:
    path = made("checkpoint adam", tmp_path) / "common.h5"
    with h5py.File(path) as file:
        n = max(data.size for data in file["arrays"].values())
    change(path, "state.optimizer.optimizer.exp_avg", {"__array__": "/arrays/new"})
    with h5py.File(path, "r+") as file:
        file["arrays/new"] = np.zeros((n, 1), np.float32)
    sealed.seal(path, "apts-mpi-state")
    line = told(reader.ask("checkpoint adam", tmp_path), "resume", "trained")
    assert f"optimizer.exp_avg has shape ({n}, 1)" in line
