"""The methods' options check themselves, and refuse what has no effect."""

from __future__ import annotations

from typing import Any

import pytest

from apts_mpi.method.options import APTSOptions, StochasticOptions


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"memory": 7, "local_solver": "first-order"}, "memory 7 has no effect"),
        ({"momentum": 0.3, "consistency": False, "global_step": False}, "momentum 0.3 has no"),
    ],
)
def test_an_option_without_effect_is_refused(options: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=line):
        APTSOptions(**options)


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_momentum_that_is_off_or_usual_is_no_error(momentum: float) -> None:
    assert not APTSOptions(momentum=momentum, consistency=False, global_step=False).consistency


@pytest.mark.parametrize("kind", [APTSOptions, StochasticOptions])
def test_a_state_does_not_belong_to_an_initial_radius(kind: type) -> None:
    assert kind(radius=0.5).kept() == kind().kept()


def test_a_state_does_not_belong_to_the_length_of_a_pass() -> None:
    assert StochasticOptions(per_pass=3).kept() == StochasticOptions().kept()


def test_an_iteration_goes_less_far_with_each_pass_down_to_a_least() -> None:
    options = StochasticOptions(local_steps=20, per_pass=40)
    found = [options.room(iterations) for iterations in (0, 1, 2, 4, 6, 1000)]
    assert found == pytest.approx([0.5, 0.5 / 1.5, 0.25, 0.5 / 3.0, 0.15, 0.15])
    few = StochasticOptions(local_steps=20, per_pass=3)  # a pass counts as two iterations at least
    assert [few.room(k) for k in (1, 2, 100)] == pytest.approx([0.5 / 1.5, 0.25, 0.15])
    assert StochasticOptions().room(1000) == 1.0


@pytest.mark.parametrize("per_pass", [0, -1.0, float("nan"), float("inf")])
def test_a_pass_without_minibatches_is_refused(per_pass: float) -> None:
    with pytest.raises(ValueError, match="per_pass"):
        StochasticOptions(per_pass=per_pass)
