"""Settings beside each other: what has no effect, or contradicts another, is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from apts_mpi.cli.main import train_settings
from apts_mpi.comm.compression import COMPRESSIONS
from apts_mpi.errors import InputError
from apts_mpi.method.options import AVERAGING, LOCAL, LOCAL_SOLVERS, OPTIMIZERS
from apts_mpi.networks.sizes import SIZES
from apts_mpi.settings.config import SETTINGS, TrainConfig
from apts_mpi.settings.defaults import completed
from apts_mpi.settings.texts import AUTO
from apts_mpi.settings.toml import parse_toml, to_toml


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
    "schedule": "cosine",
    "warmup": 5.0,
    "local_solver": "first-order",
    "local_steps": 7,
    "consistency": False,
    "norm": "inf",
    "join": "sum",
    "global_step": False,
    "radius": 0.1,
    "window": 3,
    "momentum": 0.0,
    "cooldown": 20.0,
    "shared_moment": False,
    "weight_decay": 0.1,
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
RUNS = [(optimizer, solver) for optimizer in OPTIMIZERS for solver in LOCAL_SOLVERS]
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
    scaled = {"cooldown", "shared_moment", "outer_samples", "averaging", "smoothing"}
    scaled |= {"weight_decay", "grow_above", "grow", "shrink_below", "shrink"}
    rated = {"lr", "schedule", "warmup", "overlap"}
    published = {"consistency", "join", "global_step", "overlap"}
    assert {json.dumps(method): effects(method) - {"local_solver"} for method in METHODS} == {
        '{"local_solver": "scaled"}': of_all | scaled,
        '{"local_solver": "spectral"}': of_all | scaled,
        '{"local_solver": "sr1"}': of_all | published | {"memory"},
        '{"local_solver": "first-order"}': of_all | published | {"norm"},
        **{json.dumps({"optimizer": name}): rated for name in AVERAGING},
        **{json.dumps({"optimizer": name}): rated | {"local_steps"} for name in LOCAL},
    }


@pytest.mark.parametrize("method", METHODS, ids=lambda method: next(iter(method.values())))
def test_what_is_taken_runs_and_repeats_from_its_file(method: dict[str, str]) -> None:
    for name in effects(method):
        batch = 10 if name == "overlap" else None
        config = TrainConfig(**{"batch": batch, **method, name: ELSEWHERE[name]})
        done = completed(config, 2, 10_000)
        assert TrainConfig(**parse_toml(to_toml(done), Path("config.toml"))) == done, name
        assert completed(done, 2, 10_000) == done, name


def test_what_every_setting_belongs_to_is_tested() -> None:
    everywhere = {
        name
        for name, each in SETTINGS.items()
        if not any(each.where.missed(*run, network) for run in RUNS for network in SIZES)
    }
    assert set(SETTINGS) - everywhere == set(ELSEWHERE) | set().union(*SIZES.values())


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
        (
            {"depth": 3},
            "--depth 3: .* --network mlp, only with --network resnet or transformer; leave it out; "
            "the sizes of mlp are --hidden",
        ),
    ):
        with pytest.raises(InputError, match=word):
            TrainConfig(**values)


def test_a_flag_without_effect_is_refused_at_its_default_too() -> None:
    for flags, word in (
        ("--join adaptive", "--join adaptive: has no effect with --local-solver spectral, only"),
        ("--global-step on", "--global-step on: "),
        ("--optimizer adam --consistency on", "--consistency on: .*--optimizer adam"),
        ("--optimizer sgd --momentum 0", "--optimizer sgd, whose momentum is 0.9, only"),
    ):
        with pytest.raises(InputError, match=word):
            train_settings(flags.split())
    assert train_settings("--optimizer adam --subdomains-per-rank 1 --overlap 0".split()).lr is None


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_a_run_repeats_from_its_settings_which_have_effect(
    method: dict[str, Any],
) -> None:
    done = completed(TrainConfig(**method), 2, 1000)
    written = parse_toml(to_toml(done), Path("config.toml"))
    assert TrainConfig(**written) == done
    assert not set(ELSEWHERE) & set(written) - effects(method) - set(method) - {"norm"}


def test_messages_take_every_form_there_is() -> None:
    assert SETTINGS["compress"].kind.choices == COMPRESSIONS


def test_settings_an_optimizer_has_not_are_refused() -> None:
    with pytest.raises(InputError, match=r"--lr 0\.1: has no effect with --optimizer apts"):
        TrainConfig(lr=0.1)
    for name in ("adam", "sgd"):
        with pytest.raises(InputError, match=f"--local-steps 5: .* --optimizer {name}, only"):
            TrainConfig(optimizer=name, local_steps=5)
    assert TrainConfig(optimizer="adam", overlap=5.0).overlap == 5.0, "it has minibatches"
