"""``--local-steps auto``: the work between messages takes the least time, within what is known."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from apts_mpi.comm.communicator import Comm
from apts_mpi.errors import InputError
from apts_mpi.settings.config import TrainConfig
from apts_mpi.settings.defaults import completed
from apts_mpi.settings.texts import AUTO
from apts_mpi.settings.toml import to_toml
from apts_mpi.training.local_steps import local_steps, measure

costs = st.floats(1e-6, 1e2)


@given(costs, costs, st.integers(2000, 10**7), st.integers(1, 64), st.integers(1, 512))
def test_no_other_number_of_steps_takes_less_time(
    message: float, gradient: float, samples: int, ranks: int, batch: int
) -> None:
    together = ranks * batch

    def seconds(steps: float) -> float:  # of as much work as there is
        work = 1.0 + steps * together / (2.0 / 3.0 * samples)
        return work * (message / (steps * together) + gradient / together)

    least, most = (
        min(max(round(part * samples / together), 5), 1000) for part in (1.0 / 12.0, 1.0 / 2.0)
    )
    found = local_steps(
        message=message, gradient=gradient, samples=samples, subdomains=ranks, batch=batch
    )
    assert least <= found <= most
    for other in (found - 1, found + 1):
        if least <= other <= most:
            # Of whole numbers the rounded best is the best but for its own rounding.
            assert seconds(found) <= seconds(other) * (1.0 + 0.5 / found)


def test_dear_messages_mean_more_steps_and_dear_gradients_fewer() -> None:
    usual = {"samples": 60_000, "subdomains": 2, "batch": 64}
    slow = local_steps(message=0.05, gradient=1e-3, **usual)
    fast = local_steps(message=0.005, gradient=1e-3, **usual)
    assert slow > local_steps(message=0.05, gradient=4e-3, **usual) > fast


def test_measured_are_the_messages_and_the_gradient() -> None:
    calls = []
    message, gradient = measure(Comm(), torch.zeros(1000), lambda: calls.append(1))
    assert 0.0 < message < 1.0
    assert 0.0 <= gradient < message
    assert len(calls) >= 3


def test_auto_is_for_the_scaled_solver_and_becomes_a_number_with_minibatches_of_64() -> None:
    config = TrainConfig(local_steps=AUTO)
    assert completed(config, 2, 60_000).batch == 64
    assert completed(TrainConfig(local_steps=AUTO, batch=32), 2, 60_000).batch == 32
    assert 'local_steps = "auto"' in to_toml(config)
    for other in ({"optimizer": "diloco"}, {"optimizer": "adam"}, {"local_solver": "sr1"}):
        with pytest.raises(InputError, match="--local-steps auto"):
            TrainConfig(local_steps=AUTO, **other)  # type: ignore[arg-type]
