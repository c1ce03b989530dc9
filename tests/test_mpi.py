"""The method and its messages on real ranks."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from conftest import Finished

Program = Callable[..., Finished]


@pytest.mark.parametrize("ranks", [2, 3, 4, 8])
def test_consistency_terms_sum_to_zero_and_local_gradients_agree(
    program: Program, ranks: int
) -> None:
    run = program(ranks, "first_order_consistency")
    assert run.status == 0, run.err


@pytest.mark.parametrize(
    ("ranks", "name"),
    [
        (3, "weighted_loss"),
        (2, "identical_data"),
        (4, "identical_data"),
        (3, "radius_bounds_correction"),
        (2, "message_counts"),
        (3, "lone_non_finite_trial"),
        (3, "rank_without_samples"),
        (2, "first_batch_empty"),
        (3, "restored_ranks"),
        (1, "fused_sum"),
        (8, "fused_sum"),
        (3, "agreement"),
        (2, "diverged_replicas"),
        (3, "different_networks"),
    ],
)
def test_holds_on_every_rank(program: Program, ranks: int, name: str) -> None:
    run = program(ranks, name)
    assert run.status == 0, run.err


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
