"""Settings that are not given: every one has a value, which stays what it is."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apts_mpi.errors import InputError
from apts_mpi.method.options import AVERAGING
from apts_mpi.settings.config import SETTINGS, TrainConfig
from apts_mpi.settings.defaults import completed, plan
from apts_mpi.trust_region.radius import NoisyRule
from tests.settings.strategies import configs

repeatable = settings(max_examples=60, deadline=None, derandomize=True)


@repeatable
@given(config=configs(), ranks=st.integers(1, 4096))
def test_completed_settings_are_complete_and_stay_so(config: TrainConfig, ranks: int) -> None:
    done = completed(config, ranks, 1000)
    assert completed(done, ranks + 1, 10) == done, "a run that repeats has other settings"
    assert (done.lr is None) == (done.optimizer == "apts")
    assert (done.local_steps is None) == (done.optimizer in AVERAGING)
    for name in ("lr", "local_steps", "batch", "window", "epochs"):
        given = getattr(config, name)
        assert given is None or getattr(done, name) == given
    for name in ("lr", "local_steps", "batch", "window", "epochs"):
        found = getattr(done, name)
        assert found is None or type(found) is SETTINGS[name].kind.type, (
            f"{name} reads back as another"
        )
    if not config.deterministic:
        assert done.batch is not None


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("apts", (None, *reversed(plan(3, 1000)))),
        ("sgd", (0.1, None, 167)),
        ("adam", (1e-3, None, 167)),
        ("local-sgd", (0.1, 20, 167)),
        ("diloco", (1e-3, 20, 167)),
        ("adamw", (1e-3, None, 167)),
        ("muon", (3e-3, None, 167)),
        ("schedule-free", (2.5e-3, None, 167)),
        ("prodigy", (1.0, None, 167)),
        ("muloco", (3e-3, 20, 167)),
    ],
)
def test_an_optimizer_has_defaults_of_its_own(name: str, wanted: tuple[Any, ...]) -> None:
    done = completed(TrainConfig(optimizer=name), 3, 1000)
    assert (done.lr, done.local_steps, done.batch) == wanted


def test_samples_between_messages_decide_the_steps() -> None:
    few, many = (completed(TrainConfig(outer_samples=n), 2, 60_000) for n in (1000, 8000))
    assert few.batch is not None
    assert many.batch is not None
    assert few.batch * few.local_steps < many.batch * many.local_steps  # type: ignore[operator]


@pytest.mark.parametrize(
    ("network", "outer"), [("cnn", 2500), ("resnet", 1250), ("timm:resnet10t", 1250)]
)
def test_convolutions_send_more_often(network: str, outer: int) -> None:
    done = completed(TrainConfig(network=network), 8, 60_000)
    assert done == completed(TrainConfig(network=network, outer_samples=outer), 8, 60_000)
    usual = completed(TrainConfig(), 8, 60_000)
    assert (done.batch, done.local_steps) < (usual.batch, usual.local_steps)


@pytest.mark.parametrize(
    ("samples", "epochs", "outer"),
    [(60_000, 10.0, 10_500), (60_000, 1.0, 2_400), (10_000, 20.0, 8_000), (100, 1.0, 4)],
)
def test_an_iteration_takes_at_most_a_25th_of_the_run(
    samples: int, epochs: float, outer: int
) -> None:
    done = completed(TrainConfig(epochs=epochs), 2, samples)
    given = completed(TrainConfig(epochs=epochs, outer_samples=outer), 2, samples)
    assert done == given


def test_a_short_run_with_few_samples_of_text_or_images_has_more_messages_too() -> None:
    for network, task in (("resnet", "classification"), ("transformer", "language")):
        config = TrainConfig(network=network, epochs=1.0)
        short, long = (completed(config, 2, samples, task=task) for samples in (1_000, 10**6))
        assert short.batch * short.local_steps < long.batch * long.local_steps  # type: ignore[operator]


def test_corrections_of_text_are_sent_in_8_bits_where_any_are_sent() -> None:
    found = [completed(TrainConfig(), ranks, 9000, task="language").compress for ranks in (1, 2)]
    assert found == ["none", "int8"]
    assert completed(TrainConfig(), 2, 9000).compress == "none"


@pytest.mark.parametrize(
    ("values", "task", "line"),
    [
        ({"context": 5}, "classification", "--context 5: is for language, the data are for"),
        ({"label_smoothing": 0.1}, "regression", "--label-smoothing 0.1: is for classification or"),
        ({"class_weights": "1,2"}, "language", "--class-weights 1,2: is for classification, the"),
    ],
)
def test_a_setting_without_effect_on_the_data_is_refused(
    values: dict[str, Any], task: str, line: str
) -> None:
    with pytest.raises(InputError, match=line):
        completed(TrainConfig(**values), 2, 1000, task=task)


def test_the_settings_of_the_noisy_rule_have_its_defaults() -> None:
    rule, config = NoisyRule(), completed(TrainConfig(), 1, 1000)
    for name in ("smoothing", "grow_above", "grow", "shrink_below", "shrink", "window"):
        assert getattr(config, name) == getattr(rule, name)
