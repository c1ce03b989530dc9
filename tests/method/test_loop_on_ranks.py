"""A user's own loop on three ranks; everything in one job."""

from __future__ import annotations

from collections.abc import Callable

from tests.conftest import Finished

NAMES = (
    "equals_the_programs_iteration",
    "classification_on_some_ranks",
    "loops_of_several_lengths",
    "errors_reach_all_ranks",
    "states_are_taken_up",
    "statistics_of_batch_norm_are_the_same_on_all",
    "bad_states_are_refused_by_all",
)


def test_loops_on_ranks(program: Callable[..., Finished]) -> None:
    done = program(3, *(f"loop.{name}" for name in NAMES))
    assert done.status == 0, done.out + done.err
