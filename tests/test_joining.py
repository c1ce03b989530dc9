"""How ranks join their corrections: in 16 bits, within hosts and between them, on real ranks."""

from __future__ import annotations

import pytest
from conftest import TESTS, Launch

MESSAGES = (
    *("rows_of_scalars", "sums", "exact_on_request", "non_finite"),
    *("wishes", "traffic", "other_operations"),
    *("device_memory", "gpu_aware_falls_back"),
)


@pytest.mark.parametrize(
    ("ranks", "names"),
    [
        (1, MESSAGES),
        (2, (*MESSAGES, "restored", "rejected", "deterministic_as_well")),
        (3, MESSAGES),
        (4, ("trained_as_well",)),
        (8, MESSAGES),
    ],
)
def test_holds_on_every_rank(launch: Launch, ranks: int, names: tuple[str, ...]) -> None:
    run = launch(ranks, TESTS / "joining_programs.py", *names, timeout=120)
    assert run.status == 0, run.out + run.err
