"""How ranks join their corrections, on real ranks."""

from __future__ import annotations

import pytest
from conftest import TESTS, Launch


@pytest.mark.parametrize(("ranks", "names"), [(4, ("rows_of_scalars",))])
def test_holds_on_every_rank(launch: Launch, ranks: int, names: tuple[str, ...]) -> None:
    run = launch(ranks, TESTS / "joining_programs.py", *names)
    assert run.status == 0, run.out + run.err
