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


def test_a_state_does_not_belong_to_the_task() -> None:
    assert StochasticOptions(classification=True).kept() == StochasticOptions().kept()


@pytest.mark.parametrize("given", [1, "yes", None, float("nan")])
def test_whether_the_task_is_classification_is_yes_or_no(given: Any) -> None:
    with pytest.raises(TypeError, match=r"classification is .*: give True or False"):
        StochasticOptions(classification=given)
