"""Settings: every range refused in one line, every value through TOML and back."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from apts_mpi.cli.main import train_settings
from apts_mpi.errors import InputError
from apts_mpi.settings.config import AUTO, LOCAL_SOLVERS, OPTIMIZERS, TrainConfig, plan, with_effect
from apts_mpi.settings.declaration import EVERYWHERE
from apts_mpi.settings.toml import parse_toml, read_toml

repeatable = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

numbers = st.floats(0, 1e12, exclude_min=True)
# No surrogates: they have no UTF-8.
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)


@st.composite
def configs(draw: st.DrawFn) -> TrainConfig:
    solver = draw(st.sampled_from(LOCAL_SOLVERS))
    optimizer = draw(st.sampled_from(OPTIMIZERS))
    batch = draw(st.none() | st.integers(1, 2**40))
    values = dict[str, Any](
        data=draw(texts),
        hidden=tuple(draw(st.lists(st.integers(1, 2**20), max_size=4))),
        optimizer=optimizer,
        lr=draw(st.none() | numbers),
        local_solver=solver,
        local_steps=draw(st.none() | st.integers(1, 1000)),
        consistency=draw(st.booleans()),
        norm=draw(st.sampled_from(["2", "inf"])) if solver == "first-order" else "2",
        join=draw(st.sampled_from(["adaptive", "average", "sum"])),
        global_step=draw(st.booleans()),
        radius=draw(st.none() | st.floats(1e-8, 1e3)),
        momentum=draw(st.floats(0, 1, exclude_max=True)),
        window=draw(st.none() | st.integers(1, 1000)),
        averaging=draw(st.floats(0, math.inf)),
        smoothing=draw(st.floats(0, 1, exclude_max=True)),
        grow_above=draw(st.floats(0, 1, exclude_max=True)),
        grow=draw(st.floats(1, 10)),
        shrink_below=draw(st.floats(-10, 0, exclude_max=True)),
        shrink=draw(st.floats(0, 1, exclude_min=True, exclude_max=True)),
        memory=draw(st.integers(1, 10)),
        batch=batch,
        overlap=draw(st.floats(0, 100)) if batch is not None else 0.0,
        epochs=draw(st.none() | numbers),
        iterations=draw(st.none() | st.integers(1, 2**40)),
        seed=draw(st.integers(0, 2**62)),
        device=draw(st.sampled_from(["auto", "cpu", "cuda"])),
        threads=draw(st.none() | st.integers(1, 4096)),
        evaluate_every=draw(st.floats(0, 1e6)),
        out=draw(st.none() | texts),
    )
    if not (values["consistency"] or values["global_step"]):
        del values["momentum"]  # of a gradient that is not joined
    return TrainConfig(**with_effect(values))


def through_toml(config: TrainConfig, path: Path) -> TrainConfig:
    path.write_text(config.to_toml(), encoding="utf-8")
    return TrainConfig(**read_toml(path))


@repeatable
@given(config=configs())
def test_every_setting_survives_toml(config: TrainConfig, tmp_path: Path) -> None:
    back = through_toml(config, tmp_path / "config.toml")
    assert back == config
    for item in dataclasses.fields(config):
        assert type(getattr(back, item.name)) is type(getattr(config, item.name)), item.name


@pytest.mark.parametrize("text", ["a/\U0001f600", "tab\tand \x7f", 'quote " and \\', "two\nlines"])
def test_any_text_survives_toml(text: str, tmp_path: Path) -> None:
    config = TrainConfig(data=text, out=text)
    assert through_toml(config, tmp_path / "config.toml") == config


def test_an_evaluation_interval_is_refused_or_survives_toml(tmp_path: Path) -> None:
    try:
        config = TrainConfig(evaluate_every=math.inf)
    except InputError as error:
        assert "--evaluate-every inf" in str(error)
    else:
        assert through_toml(config, tmp_path / "config.toml") == config


@pytest.mark.parametrize(
    ("flag", "values"),
    [
        ("network", ["perceptron"]),
        ("optimizer", ["lbfgs", "Adam"]),
        ("local_solver", ["newton", ""]),
        ("join", ["max"]),
        ("norm", ["1", "Inf"]),
        ("device", ["tpu"]),
        ("hidden", [(0,), (128, -1), (2**20 + 1,)]),
        ("local_steps", [0, 1001]),
        ("window", [0, 1001]),
        ("memory", [0, 11]),
        ("batch", [0, -5, 2**40 + 1]),
        ("iterations", [0, 2**40 + 1]),
        ("seed", [-1, 2**62 + 1]),
        ("threads", [0, 4097]),
        ("radius", [0.0, -1.0, math.inf, math.nan]),
        ("epochs", [0.0, -1.0, math.inf, math.nan]),
        ("evaluate_every", [-0.1, math.nan]),
        ("local_solver", ["adam"]),
        ("momentum", [-0.1, 1.0, math.nan]),
        ("averaging", [-0.1, math.nan]),
        ("smoothing", [-0.1, 1.0, math.nan]),
        ("grow_above", [1.0, -1e9, math.nan]),
        ("grow", [0.9, 10.1, math.nan]),
        ("shrink", [0.0, 1.0, math.nan]),
    ],
)
def test_a_value_out_of_range_is_refused_in_one_line_with_its_flag(
    flag: str, values: list[Any]
) -> None:
    for value in values:
        with pytest.raises(InputError) as caught:
            TrainConfig(**{flag: value})
        line = str(caught.value)
        shown = ",".join(map(str, value)) if isinstance(value, tuple) else value
        assert line.startswith(f"--{flag.replace('_', '-')} {shown}: "), line
        assert len(line.splitlines()) == 1


@pytest.mark.parametrize("overlap", [-0.5, 100.5, math.nan])
def test_an_overlap_is_a_percentage(overlap: float) -> None:
    with pytest.raises(InputError, match=r"^--overlap .*at least 0, at most 100$"):
        TrainConfig(batch=10, overlap=overlap)


def test_settings_that_exclude_each_other_are_refused() -> None:
    with pytest.raises(InputError, match="--norm inf: needs --local-solver first-order"):
        TrainConfig(norm="inf")
    assert TrainConfig(norm="inf", local_solver="first-order").norm == "inf"
    with pytest.raises(InputError, match=r"--overlap 5.0: needs --batch"):
        TrainConfig(overlap=5.0, local_solver="sr1")
    with pytest.raises(InputError, match=r"--overlap 5.0: .*only with --local-solver sr1"):
        TrainConfig(overlap=5.0, batch=10)
    with pytest.raises(InputError, match=r"--grow-above .*--shrink-below 0\.9"):
        TrainConfig(shrink_below=0.9)
    assert TrainConfig(overlap=5.0, batch=10, local_solver="sr1").overlap == 5.0


# Of every setting that not all runs have, a value that is not its default.
ELSEWHERE: dict[str, Any] = {
    "subdomains_per_rank": 2,
    "compress": "bf16",
    "lr": 0.5,
    "local_solver": "first-order",
    "local_steps": 7,
    "consistency": False,
    "norm": "inf",
    "join": "sum",
    "global_step": False,
    "radius": 0.1,
    "window": 3,
    "momentum": 0.0,
    "shared_moment": False,
    "outer_samples": 1000,
    "averaging": 3.0,
    "smoothing": 0.1,
    "grow_above": 0.5,
    "grow": 3.0,
    "shrink_below": -1.0,
    "shrink": 0.5,
    "memory": 3,
    "overlap": 5.0,
}
METHODS = [
    *({"optimizer": name} for name in OPTIMIZERS[1:]),
    *({"local_solver": name} for name in LOCAL_SOLVERS),
]


def effects(method: dict[str, str]) -> set[str]:
    """The settings of ELSEWHERE that a method takes."""
    taken = set[str]()
    for name, value in ELSEWHERE.items():
        if name in method:
            continue
        try:
            TrainConfig(**{"batch": 10 if name == "overlap" else None, **method, name: value})
        except InputError as error:
            line = str(error)
            assert line.startswith(f"--{name.replace('_', '-')} "), line
            assert "only with --" in line or "needs --" in line, line
        else:
            taken.add(name)
    return taken


def test_settings_have_effect_or_are_refused() -> None:
    of_all = {"subdomains_per_rank", "compress", "local_steps", "radius", "window", "momentum"}
    scaled = {"shared_moment", "outer_samples", "averaging", "smoothing"}
    scaled |= {"grow_above", "grow", "shrink_below", "shrink"}
    published = {"consistency", "join", "global_step", "overlap"}
    assert {json.dumps(method): effects(method) - {"local_solver"} for method in METHODS} == {
        '{"local_solver": "scaled"}': of_all | scaled,
        '{"local_solver": "sr1"}': of_all | published | {"memory"},
        '{"local_solver": "first-order"}': of_all | published | {"norm"},
        '{"optimizer": "adam"}': {"lr", "overlap"},
        '{"optimizer": "sgd"}': {"lr", "overlap"},
        '{"optimizer": "local-sgd"}': {"lr", "overlap", "local_steps"},
        '{"optimizer": "diloco"}': {"lr", "overlap", "local_steps"},
    }


@pytest.mark.parametrize("method", METHODS, ids=lambda method: next(iter(method.values())))
def test_what_is_taken_runs_and_repeats_from_its_file(method: dict[str, str]) -> None:
    for name in effects(method):
        batch = 10 if name == "overlap" else None
        config = TrainConfig(**{"batch": batch, **method, name: ELSEWHERE[name]})
        done = config.completed(2, 10_000)
        assert TrainConfig(**parse_toml(done.to_toml(), Path("config.toml"))) == done, name
        assert done.completed(2, 10_000) == done, name


def test_samples_between_messages_decide_the_steps() -> None:
    few, many = (TrainConfig(outer_samples=n).completed(2, 60_000) for n in (1000, 8000))
    assert few.batch is not None
    assert many.batch is not None
    assert few.batch * few.local_steps < many.batch * many.local_steps  # type: ignore[operator]


def test_what_every_setting_belongs_to_is_tested() -> None:
    fields = {f.name: f.metadata["where"] for f in dataclasses.fields(TrainConfig)}
    assert {name for name, where in fields.items() if where is not EVERYWHERE} == set(ELSEWHERE)


def test_settings_without_effect_beside_others_are_refused() -> None:
    for values, word in (
        ({"outer_samples": 99, "batch": 9, "local_steps": 9}, "--outer-samples 99"),
        ({"outer_samples": 99, "local_steps": AUTO}, "--outer-samples 99"),
        (
            {
                "momentum": 0.3,
                "local_solver": "sr1",
                "consistency": False,
                "global_step": False,
            },
            "--momentum 0.3",
        ),
        ({"depth": 3}, "--depth 3: .*; --network resnet or transformer has it"),
    ):
        with pytest.raises(InputError, match=word):
            TrainConfig(**values)


def test_a_flag_without_effect_is_refused_at_its_default_too() -> None:
    for flags, word in (
        ("--join adaptive", "--join adaptive: has no effect with --local-solver scaled, only"),
        ("--global-step on", "--global-step on: "),
        ("--optimizer adam --consistency on", "--consistency on: .*--optimizer adam"),
        ("--optimizer sgd --momentum 0", "--optimizer sgd, whose momentum is 0.9, only"),
    ):
        with pytest.raises(InputError, match=word):
            train_settings(flags.split())
    assert train_settings("--optimizer adam --compress none --overlap 0".split()).lr is None


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_a_run_repeats_from_its_settings_which_have_effect(
    method: dict[str, Any], tmp_path: Path
) -> None:
    done = TrainConfig(**method).completed(2, 1000)
    assert through_toml(done, tmp_path / "config.toml") == done
    written = read_toml(tmp_path / "config.toml")
    assert not set(ELSEWHERE) & set(written) - effects(method) - set(method) - {"norm"}
    # What other versions wrote is read of a checkpoint, but for what has no effect.
    assert TrainConfig(**with_effect({**dataclasses.asdict(done), "window": 5})).seed == 0


@pytest.mark.parametrize("lr", [0.0, -1.0, math.inf, math.nan])
def test_a_learning_rate_is_a_positive_number(lr: float) -> None:
    with pytest.raises(InputError, match=r"^--lr .*: must be a positive number$"):
        TrainConfig(optimizer="adam", lr=lr)


def test_settings_an_optimizer_has_not_are_refused() -> None:
    with pytest.raises(InputError, match=r"--lr 0\.1: has no effect with --optimizer apts"):
        TrainConfig(lr=0.1)
    for name in ("adam", "sgd"):
        with pytest.raises(InputError, match=f"--local-steps 5: .* --optimizer {name}, only"):
            TrainConfig(optimizer=name, local_steps=5)
    assert TrainConfig(optimizer="adam", overlap=5.0).overlap == 5.0, "it has minibatches"


@repeatable
@given(config=configs(), ranks=st.integers(1, 4096))
def test_completed_settings_are_complete_and_stay_so(config: TrainConfig, ranks: int) -> None:
    done = config.completed(ranks, 1000)
    assert done.completed(ranks + 1, 10) == done, "a run that repeats has other settings"
    assert (done.lr is None) == (done.optimizer == "apts")
    assert (done.local_steps is None) == (done.optimizer in ("adam", "sgd"))
    for name in ("lr", "local_steps", "batch", "window", "epochs"):
        given = getattr(config, name)
        assert given is None or getattr(done, name) == given
    kinds = {item.name: item.metadata["kind"] for item in dataclasses.fields(done)}
    for name in ("lr", "local_steps", "batch", "window", "epochs"):
        found = getattr(done, name)
        assert found is None or type(found) is kinds[name], f"{name} reads back as another"
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
    ],
)
def test_an_optimizer_has_defaults_of_its_own(name: str, wanted: tuple[Any, ...]) -> None:
    done = TrainConfig(optimizer=name).completed(3, 1000)
    assert (done.lr, done.local_steps, done.batch) == wanted


def test_the_ends_of_every_range_are_allowed() -> None:
    for values in (
        {"local_steps": 1, "window": 1, "batch": 1, "overlap": 0.0, "seed": 0},
        {"local_steps": 1000, "window": 1000, "batch": 2**40},
        {"memory": 1, "local_solver": "sr1"},
        {"memory": 10, "local_solver": "sr1"},
        {"overlap": 100.0, "local_solver": "sr1", "batch": 1},
        {"iterations": 1, "threads": 1, "evaluate_every": 0.0, "hidden": (1,)},
        {"seed": 2**62, "threads": 4096, "iterations": 2**40, "hidden": (2**20,)},
    ):
        config = TrainConfig(**values)
        assert {name: getattr(config, name) for name in values} == values


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


@pytest.mark.parametrize("value", ["a\nb", "\x1b[2J", "\x00", "x" * 5000])
def test_a_refused_value_is_told_in_one_short_line(value: str) -> None:
    with pytest.raises(InputError) as caught:
        TrainConfig(device=value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300
