"""``auto``: work between messages, and their bits, take the least time, within what is known."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from apts_mpi.comm.communicator import Comm
from apts_mpi.errors import InputError
from apts_mpi.settings.config import TrainConfig
from apts_mpi.settings.defaults import OUTER_SAMPLES, completed, plan
from apts_mpi.settings.texts import AUTO
from apts_mpi.settings.toml import to_toml
from apts_mpi.training.flat_network import FlatNetwork
from apts_mpi.training.local_steps import Choice, Costs, chosen, measure, paced
from apts_mpi.training.samples import Held
from apts_mpi.trust_region.metric import Metric

seconds = st.floats(1e-6, 1e2)
MNIST = 60_000


def mnist(outer: int, subdomains: int = 2) -> tuple[int, int]:
    return plan(subdomains, MNIST, outer=outer)


def choice(costs: Costs, subdomains: int = 1) -> Choice:
    of = partial(mnist, subdomains=2 * subdomains)
    numbers = {"ranks": 2, "subdomains": subdomains, "samples": MNIST, "run": 15 * MNIST}
    return chosen(costs, of, **numbers, usual=OUTER_SAMPLES)


def per_work(costs: Costs, one: Choice) -> float:
    """Seconds of as much work as leads to the target."""
    samples = 2 * one.batch * one.steps
    taken = costs.messages[one.form] + one.steps * (costs.step + costs.evaluation(one.batch))
    return (1.0 + samples / (MNIST / 8.0)) * taken / samples


@given(seconds, seconds, st.floats(1e-8, 1e-2), seconds)
def test_no_other_number_of_samples_takes_much_less_time(
    message: float, gradient: float, sample: float, step: float
) -> None:
    costs = Costs({"none": message}, gradient, sample, step)
    found = choice(costs)
    for outer in range(2500, MNIST // 2, 500):
        other = Choice("none", *mnist(outer))
        # The usual one is taken where it is hardly worse, and not every number is looked at.
        assert per_work(costs, found) <= 1.07 * per_work(costs, other)


def test_dear_messages_and_steps_mean_more_samples_and_dear_gradients_fewer() -> None:
    def samples(message: float, step: float, sample: float) -> int:
        one = choice(Costs({"none": message}, 0.0, sample, step))
        return one.batch * one.steps

    assert samples(0.5, 0.0, 1e-5) > samples(0.5, 0.0, 4e-5) > samples(0.005, 0.0, 4e-5)
    assert samples(0.005, 0.02, 4e-5) > samples(0.005, 0.0, 4e-5)


def test_a_message_for_several_subdomains_is_as_dear_as_a_part_of_it_for_one() -> None:
    """Two ranks with four subdomains each have the work of eight ranks, a quarter as fast."""
    four = choice(Costs({"none": 0.4}, 0.0, 1e-5, 0.0), 4)
    eight = chosen(
        Costs({"none": 0.1}, 0.0, 1e-5, 0.0),
        partial(mnist, subdomains=8),
        **{"ranks": 8, "subdomains": 1, "samples": MNIST, "run": 15 * MNIST},
        usual=OUTER_SAMPLES,
    )
    assert four == eight


@pytest.mark.parametrize("epochs", [0.5, 1.0, 4.0, 10.0, 20.0])
def test_a_short_run_has_iterations_even_where_messages_are_dear(
    monkeypatch: pytest.MonkeyPatch, epochs: float
) -> None:
    costs = Costs({"none": 10.0}, 0.0, 1e-5, 0.0)
    monkeypatch.setattr("apts_mpi.training.local_steps.measure", lambda *_: costs)
    config = completed(TrainConfig(local_steps=AUTO, epochs=epochs), 1, MNIST)
    parts = [SimpleNamespace(samples=SimpleNamespace(total=MNIST))] * 2
    one = paced(config, Comm(), lambda _: None, None, parts, batch=None)  # type: ignore[arg-type]
    assert isinstance(one.batch, int)
    assert isinstance(one.local_steps, int)
    iterations = epochs * MNIST / (2 * one.batch * one.local_steps)
    assert iterations == pytest.approx(max(25.0, 2.0 * epochs), rel=0.1)


def test_where_messages_are_cheap_the_usual_work_is_done() -> None:
    """784-128-128-10 on a core: what a local step costs besides its gradient decides."""
    costs = Costs({"none": 3e-4, "int8": 3e-3}, 1e-3, 1e-5, 1.5e-3)
    assert choice(costs) == Choice("none", *mnist(OUTER_SAMPLES))


@pytest.mark.parametrize(
    ("taken", "form"),
    [
        ((1.0, 0.5, 0.26, 0.14), "int4"),  # a narrow link
        ((1e-3, 2e-3, 3e-3, 4e-3), "none"),  # a fast one, where rounding takes longer
        ((1.0, 0.999, 0.998, 0.997), "none"),  # hardly less
        ((1.0, 0.2, 0.199, 0.198), "bf16"),
    ],
)
def test_bits_are_saved_where_that_saves_time(taken: tuple[float, ...], form: str) -> None:
    messages = dict(zip(("none", "bf16", "int8", "int4"), taken, strict=True))
    assert choice(Costs(messages, 0.0, 1e-5, 0.0)).form == form


@pytest.mark.parametrize(
    ("count", "sample", "fixed"),
    [(40, 1e-3, 3e-3), (20, 1e-3, 3e-3), (12, 1.3e-3, 0.0), (5, 0.8e-3, 0.0), (0, 1e-12, 0.0)],
)
def test_gradients_and_steps_are_measured_and_leave_no_trace(
    monkeypatch: pytest.MonkeyPatch, count: int, sample: float, fixed: float
) -> None:
    """3 ms and 1 more for a sample, 2 ms a step: of too few samples the two are not told apart."""
    now = 0.0

    def took(seconds: float) -> None:
        nonlocal now
        now += seconds

    class Slow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden, self.last = nn.Linear(4, 40), nn.Linear(40, 2)
            self.seen: torch.Tensor
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            took(3e-3 + 1e-3 * len(x))
            self.seen += len(x)
            found: torch.Tensor = self.last(self.hidden(x))
            return found

    step = Metric.step

    def slow(metric: Metric, radius: float) -> None:
        took(2e-3)
        step(metric, radius)

    monkeypatch.setattr(Metric, "step", slow)
    clock = SimpleNamespace(perf_counter=lambda: now)
    monkeypatch.setattr("apts_mpi.training.local_steps.time", clock)
    module = Slow()
    network = FlatNetwork(module, lambda out, y: out.sum(dim=1) + y)
    before = network.vector.clone()
    part = SimpleNamespace(samples=Held(torch.ones(count, 4), torch.ones(count), total=count))
    config = TrainConfig(batch=10)
    found = measure(Comm(), network, part, config, ("none", "int8"))  # type: ignore[arg-type]
    assert found.messages == {"none": 0.0, "int8": 0.0}
    figures = (found.step, found.sample, found.gradient)
    assert figures == pytest.approx((2e-3, sample, fixed))
    assert torch.equal(network.vector, before)
    assert module.seen == 0


def test_auto_is_for_the_scaled_solver_and_becomes_a_number_with_minibatches_of_64() -> None:
    config = TrainConfig(local_steps=AUTO)
    complete = completed(config, 2, 60_000)
    assert (complete.batch, complete.compress) == (64, None)
    assert completed(TrainConfig(local_steps=AUTO, batch=32), 2, 60_000).batch == 32
    assert 'local_steps = "auto"' in to_toml(config)
    for other in ({"optimizer": "diloco"}, {"optimizer": "adam"}, {"local_solver": "sr1"}):
        with pytest.raises(InputError, match="--local-steps auto"):
            TrainConfig(local_steps=AUTO, **other)  # type: ignore[arg-type]
