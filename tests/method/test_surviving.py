"""A user's own loop outlives its ranks: real jobs, some of whose ranks kill themselves."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from tests.conftest import Finished

ULFM = ("--with-ft", "ulfm")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="ranks are killed on Linux")


def test_survivors_go_the_very_way_of_a_loop_resumed_on_as_many_ranks(
    program: Callable[..., Finished],
) -> None:
    done = program(3, "surviving.goes_on", mpirun=ULFM)
    assert done.status == 0, done.out + done.err
    line = "rank 1 is gone (in iteration 5): 2 of 3 ranks are left and go on after iteration 4"
    assert line in done.err
    done = program(2, "surviving.resumed")
    assert done.status == 0, done.out + done.err
