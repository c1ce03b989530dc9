"""Settings to TOML and back; files that are wrong are refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apts_mpi.errors import InputError
from apts_mpi.settings.config import SETTINGS, TrainConfig
from apts_mpi.settings.toml import parse_toml, read_toml, to_toml
from tests.settings.strategies import configs, run_with, values

HERE = Path("config.toml")
repeatable = settings(max_examples=25, deadline=None, derandomize=True)


def through_toml(config: TrainConfig) -> TrainConfig:
    return TrainConfig(**parse_toml(to_toml(config), HERE))


@pytest.mark.parametrize("name", SETTINGS)
@repeatable
@given(data=st.data())
def test_every_value_of_every_setting_survives_toml(name: str, data: st.DataObject) -> None:
    value = data.draw(values(SETTINGS[name]))
    config = TrainConfig(**run_with(name, value))
    back = through_toml(config)
    assert back == config
    assert type(getattr(back, name)) is type(value)


@repeatable
@given(config=configs())
def test_all_settings_together_survive_toml(config: TrainConfig) -> None:
    assert through_toml(config) == config


@pytest.mark.parametrize("text", ["a/\U0001f600", "tab\tand \x7f", 'quote " and \\', "two\nlines"])
def test_any_text_survives_toml(text: str) -> None:
    config = TrainConfig(data=text, out=text)
    assert through_toml(config) == config


def test_a_file_names_only_what_it_sets(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("epochs = 5\nhidden = [3, 4]\nglobal_step = false\n")
    values = read_toml(path)
    assert values == {"epochs": 5.0, "hidden": (3, 4), "global_step": False}
    assert type(values["epochs"]) is float, "a whole number is a float's too"
    path.write_text("")
    assert read_toml(path) == {}


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("rate = 0.1\n", "unknown setting 'rate'"),
        ("[apts]\nmemory = 3\n", "unknown setting 'apts'"),
        ('memory = "3"\n', "memory = '3' must be of type int"),
        ("memory = 3.0\n", "memory = 3.0 must be of type int"),
        ("memory = true\n", "memory = True must be of type int"),
        ("radius = true\n", "radius = True must be of type float"),
        ('epochs = "many"\n', "epochs = 'many' must be of type float"),
        ("consistency = 1\n", "consistency = 1 must be of type bool"),
        ("local_steps = -1\n", "local_steps = -1 must be a whole number"),
        ("norm = 2\n", "norm = 2 must be of type str"),
        ("hidden = 128\n", "must be a list of integers"),
        ("hidden = [1, 2.5]\n", "must be a list of integers"),
        ("hidden = [true]\n", "must be a list of integers"),
        ("memory = \n", "is not valid TOML"),
        ("memory = 3\nmemory = 4\n", "is not valid TOML"),
        ("hidden = " + "[" * 20_000, "is not valid TOML"),
        ("seed = " + "9" * 5000, "is not valid TOML"),
        ("seed = 0x" + "f" * 5000, "seed has too many digits"),
        ("epochs = " + "9" * 400, "epochs has too many digits"),
        ("hidden = [0x" + "f" * 5000 + "]", "must be a list of integers"),
        ("hidden" + ".a" * 3000 + " = 1", "must be a list of integers"),
        ("#" * 2**20 + "\n", "is longer than 1048576 bytes"),
    ],
    ids=lambda text: text[:20],
)
def test_a_file_that_is_wrong_is_refused_in_one_line_with_its_name(
    text: str, word: str, tmp_path: Path
) -> None:
    path = tmp_path / "config.toml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_toml(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert word in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_file_that_is_not_text_or_not_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "binary.toml").write_bytes(b"data = \xff\xfe")
    for path, word in (
        (tmp_path / "none.toml", "no such configuration file"),
        (tmp_path / "binary.toml", "cannot be read as text"),
        (tmp_path, "cannot be read as text"),
    ):
        with pytest.raises(InputError, match=word):
            read_toml(path)


def test_an_endless_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "endless.toml").symlink_to("/dev/zero")
    with pytest.raises(InputError, match="is longer than"):
        read_toml(tmp_path / "endless.toml")
