"""A user's own loop on two and three ranks; everything in one job each."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.conftest import Finished

NAMES = (
    "equals_the_programs_iteration",
    "loops_of_several_lengths",
    "errors_reach_all_ranks",
    "states_are_taken_up",
    "statistics_of_batch_norm_are_the_same_on_all",
    "bad_states_are_refused_by_all",
)


@pytest.mark.parametrize("ranks", [2, 3])
def test_loops_on_ranks(program: Callable[..., Finished], ranks: int) -> None:
    done = program(ranks, *(f"loop.{name}" for name in NAMES))
    assert done.status == 0, done.out + done.err
