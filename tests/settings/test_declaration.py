"""Every declared range is kept to at its edges, by flags and by values, in one line."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apts_mpi.errors import InputError
from apts_mpi.settings.config import SETTINGS, TrainConfig
from apts_mpi.settings.declaration import Setting, written
from apts_mpi.settings.texts import AUTO
from tests.settings.strategies import values

RANGED = [each for each in SETTINGS.values() if each.kind.range is not None]
repeatable = settings(max_examples=25, deadline=None, derandomize=True)


def refused(setting: Setting, value: Any) -> bool:
    """Whether a value is; in one line that names flag, value and range."""
    try:
        setting.check(value)
    except InputError as error:
        line = str(error)
        assert line.startswith(f"{setting.flag} {written(value)}: must be a ")
        assert line.isprintable()
        assert str(setting.kind.range) in line
        return True
    return False


@pytest.mark.parametrize("setting", RANGED, ids=lambda each: each.name)
def test_the_lower_bound_is_in_a_range_that_is_closed_there(setting: Setting) -> None:
    span = setting.kind.range
    assert span is not None
    assert refused(setting, setting.kind.type(span.low)) == ("(" in span.open)


@pytest.mark.parametrize("setting", RANGED, ids=lambda each: each.name)
def test_the_upper_bound_is_in_a_range_that_is_closed_there(setting: Setting) -> None:
    span = setting.kind.range
    assert span is not None
    assert refused(setting, setting.kind.type(span.high)) == (")" in span.open)


@pytest.mark.parametrize("setting", RANGED, ids=lambda each: each.name)
def test_just_below_a_range_is_refused(setting: Setting) -> None:
    span = setting.kind.range
    assert span is not None
    if span.low > -math.inf:
        below = span.low - 1 if setting.kind.type is int else math.nextafter(span.low, -math.inf)
        assert below == AUTO or refused(setting, below)


@pytest.mark.parametrize("setting", RANGED, ids=lambda each: each.name)
def test_just_above_a_range_is_refused(setting: Setting) -> None:
    span = setting.kind.range
    assert span is not None
    if span.high < math.inf:
        above = span.high + 1 if setting.kind.type is int else math.nextafter(span.high, math.inf)
        assert refused(setting, above)


@pytest.mark.parametrize(
    "setting", [each for each in RANGED if each.kind.type is float], ids=lambda each: each.name
)
def test_no_range_has_what_is_not_a_number(setting: Setting) -> None:
    assert refused(setting, math.nan)


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=lambda each: each.name)
@repeatable
@given(data=st.data())
def test_every_value_can_be_given_as_a_flag(setting: Setting, data: st.DataObject) -> None:
    value = data.draw(values(setting))
    setting.check(value)
    text = "auto" if setting.name == "local_steps" and value == AUTO else written(value)
    assert setting.read(text) == value


@pytest.mark.parametrize(
    ("flag", "value", "word"),
    [
        ("optimizer", "lbfgs", "must be apts, adam, adamw, sgd, muon, schedule-free, prodigy, "),
        ("optimizer", "Adam", "did you mean adam?"),
        ("optimizer", "schedulefree", "did you mean schedule-free?"),
        ("schedule", "cosin", "did you mean cosine?"),
        ("schedule", "linear", "must be constant, cosine or wsd"),
        ("lr", 1e200, "must be a number above 0 and at most 1e+30"),
        ("warmup", 100.0, "must be a number of at least 0 and below 100"),
        ("warmup", -1.0, "must be a number of at least 0 and below 100"),
        ("local_solver", "sr-1", "did you mean sr1?"),
        ("local_solver", "", "must be spectral, scaled, sr1 or first-order"),
        ("compress", "bf-16", "did you mean bf16?"),
        ("network", "resnt", "did you mean resnet?"),
        ("network", "./net.py:make", "has no .py in it"),
        ("join", "max", "must be adaptive, average or sum"),
        ("norm", "Inf", "did you mean inf?"),
        ("device", "tpu", "must be auto, cpu or cuda"),
        ("hidden", (0,), "like 128,128"),
        ("hidden", (128, 2**20 + 1), "from 1 to 1048576"),
        ("checkpoint_every", "0", "like 100 (iterations), 600s"),
        ("class_weights", "1,-2", "numbers from 0 up"),
        ("class_weights", "balancd", "did you mean balanced?"),
        ("augment", "flop", "did you mean flip?"),
        ("out", "", "must be the name of a folder"),
        ("trace", "\udcff", "must be the name of a file"),
    ],
)
def test_a_value_of_another_kind_is_refused_with_what_is_meant(
    flag: str, value: Any, word: str
) -> None:
    with pytest.raises(InputError) as caught:
        TrainConfig(**{flag: value})
    line = str(caught.value)
    assert line.startswith(SETTINGS[flag].flag)
    assert word in line
    assert len(line.splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("batch", "many", "--batch many: must be a whole number from 1 to 1099511627776"),
        ("epochs", "1e", "--epochs 1e: must be a number above 0 and finite"),
        ("local_steps", "-1", "--local-steps -1: must be a whole number from 1 to 1000, or auto"),
        ("tied", "yes", "--tied yes: must be on or off"),
        ("hidden", "12,a", "--hidden 12,a: must be widths from 1 to 1048576, like 128,128"),
    ],
)
def test_a_text_that_is_no_value_is_refused_as_the_value_would_be(
    name: str, text: str, line: str
) -> None:
    with pytest.raises(InputError) as caught:
        SETTINGS[name].read(text)
    assert str(caught.value) == line


def test_help_says_range_default_source_and_where_a_setting_has_effect() -> None:
    text = SETTINGS["averaging"].described()
    assert text.endswith("; with --local-solver spectral or scaled; default: 12.0 (docs/method.md)")
    assert "; 1 to 10; default: 5" in SETTINGS["memory"].described()


@pytest.mark.parametrize("value", ["a\nb", "\x1b[2J", "\x00", "x" * 5000])
def test_a_refused_value_is_told_in_one_short_line(value: str) -> None:
    with pytest.raises(InputError) as caught:
        TrainConfig(device=value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300
