"""A user's own loop outlives its ranks: real jobs, some of whose ranks kill themselves."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.conftest import MPIRUN, Finished

ULFM = ("--with-ft", "ulfm")


@pytest.fixture(autouse=True, scope="module")
def with_ulfm() -> None:
    """Only where ranks can outlive others."""
    if MPIRUN is None or sys.platform != "linux":
        pytest.skip("ranks are killed in jobs of mpirun on Linux")
    told = subprocess.run([MPIRUN, "--version"], capture_output=True, text=True, timeout=60).stdout
    version = re.search(r"Open MPI\D* (\d+)", told)
    if version is None or int(version[1]) < 5:
        pytest.skip("needs the mpirun of Open MPI 5, which has ULFM")


def test_survivors_go_the_very_way_of_a_loop_resumed_on_as_many_ranks(
    program: Callable[..., Finished],
) -> None:
    done = program(3, "surviving.goes_on", mpirun=ULFM)
    assert done.status == 0, done.out + done.err
    line = "rank 1 is gone (in iteration 5): 2 of 3 ranks are left and go on after iteration 4"
    assert line in done.err
    done = program(2, "surviving.resumed")
    assert done.status == 0, done.out + done.err


def test_a_loop_goes_on_until_one_rank_is_left(program: Callable[..., Finished]) -> None:
    done = program(3, "surviving.another_dies_meanwhile", mpirun=ULFM)
    assert done.status == 0, done.out + done.err
    assert "rank 2 is gone (in iteration 5): 1 of 2 ranks are left" in done.err


def test_deaths_between_the_loops_are_noticed_at_the_next_message(
    program: Callable[..., Finished],
) -> None:
    done = program(3, "surviving.between_loops", mpirun=ULFM)
    assert done.status == 0, done.out + done.err


def test_without_fault_tolerance_one_line_says_what_is_missing(
    program: Callable[..., Finished],
) -> None:
    done = program(2, "surviving.cannot")
    assert done.status == 0, done.out + done.err
    lines = [line for line in done.out.splitlines() if line.startswith("on_lost_ranks: ")]
    assert len(lines) == 2
    assert lines[0].endswith("(docs/elastic.md); or leave it out")
