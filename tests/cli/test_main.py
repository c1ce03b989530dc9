"""How a program that fails ends: what a person reads first is of use."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from apts_mpi.__main__ import guarded
from apts_mpi.errors import AgreedError, InputError


def told(program: object, capfd: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    status = guarded(program)  # type: ignore[arg-type]
    out, err = capfd.readouterr()
    assert not out
    return status, err.splitlines()


def test_an_error_in_the_users_file_is_told_with_its_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "net.py"
    path.write_text("import torch\n\ntorch.zeros(2) @ torch.zeros(3)\n")
    status, lines = told(lambda: runpy.run_path(str(path)) and None, capfd)
    assert status == 1
    assert lines[0].startswith(f"apts_mpi: {path}:3, in <module>: RuntimeError: ")
    assert lines[1].endswith("Traceback (most recent call last):")
    assert f"in {path}:3" in lines[-1]
    assert "apts_mpi: RuntimeError: " in lines[-1]
    assert all(line.startswith("[rank 0 on ") for line in lines[1:])


def test_an_error_of_its_own_is_called_one(capfd: pytest.CaptureFixture[str]) -> None:
    from apts_mpi.errors import either

    status, lines = told(lambda: either(()) and None, capfd)
    assert status == 1
    assert "IndexError" in lines[-1]
    assert "a fault of apts_mpi" in lines[-1]


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (InputError("--x: no"), 2, "apts_mpi: --x: no (rank 0 on "),
        (AgreedError("--x: no"), 2, "apts_mpi: --x: no"),
        (AgreedError("stopped", status=3), 3, "apts_mpi: stopped"),
        (KeyboardInterrupt(), 130, "apts_mpi: interrupted (rank 0 on "),
        (InputError("no \udcff"), 2, "apts_mpi: no \\udcff (rank 0"),
    ],
)
def test_what_is_no_crash_is_one_line(
    error: BaseException, status: int, line: str, capfd: pytest.CaptureFixture[str]
) -> None:
    def program() -> None:
        raise error

    found, lines = told(program, capfd)
    assert found == status
    assert len(lines) == 1
    assert lines[0].startswith(line)


def test_memory_that_does_not_suffice_is_told_with_what_helps(
    capfd: pytest.CaptureFixture[str],
) -> None:
    def program() -> None:
        raise MemoryError

    status, lines = told(program, capfd)
    assert status == 1
    assert "a smaller --batch" in lines[-1]
