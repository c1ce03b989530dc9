"""``auto``: work between messages, and their bits, take the least time, within what is known."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from apts_mpi.comm.communicator import Comm
from apts_mpi.errors import InputError
from apts_mpi.settings.config import TrainConfig
from apts_mpi.settings.defaults import OUTER_SAMPLES, completed
from apts_mpi.settings.texts import AUTO
from apts_mpi.settings.toml import to_toml
from apts_mpi.training.local_steps import chosen, measure

costs = st.floats(1e-6, 1e2)


@given(costs, costs, st.integers(2000, 10**7))
def test_no_other_number_of_samples_takes_less_time(
    message: float, each: float, samples: int
) -> None:
    def seconds(outer: float) -> float:  # of as much work as there is
        return (1.0 + outer / (2.0 / 3.0 * samples)) * (message / outer + each)

    found = chosen({"none": message}, each, samples=samples, usual=OUTER_SAMPLES).samples
    least, most = min(samples / 12.0, OUTER_SAMPLES), samples / 2.0
    assert round(least) <= found <= round(most)
    for other in (0.9 * found, 1.1 * found):
        if least <= other <= most:
            assert seconds(found) <= seconds(other)


def test_dear_messages_mean_more_samples_and_dear_gradients_fewer() -> None:
    def samples(message: float, each: float) -> int:
        return chosen({"none": message}, each, samples=60_000, usual=OUTER_SAMPLES).samples

    assert samples(0.05, 1e-5) > samples(0.05, 4e-5) > samples(0.005, 1e-5)


@pytest.mark.parametrize(
    ("seconds", "form"),
    [
        ((1.0, 0.5, 0.26, 0.14), "int4"),  # a narrow link
        ((1e-3, 2e-3, 3e-3, 4e-3), "none"),  # a fast one, where rounding takes longer
        ((1.0, 0.999, 0.998, 0.997), "none"),  # hardly less
        ((1.0, 0.2, 0.199, 0.198), "bf16"),
    ],
)
def test_bits_are_saved_where_that_saves_time(seconds: tuple[float, ...], form: str) -> None:
    messages = dict(zip(("none", "bf16", "int8", "int4"), seconds, strict=True))
    found = chosen(messages, 1e-5, samples=60_000, usual=OUTER_SAMPLES)
    assert (found.form, found.message) == (form, messages[form])


def test_measured_are_the_messages_and_the_gradient() -> None:
    calls = []
    (message, other), gradient = measure(
        Comm(), torch.zeros(1000), lambda: calls.append(1), forms=("none", "int8")
    )
    assert 0.0 < message < 1.0
    assert 0.0 < other < 1.0
    assert 0.0 <= gradient < message
    assert len(calls) >= 3


def test_auto_is_for_the_scaled_solver_and_becomes_a_number_with_minibatches_of_64() -> None:
    config = TrainConfig(local_steps=AUTO)
    complete = completed(config, 2, 60_000)
    assert (complete.batch, complete.compress) == (64, None)
    assert completed(TrainConfig(local_steps=AUTO, batch=32), 2, 60_000).batch == 32
    assert 'local_steps = "auto"' in to_toml(config)
    for other in ({"optimizer": "diloco"}, {"optimizer": "adam"}, {"local_solver": "sr1"}):
        with pytest.raises(InputError, match="--local-steps auto"):
            TrainConfig(local_steps=AUTO, **other)  # type: ignore[arg-type]
