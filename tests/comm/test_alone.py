"""Commands that need no other process need no MPI either."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from apts_mpi.checkpoints.weights import require_suffix
from apts_mpi.errors import InputError
from tests.conftest import LIMIT, Launch

SMALL = ("--hidden", "8", "--iterations", "2", "--threads", "1", "--out", "run")


def test_what_needs_no_ranks_needs_no_mpi(
    launch: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert launch(0, "-m", "apts_mpi", *SMALL).status == 0
    monkeypatch.setenv("MPI4PY_LIBMPI", str(tmp_path / "none.so"))
    for command, status, said in (
        ("--version", 0, "apts_mpi "),
        ("--help", 0, "exit status:"),
        ("export --help", 0, "--out"),
        ("--bogus", 2, "--bogus"),
        ("--join sum", 2, "--join sum: has no effect"),
        ("shard digits --out d --shards 2", 0, "1437"),
        ("inspect d", 0, "1437"),
        ("inspect run", 0, "iteration 2"),
        ("inspect nowhere", 2, "nowhere"),
        ("evaluate run --device cpu", 0, "accuracy"),
        ("export run --out run.safetensors", 0, "tensors after iteration 2"),
        ("export run --out run.pt", 0, "tensors after iteration 2"),
        ("export run --out run.onnx", 2, "--out run.onnx: .onnx is no format of weights"),
        ("export nowhere --out run", 2, "--out run: no ending is no format"),
        (" ".join(SMALL[:-1]) + " other", 1, "no MPI library can be loaded"),
    ):
        done = launch(0, "-m", "apts_mpi", *command.split())
        assert done.status == status, (command, done)
        assert said in (done.err if status else done.out).replace(",", "")
        assert "Traceback" not in done.err
        assert len(done.told) == (status != 0)
    assert not (tmp_path / "other").exists()
    one = load_file(tmp_path / "run.safetensors")
    two = torch.load(tmp_path / "run.pt", weights_only=True)
    assert {k: v.tolist() for k, v in one.items()} == {k: v.tolist() for k, v in two.items()}


def test_without_a_home_a_run_trains(tmp_path: Path, python: str) -> None:
    hidden = ("HOME", "XDG_CACHE_HOME", "APTS_MPI_CACHE")
    environment = {k: v for k, v in os.environ.items() if k not in hidden}
    environment["XDG_CACHE_HOME"] = "/dev/null"
    environment["TMPDIR"] = str(tmp_path)
    done = subprocess.run(
        [python, "-m", "apts_mpi", *SMALL],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        cwd=tmp_path,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"in {tmp_path}/apts_mpi-{os.getuid()}/digits-1" in done.stderr


def test_help_is_quick_and_importing_starts_nothing() -> None:
    code = (
        "import sys; {}; print(*(m for m in ('torch', 'mpi4py.MPI', 'mpi4py') if m in sys.modules))"
    )
    for work, loaded in (
        ("import apts_mpi", ""),
        ("from apts_mpi.cli.main import main; main(['--version'])", ""),
        ("from apts_mpi import StochasticAPTS, Comm", "torch"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code.format(work)],
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=True,
        )
        assert done.stdout.splitlines()[-1] == loaded


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt", "b/a.PTH"])
def test_endings_that_are_known(name: str) -> None:
    require_suffix(Path(name))


@pytest.mark.parametrize("name", ["a", "a.bin", "a.h5", ".pt"])
def test_endings_that_are_not(name: str) -> None:
    with pytest.raises(InputError, match=r"^--out .* is no format of weights; name a file"):
        require_suffix(Path(name))


def test_one_process_agrees_with_itself() -> None:
    from apts_mpi.comm.alone import Alone

    comm = Alone()
    assert (comm.rank, comm.size, comm.local_size) == (0, 1, 1)
    assert comm.host_cores >= 1
    values = np.array([1.5, 2.5])
    comm.maximum(values)
    comm.broadcast(values)
    assert values.tolist() == [1.5, 2.5]
    assert comm.sum_scalars((1.5, 2.0)) == [1.5, 2.0]
    assert comm.broadcast_text("noth\xe9 \udcff") == "noth\xe9 \udcff"
    assert comm.gather_texts("me") == ["me"]
    comm.require_same("settings", ["a", "b"])
    assert comm.first_error(InputError("no \udcff")) == "no \\udcff"
