"""Values of settings, drawn from what the settings are declared as."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from hypothesis import strategies as st

from apts_mpi.method.options import DETERMINISTIC
from apts_mpi.settings import declaration as of
from apts_mpi.settings.config import SETTINGS, TrainConfig
from apts_mpi.settings.texts import AUTO

# No surrogates: they have no UTF-8.
names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
_TEXTS = {
    of.FOLDER: names,
    of.FILE: names,
    of.INTERVAL: st.sampled_from(["off", "1", "100", "1s", "600s", "999999999s"]),
    of.WEIGHTS: st.sampled_from(["balanced", "1,2,0.5", "0,1e300"]),
    of.ARGUMENTS: st.sampled_from(["width=64", "a=1,b=off,c=relu,d=1e-3"]),
    of.LOGS: st.sampled_from(["csv", "csv,wandb,mlflow,tensorboard"]),
    of.CHANGES: st.sampled_from(
        ["crop", "flip", "crop,flip", "flip,crop", "flip,RandomRotation(15, fill=[1])"]
    ),
}


def values(setting: of.Setting) -> st.SearchStrategy[Any]:
    """All values of a setting but None."""
    kind = setting.kind
    if setting.name == "network":
        return st.sampled_from([*kind.choices, "a.b_1:make", "timm:resnet18.a1_in1k"])
    if kind in _TEXTS:
        return _TEXTS[kind]
    if kind.choices:
        return st.sampled_from(kind.choices)
    if kind is of.WIDTHS:
        return st.lists(st.integers(1, 2**20), max_size=4).map(tuple)
    if kind.range is None:
        return st.booleans()
    low, high = kind.range.low, kind.range.high
    if kind.type is int:
        drawn = st.integers(int(low), int(high))
        return drawn | st.just(AUTO) if kind is of.STEPS else drawn
    return st.floats(
        max(low, -1e300),
        None if high == math.inf and ")" in kind.range.open else high,
        exclude_min="(" in kind.range.open and low > -math.inf,
        exclude_max=")" in kind.range.open and high < math.inf,
        allow_nan=False,
        allow_infinity=None if high == math.inf and ")" not in kind.range.open else False,
    )


def run_with(name: str, value: Any) -> dict[str, Any]:
    """Settings beside which a value of a setting has effect, and it."""
    where = SETTINGS[name].where
    run: dict[str, Any] = {"local_solver": where.solvers[0]} if "apts" in where.optimizers else {}
    run["optimizer"] = "apts" if run else where.optimizers[0]
    run["network"] = where.networks[0] if where.networks else "mlp"
    beside: dict[tuple[str, Any], dict[str, Any]] = {
        ("norm", "inf"): {"local_solver": "first-order"},
        ("overlap", value): {"batch": 10},
        ("network_args", value): {"network": "a.b:make"},
        ("pretrained", True): {"network": "timm:resnet18"},
        ("resume", "auto"): {"out": "run"},
        ("grow_above", value): {"shrink_below": -1.7e308},
        ("shrink_below", value): {"grow_above": 1 - 2**-53},
    }
    run |= beside.get((name, value), {})
    return {k: v for k, v in run.items() if v != SETTINGS[k].default} | {name: value}


@st.composite
def configs(draw: st.DrawFn) -> TrainConfig:
    """Settings of any run, all that have effect on it."""
    method = {name: draw(values(SETTINGS[name])) for name in ("optimizer", "local_solver")}
    method = method if method["optimizer"] == "apts" else {**method, "local_solver": "spectral"}
    network, of_ours = draw(values(SETTINGS["network"])), SETTINGS["network"].kind.choices
    given: dict[str, Any] = {**method, "network": network, "batch": draw(st.integers(1, 2**40))}
    for item in dataclasses.fields(TrainConfig):
        each = SETTINGS[item.name]
        aside = {*given, "outer_samples", "resume", "grow_above", "shrink_below", "momentum"}
        if item.name in aside or each.where.missed(**method, network=network):
            continue
        if (item.name == "network_args" and network in of_ours) or (
            item.name == "pretrained" and not network.startswith("timm")
        ):
            continue
        if each.where.tasks or (item.name == "norm" and method["local_solver"] == "sr1"):
            continue
        drawn = draw(st.none() | values(each) if each.default is None else values(each))
        if not (drawn == AUTO and method["local_solver"] in DETERMINISTIC):
            given[item.name] = drawn
    if given.get("local_steps") == AUTO and method["optimizer"] != "apts":
        del given["local_steps"]
    return TrainConfig(**given)
