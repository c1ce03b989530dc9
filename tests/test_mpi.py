"""The method and its messages on real ranks."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from conftest import Finished

Program = Callable[..., Finished]


@pytest.mark.parametrize(
    ("ranks", "names"),
    [
        (1, ("fused_sum",)),
        (2, ("identical_data", "message_counts", "first_batch_empty", "diverged_replicas")),
        (3, ("weighted_loss", "radius_bounds_correction", "lone_non_finite_trial")),
        (3, ("rank_without_samples", "restored_ranks", "agreement", "different_networks")),
        (4, ("identical_data", "first_order_consistency")),
        (8, ("fused_sum", "first_order_consistency")),
    ],
)
def test_holds_on_every_rank(program: Program, ranks: int, names: tuple[str, ...]) -> None:
    run = program(ranks, *names)
    assert run.status == 0, run.out + run.err


def test_an_exception_on_one_rank_ends_all_with_its_traceback(program: Program) -> None:
    start = time.monotonic()
    run = program(4, "raising_rank", timeout=30)
    assert time.monotonic() - start < 5 + 10  # the start of four interpreters included
    assert run.status == 1
    lines = [line for line in run.err.splitlines() if line.startswith("[rank 1 on ")]
    assert any("ZeroDivisionError: planted" in line for line in lines)


def test_a_killed_rank_ends_all(program: Program) -> None:
    run = program(4, "killed_rank", timeout=30)
    assert run.status != 0
