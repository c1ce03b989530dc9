"""The method and its messages on real ranks."""

from __future__ import annotations

from collections.abc import Callable

from tests.conftest import Finished

Program = Callable[..., Finished]


def test_an_exception_on_one_rank_ends_all_with_its_traceback(program: Program) -> None:
    run = program(3, "apts.raising_rank")
    assert run.status == 1
    lines = [line for line in run.err.splitlines() if line.startswith("[rank 1 on ")]
    assert any("ZeroDivisionError: planted" in line for line in lines)


def test_a_fault_in_a_step_is_reported_by_its_rank_alone(program: Program) -> None:
    run = program(3, "mpi.fault_in_a_step")
    assert run.status == 1
    reports = [line for line in run.err.splitlines() if "ZeroDivisionError: planted" in line]
    assert reports
    first, *traceback = reports
    assert first.startswith("apts_mpi: ")
    assert all(line.startswith("[rank 1 on ") for line in traceback)


def test_a_killed_rank_ends_all(program: Program) -> None:
    run = program(3, "mpi.killed_rank")
    assert run.status != 0
