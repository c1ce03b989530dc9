"""The clock: every moment belongs to one phase, whatever is nested in what."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apts_mpi.comm.clock import PHASES, Clock


@pytest.fixture
def ticks(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which a test moves by hand."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def test_a_moment_belongs_to_the_innermost_phase(ticks: list[float]) -> None:
    clock = Clock()
    ticks[0] += 1.0
    with clock.phase("algebra"):
        ticks[0] += 2.0
        with clock.phase("wait"):
            ticks[0] += 4.0
        ticks[0] += 8.0
    ticks[0] += 16.0
    lap = clock.lap()
    assert {k: v for k, v in lap.items() if v} == {"other": 17.0, "algebra": 10.0, "wait": 4.0}
    assert not any(clock.lap().values())


@given(st.recursive(st.just([]), lambda inner: st.lists(inner, max_size=4), max_leaves=30))
def test_the_phases_add_up_to_the_time_that_passed(tree: list[object]) -> None:
    clock = Clock()
    before = clock._since

    def enter(node: list[object], depth: int) -> None:
        with clock.phase(PHASES[depth % len(PHASES)]):
            for child in node:
                enter(child, depth + 1)  # type: ignore[arg-type]

    enter(tree, 0)
    clock.lap()
    assert sum(clock.seconds.values()) == pytest.approx(clock._since - before, abs=1e-9)


def test_an_error_closes_the_phase(ticks: list[float]) -> None:
    clock = Clock()

    def read() -> None:
        with clock.phase("data"):
            ticks[0] += 1.0
            raise ValueError("lost")

    with pytest.raises(ValueError, match="lost"):
        read()
    ticks[0] += 2.0
    clock.lap()
    assert (clock.seconds["data"], clock.seconds["other"]) == (1.0, 2.0)


def test_a_trace_has_spans_with_bytes_and_is_kept_only_where_wanted(ticks: list[float]) -> None:
    clock = Clock()
    with clock.phase("data"):
        pass
    assert clock.spans is None
    clock.trace()
    with clock.phase("algebra", "iteration 1"):
        ticks[0] += 1.0
        with clock.phase("allreduce", nbytes=40):
            ticks[0] += 1.0
    assert clock.spans is not None
    inner, outer = clock.spans
    assert (inner.label, inner.start, inner.end, inner.nbytes) == ("allreduce", 1.0, 2.0, 40)
    assert (outer.label, outer.phase, outer.start, outer.end) == ("iteration 1", "algebra", 0, 2)


def test_a_clock_that_is_off_measures_nothing() -> None:
    clock = Clock(on=False)
    clock.trace()
    with clock.phase("data"):
        time.sleep(0.001)
    assert not any(clock.lap().values())
    assert clock.spans is None
