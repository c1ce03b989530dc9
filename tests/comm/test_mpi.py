"""The method and its messages on real ranks."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from tests.conftest import Finished

Program = Callable[..., Finished]


@pytest.mark.usefixtures("all_cores")  # first, as the time is taken
def test_an_exception_on_one_rank_ends_all_with_its_traceback(program: Program) -> None:
    start = time.monotonic()
    run = program(3, "mpi.raising_rank", timeout=30)
    assert time.monotonic() - start < 5 + 10  # the start of three interpreters included
    assert run.status == 1
    lines = [line for line in run.err.splitlines() if line.startswith("[rank 1 on ")]
    assert any("ZeroDivisionError: planted" in line for line in lines)


def test_a_killed_rank_ends_all(program: Program) -> None:
    run = program(3, "mpi.killed_rank", timeout=30)
    assert run.status != 0
